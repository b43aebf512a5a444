import type { CapturedAnswer } from '../http/exchange.js'
import { type GivenAnswer, keptOf } from '../http/given-answer.js'
import type { HttpAnswer } from '../http/http-answer.js'
import type { AnswerHeaders } from '../http/kept-headers.js'
import { outcomeOfResponse, type PlainResponse } from '../http/response-outcome.js'
import { readWebBody } from './web-body.js'

/** A response after it was read, and what to send in its place. */
export interface CapturedResponse {
  readonly answer: CapturedAnswer
  readonly response: Response
}

/** Whether a value is a response, of this realm or of another, or one that a server has put in the place of the usual. */
export function isResponse(value: unknown): value is Response {
  return Object.prototype.toString.call(value) === '[object Response]'
}

/**
 * Reads a response up to `maxBodyBytes`. One that grows longer goes on as it is written, and so does a stream of events:
 * it is meant to be read while it grows. Rejects when its stream fails, and then that failure is the answer.
 * Without a limit nothing is read.
 */
export async function captureResponse(
  response: Response,
  maxBodyBytes: number | undefined,
): Promise<CapturedResponse> {
  const { status, statusText, headers, body, bodyUsed } = response
  const head = { status, headers: answerHeaders(headers), isText: false }
  const isOrdinary = status >= 200 && !bodyUsed && !body?.locked
  // An upgrade, an error, or a body that somebody else reads: whatever the server makes of it.
  if (!isOrdinary || isEvents(headers) || maxBodyBytes === undefined)
    return { answer: { ...head, body: 'too-long' }, response }
  if (body === null) return { answer: { ...head, body: undefined }, response }
  const read = await readWebBody(body, maxBodyBytes)
  const shape = { status, statusText, headers }
  if (!read.complete)
    return { answer: { ...head, body: 'too-long' }, response: new Response(read.stream, shape) }
  const { bytes } = read
  return { answer: { ...head, body: bytes }, response: new Response(bytes, shape) }
}

/** What the application wrote down itself, as it would be sent. */
export function capturePlain(response: PlainResponse, maxBodyBytes: number): CapturedAnswer {
  const { status, headers, body, isText } = keptOf(outcomeOfResponse(response)) as GivenAnswer
  return {
    status,
    headers: Object.fromEntries(headers),
    body: body !== undefined && body.byteLength > maxBodyBytes ? 'too-long' : body,
    isText,
  }
}

/** An answer as a response. `over` is what stays of another response's headers, where the answer says nothing of them. */
export function responseOf({ status, headers, body }: HttpAnswer, over: AnswerHeaders = {}): Response {
  const named = new Map<string, AnswerHeaders[string]>(Object.entries(over))
  // It is the length of the other response's body.
  named.delete('content-length')
  for (const [name, value] of headers) named.set(name.toLowerCase(), value)
  const list = new Headers()
  for (const [name, value] of named)
    for (const one of [value].flat()) if (one !== undefined) list.append(name, String(one))
  const isEmpty = body === undefined || NULL_BODY_STATUSES.has(status)
  return new Response(isEmpty ? null : body, { status, headers: list })
}

/** Ends what a response still reads from, when nobody will. */
export function discard({ body }: Response): void {
  // A body that somebody else reads is theirs, and a source that fails to end is nobody's any more.
  if (body !== null && !body.locked) body.cancel().catch(() => {})
}

const NULL_BODY_STATUSES = new Set([204, 205, 304])

function isEvents(headers: Headers): boolean {
  return headers.get('content-type')?.startsWith('text/event-stream') === true
}

function answerHeaders(headers: Headers): AnswerHeaders {
  const cookies = headers.getSetCookie()
  return { ...Object.fromEntries(headers), ...(cookies.length > 0 && { 'set-cookie': cookies }) }
}
