import type { IdempotencyEvent } from '../core/events.js'
import type { KeyKind } from './message-key.js'

/** What became of a message. Only `in-progress` must not be acknowledged. */
export type MessageResult =
  /** Its effect was applied now. */
  | 'processed'
  /** Its effect was applied before. */
  | 'duplicate'
  /** Somebody else is at it, and has not ended. */
  | 'in-progress'
  /** It was given up, now or before. */
  | 'dead'

/** Which message an event is about. */
export interface MessageSubject {
  readonly consumer: string
  readonly source: string
  /** Treat it as personal data. */
  readonly key: string
  /** Where the key was found. */
  readonly keyKind: KeyKind
}

interface About {
  readonly message: MessageSubject
}

/** What an inbox reports of its messages, each step once. */
export type MessageEvent =
  /** A delivery ended with a result. `attempt` is 0 where the handler did not run. */
  | (About & {
      readonly type: 'message'
      readonly result: MessageResult
      readonly attempt: number
      readonly redelivered: boolean
      readonly durationMs: number
    })
  /** A delivery ended with an error. `attempt` is 0 where the handler did not run. */
  | (About & {
      readonly type: 'message-failed'
      readonly error: unknown
      readonly attempt: number
      readonly redelivered: boolean
      readonly durationMs: number
    })
  /** A message was given up. */
  | (About & { readonly type: 'message-dead'; readonly error: unknown; readonly attempts: number })
  /** `onDead` failed: the message is not dead, and will be tried again. */
  | (About & { readonly type: 'on-dead-failed'; readonly error: unknown })
  /** An attempt failed, and the store could not be told: it is not counted. */
  | (About & { readonly type: 'attempt-not-noted'; readonly error: unknown })
  /** A message was left to its broker, since nothing names it: it has no key that could be kept, and no place. */
  | {
      readonly type: 'message-refused'
      readonly consumer: string
      /** What it came from. */
      readonly source: string
      readonly error: unknown
    }
  /** A dead message may be processed again, because somebody has decided so. */
  | (About & { readonly type: 'message-redriven' })

/** What an inbox reports: its messages, and the steps of its store. */
export type InboxEvent = MessageEvent | IdempotencyEvent

/** Receives every event. It must not throw: what it throws becomes a process warning and changes nothing. */
export type InboxListener = (event: InboxEvent) => void
