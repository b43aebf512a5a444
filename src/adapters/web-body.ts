import { FingerprintError, RequestTooLargeError } from '../contract/errors.js'
import { asParsed } from '../http/compared-body.js'

/** What reading a web stream up to a limit gave: all of it, or the same bytes as a stream that goes on. */
export type ReadWebBody =
  | { readonly complete: true; readonly bytes: Uint8Array }
  | { readonly complete: false; readonly stream: ReadableStream<Uint8Array> }

/** Reads a stream until it ends or has given more than `maxBytes`. Rejects when the stream fails. */
export async function readWebBody(source: ReadableStream, maxBytes: number): Promise<ReadWebBody> {
  const reader = source.getReader() as ReadableStreamDefaultReader<Uint8Array | string>
  const chunks: Uint8Array[] = []
  let size = 0
  for (;;) {
    const next = await reader.read()
    if (next.done) return { complete: true, bytes: Buffer.concat(chunks) }
    const chunk = bytesOf(next.value)
    chunks.push(chunk)
    size += chunk.byteLength
    if (size > maxBytes) return { complete: false, stream: continued(chunks, reader) }
  }
}

function bytesOf(chunk: unknown): Uint8Array {
  if (chunk instanceof Uint8Array) return chunk
  // Not allowed by the standard, and sent by servers all the same.
  if (typeof chunk === 'string') return Buffer.from(chunk)
  throw new TypeError('The body must be a stream of bytes')
}

function continued(
  read: Uint8Array[],
  rest: ReadableStreamDefaultReader<Uint8Array | string>,
): ReadableStream<Uint8Array> {
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const held = read.shift()
        if (held !== undefined) return controller.enqueue(held)
        const next = await rest.read()
        if (next.done) controller.close()
        else controller.enqueue(bytesOf(next.value))
      },
      // A client that leaves early ends the source as well.
      cancel: (reason) => rest.cancel(reason),
    },
    // Nothing is read before somebody wants it.
    { highWaterMark: 0 },
  )
}

/** A request's body: its bytes, `undefined` where there is none, `'gone'` where somebody has read it before. */
export type RequestBody = Uint8Array | undefined | 'gone'

/**
 * Reads a copy of a request's body, and leaves the request as it is: its handler can still read it.
 *
 * @throws {RequestTooLargeError} when it is longer than `maxBytes`.
 */
export async function readRequestBody(request: Request, maxBytes: number): Promise<RequestBody> {
  const { body, bodyUsed } = request
  if (bodyUsed || body?.locked) return 'gone'
  if (body === null) return undefined
  if (Number(request.headers.get('content-length')) > maxBytes) throw new RequestTooLargeError(maxBytes)
  const copy = request.clone().body
  if (copy === null) return undefined
  const read = await readWebBody(copy, maxBytes)
  if (read.complete) return read.bytes.byteLength === 0 ? undefined : read.bytes
  // This promise waits for the other copy, which nobody will read.
  read.stream.cancel().catch(() => {})
  throw new RequestTooLargeError(maxBytes)
}

/**
 * The bytes of a body that must not be gone.
 *
 * @throws {FingerprintError} when it is.
 */
export function presentBody(body: RequestBody): Uint8Array | undefined {
  if (body !== 'gone') return body
  throw new FingerprintError(
    "The request's body was read before it could be compared with its retries: let the wrapped handler come first, or choose the fields with a `fingerprint` function that knows where the body is now",
    500,
  )
}

/** A body as it is compared: JSON as a handler that asks for JSON sees it, and anything else byte for byte. */
export function comparedBody(bytes: Uint8Array | undefined, contentType: string | null): unknown {
  return bytes && asParsed(bytes, contentType, () => new TextDecoder().decode(bytes))
}
