import { Readable } from 'node:stream'
import type { ReadableStream } from 'node:stream/web'
import type { FastifyReply } from 'fastify'
import type { CapturedAnswer } from '../http/exchange.js'
import { readBody } from '../http/read-body.js'

/** A payload after it was read, and what to send in its place. */
export interface CapturedPayload {
  /** `'not-ours'` for what Fastify itself refuses: its error is the answer, and comes by again. */
  readonly body: CapturedAnswer['body'] | 'not-ours'
  readonly isText: boolean
  readonly payload: unknown
}

/**
 * Reads what Fastify is about to send: text, bytes, a stream, a web stream or a `Response`, up to `maxBodyBytes`. A
 * promise only where there is something to wait for. It rejects when a stream fails, and then that failure is the answer.
 */
export function capturePayload(
  reply: FastifyReply,
  payload: unknown,
  maxBodyBytes: number,
): CapturedPayload | Promise<CapturedPayload> {
  const { statusCode } = reply
  if (payload === undefined || payload === null) return { body: undefined, isText: false, payload }
  if (statusCode === 204 || statusCode < 200) {
    // Fastify drops the body, and the headers that describe it (RFC 9110, section 8.6).
    reply.removeHeader('content-type')
    reply.removeHeader('content-length')
    return { body: undefined, isText: false, payload }
  }
  if (typeof payload === 'string') return whole(Buffer.from(payload), true, payload, maxBodyBytes)
  if (payload instanceof Uint8Array) return whole(payload, false, payload, maxBodyBytes)
  if (isResponse(payload)) {
    if (payload.bodyUsed) return { body: 'not-ours', isText: false, payload }
    reply.code(payload.status)
    for (const [name, value] of payload.headers) reply.header(name, value)
    return capturePayload(reply, payload.body, maxBodyBytes)
  }
  const stream = asReadable(payload)
  if (stream === undefined) return { body: 'not-ours', isText: false, payload }
  return captureStream(stream, maxBodyBytes)
}

function whole(bytes: Uint8Array, isText: boolean, payload: unknown, maxBodyBytes: number): CapturedPayload {
  return { body: bytes.byteLength > maxBodyBytes ? 'too-long' : bytes, isText, payload }
}

async function captureStream(stream: Readable, maxBodyBytes: number): Promise<CapturedPayload> {
  const read = await readBody(stream, maxBodyBytes)
  if (!read.complete) return { body: 'too-long', isText: false, payload: read.stream }
  return { body: read.bytes, isText: false, payload: read.bytes }
}

function isResponse(payload: unknown): payload is Response {
  return Object.prototype.toString.call(payload) === '[object Response]'
}

function asReadable(payload: unknown): Readable | undefined {
  if (typeof payload !== 'object' || payload === null) return undefined
  if ('getReader' in payload) return Readable.fromWeb(payload as ReadableStream)
  if (Symbol.asyncIterator in payload) return payload as Readable
  // A stream of the oldest kind, with `pipe` and events only.
  return 'pipe' in payload ? new Readable().wrap(payload as NodeJS.ReadableStream) : undefined
}
