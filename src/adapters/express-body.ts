import type { IncomingMessage, ServerResponse } from 'node:http'
import { FingerprintError } from '../contract/errors.js'
import { asParsed, digestOf } from '../http/compared-body.js'
import type { IncomingOperation } from '../http/http-options.js'
import { hasBody, readAhead } from '../http/read-ahead.js'
import type { ExpressRequest } from './express-types.js'

/** The longest body that is read before the application's own parser, which has its own limit. */
const MAX_READ_AHEAD_BYTES = 1024 * 1024

const DIGEST: unique symbol = Symbol('oncekey.digest')

type Digested = IncomingMessage & { [DIGEST]?: Uint8Array }

/**
 * Notes which bytes a request had, for `fingerprint: 'raw'` where a body parser comes before the middleware. Give it to
 * the parser: `express.json({ verify: noteReceivedBytes })`.
 */
export function noteReceivedBytes(request: IncomingMessage, _response: ServerResponse, bytes: Buffer): void {
  ;(request as Digested)[DIGEST] = digestOf(bytes)
}

/** The part of a request's body that is compared with that of its retries. */
export type ComparedBody = Pick<IncomingOperation<ExpressRequest>, 'body' | 'rawDigest'>

/** Where nothing is compared, or there is nothing. */
export const NOTHING: ComparedBody = { body: undefined, rawDigest: undefined }

/**
 * What is compared: a promise only where the body has to be read first, and `undefined` where the client left before it
 * was there.
 *
 * @throws {FingerprintError} when somebody has read the body, and left nothing to compare.
 * @throws {RequestTooLargeError} when nobody has read it, and it is too long to be read ahead.
 */
export function comparedBody(
  request: ExpressRequest,
  fingerprint: unknown,
): ComparedBody | Promise<ComparedBody | undefined> {
  if (fingerprint !== 'body' && fingerprint !== 'raw') return NOTHING
  if (!hasBody(request)) return { body: request.body, rawDigest: undefined }
  // To whoever listens for its data already, it would go before it could be read and put back.
  const isRead = request.readableDidRead || request.readableFlowing === true
  if (!isRead) return readAheadOf(request, fingerprint)
  if (fingerprint === 'raw') return { body: undefined, rawDigest: receivedDigest(request) }
  if (request.body === undefined)
    throw new FingerprintError(
      'The body was read before it could be compared: let the middleware come before whoever reads it, or after what puts it on req.body, or choose fields with `fingerprint`',
      500,
    )
  return { body: request.body, rawDigest: undefined }
}

function receivedDigest(request: ExpressRequest): Uint8Array {
  const noted = (request as Digested)[DIGEST]
  if (noted !== undefined) return noted
  if (request.body instanceof Uint8Array) return digestOf(request.body)
  throw new FingerprintError(
    "fingerprint: 'raw' needs the received bytes: give the body parser that comes before the middleware { verify: noteReceivedBytes }",
    500,
  )
}

async function readAheadOf(
  request: ExpressRequest,
  fingerprint: 'body' | 'raw',
): Promise<ComparedBody | undefined> {
  const bytes = await readAhead(request, MAX_READ_AHEAD_BYTES)
  if (bytes === undefined) return undefined
  if (fingerprint === 'raw') return { body: undefined, rawDigest: digestOf(bytes) }
  const { headers } = request
  // Compressed, it is no JSON yet.
  const type = headers['content-encoding'] === undefined ? headers['content-type'] : undefined
  return { body: asParsed(bytes, type, () => bytes.toString()), rawDigest: undefined }
}
