import { promisify } from 'node:util'
import { brotliDecompress, gunzip, inflate } from 'node:zlib'
import type { GivenAnswer } from './given-answer.js'

/** What a decoded replay may take of the memory: a few kept bytes can stand for a thousand times as many. */
const LIMIT = { maxOutputLength: 32 * 1024 * 1024 }

const DECODERS: Readonly<Record<string, (bytes: Uint8Array, limit: typeof LIMIT) => Promise<Buffer>>> = {
  gzip: promisify(gunzip),
  'x-gzip': promisify(gunzip),
  deflate: promisify(inflate),
  br: promisify(brotliDecompress),
}

/**
 * A replay that its client can read: one that was kept in a content coding which this client does not accept is decoded.
 * An answer is kept so when it was compressed by the handler, or by what comes between it and us.
 */
export function readableBy(
  answer: GivenAnswer,
  acceptEncoding: string | undefined,
): GivenAnswer | Promise<GivenAnswer> {
  if (!answer.replayed || answer.body === undefined) return answer
  const coding = answer.headers.find(([name]) => name === 'content-encoding')?.[1]
  if (typeof coding !== 'string' || accepts(acceptEncoding ?? '', coding)) return answer
  const decode = DECODERS[coding.toLowerCase()]
  if (decode === undefined) return answer
  const headers = answer.headers.filter(([name]) => name !== 'content-encoding')
  return decode(answer.body, LIMIT).then(
    (body) => ({ ...answer, headers, body }),
    // It is not what it says it is, or too long. The first client got it too.
    () => answer,
  )
}

/** RFC 9110, section 12.5.3, but for a client that says nothing: it may have no idea of codings. */
function accepts(acceptEncoding: string, coding: string): boolean {
  const weights = new Map(
    acceptEncoding.split(',').map((part) => {
      const [name = '', ...parameters] = part.split(';').map((one) => one.trim().toLowerCase())
      const q = parameters.find((one) => one.startsWith('q='))
      return [name, q === undefined ? 1 : Number(q.slice(2))]
    }),
  )
  return (weights.get(coding.toLowerCase()) ?? weights.get('*') ?? 0) > 0
}
