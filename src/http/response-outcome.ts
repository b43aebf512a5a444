import type { Outcome } from '../contract/store.js'
import { outcomeOf } from './http-answer.js'

/** An answer that the application writes down itself: what `onUnknown` found out, or what `saveIn` is to keep. */
export interface PlainResponse {
  readonly status: number
  readonly headers?: Readonly<Record<string, string | readonly string[]>>
  /** Text or bytes as they are, anything else as JSON; `undefined` for an empty body. */
  readonly body?: unknown
}

/** A plain response as a store keeps it. */
export function outcomeOfResponse({ status, headers = {}, body }: PlainResponse): Outcome {
  const list = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value] as const)
  if (body === undefined) return outcomeOf({ status, headers: list, body: undefined, isText: false })
  if (body instanceof Uint8Array) return outcomeOf({ status, headers: list, body, isText: false })
  const hasType = list.some(([name]) => name === 'content-type')
  const type = typeof body === 'string' ? 'text/plain; charset=utf-8' : 'application/json; charset=utf-8'
  return outcomeOf({
    status,
    headers: hasType ? list : [...list, ['content-type', type]],
    body: Buffer.from(typeof body === 'string' ? body : JSON.stringify(body)),
    isText: true,
  })
}
