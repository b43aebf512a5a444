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
  return {
    result: status < 400 ? 'succeeded' : 'failed',
    head: textOf({ status, headers, body: kind, traceparent }),
    body: body === 'not-kept' ? null : (body ?? NO_BYTES),
  }
}

const NO_BYTES = new Uint8Array(0)

/** The last head that was written, and the last that was read. Answers of one route differ in their bodies, mostly. */
let written: { readonly head: Head; readonly text: string } | undefined
let read: { readonly head: Head; readonly text: string } | undefined

function textOf(head: Head): string {
  if (written === undefined || !isSameHead(written.head, head)) written = { head, text: JSON.stringify(head) }
  return written.text
}

function headOf({ head: text }: Outcome): Head {
  if (read?.text === text) return read.head
  const head = JSON.parse(text) as Head
  // A list may be changed by whoever sends it, and then another answer would have it changed.
  if (head.headers.every(([, value]) => typeof value === 'string')) read = { head, text }
  return head
}

function isSameHead(one: Head, other: Head): boolean {
  return (
    one.status === other.status &&
    one.body === other.body &&
    one.traceparent === other.traceparent &&
    (one.headers === other.headers || areSameHeaders(one.headers, other.headers))
  )
}

function areSameHeaders(one: HeaderList, other: HeaderList): boolean {
  return (
    one.length === other.length &&
    one.every(([name, value], index) => {
      const [otherName, otherValue] = other[index] ?? []
      // Several values are compared by being written anew: lists are rare.
      return name === otherName && typeof value === 'string' && value === otherValue
    })
  )
}

/** An answer as it was kept, or the status alone where its body was not. */
export function answerOf(
  outcome: Outcome,
): { readonly kept: true; readonly answer: HttpAnswer } | { readonly kept: false; readonly status: number } {
  const { status, headers, body } = headOf(outcome)
  if (outcome.body === null) return { kept: false, status }
  return {
    kept: true,
    answer: { status, headers, body: body === 'none' ? undefined : outcome.body, isText: body === 'text' },
  }
}

/** What an answer that was kept says of itself to subscribers. */
export function factsOf(outcome: Outcome): OutcomeFacts {
  const { status, traceparent } = headOf(outcome)
  return { status, ...(typeof traceparent === 'string' && { traceparent }) }
}
