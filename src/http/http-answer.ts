import type { Outcome } from '../contract/store.js'
import type { OutcomeFacts } from '../core/events.js'
import type { HeaderList } from './kept-headers.js'

/** An answer as it goes to a client. */
export interface HttpAnswer {
  readonly status: number
  readonly headers: HeaderList
  /** `undefined` where there is no body at all, as with 204. */
  readonly body: Uint8Array | undefined
  /** Whether the body was text when it was captured: hooks that see a replay get it as they saw the first answer. */
  readonly isText: boolean
}

interface Head {
  readonly status: number
  readonly headers: HeaderList
  readonly body: 'none' | 'text' | 'bytes'
  /** The trace of the request that was answered first. Left out where nobody traces. */
  readonly traceparent?: string | undefined
}

/** An answer as a store keeps it. `'not-kept'` in place of the body makes a tombstone. */
export function outcomeOf(
  answer: Omit<HttpAnswer, 'body'> & { readonly body: Uint8Array | undefined | 'not-kept' },
  traceparent?: string,
): Outcome {
  const { status, headers, body, isText } = answer
  const kind = body === undefined ? 'none' : isText ? 'text' : 'bytes'
  const head: Head = { status, headers, body: kind, traceparent }
  return {
    result: status < 400 ? 'succeeded' : 'failed',
    head: JSON.stringify(head),
    body: body === 'not-kept' ? null : (body ?? new Uint8Array(0)),
  }
}

/** An answer as it was kept, or the status alone where its body was not. */
export function answerOf(
  outcome: Outcome,
): { readonly kept: true; readonly answer: HttpAnswer } | { readonly kept: false; readonly status: number } {
  const { status, headers, body } = JSON.parse(outcome.head) as Head
  if (outcome.body === null) return { kept: false, status }
  return {
    kept: true,
    answer: { status, headers, body: body === 'none' ? undefined : outcome.body, isText: body === 'text' },
  }
}

/** What an answer that was kept says of itself to subscribers. */
export function factsOf(outcome: Outcome): OutcomeFacts {
  const { status, traceparent } = JSON.parse(outcome.head) as Head
  return { status, ...(typeof traceparent === 'string' && { traceparent }) }
}
