import type { Transfer } from './ledger.js'

/** What a demo request may ask to go wrong, in the header `X-Demo-Trouble`. */
export type Trouble =
  /** The bank does its work, and its reply is lost: the connection is cut instead. */
  | 'lose-reply'
  /** The bank takes its time before it moves the money. */
  | 'slow'
  /** The bank moves the money and is never heard of again. */
  | 'crash'

/** The attempt of the page that an event is about: one press of Pay may make many. */
export interface AttemptName {
  readonly press: string
  readonly attempt: number
}

/** What happened to a key, as the engine reports it. */
export interface KeyEvent {
  readonly type: 'key'
  readonly key: string
  readonly what:
    | 'claimed'
    | 'completed'
    | 'replayed'
    | 'in-progress'
    | 'mismatch'
    | 'unknown'
    | 'released'
    | 'max-run'
  readonly fence?: number
  /** The kept status. */
  readonly status?: number | undefined
  /** How long the run took, or how old the outcome was when it answered a retry. */
  readonly ms?: number
  readonly from?: 'store' | 'cache'
}

/** What the bank tells the page. */
export type DemoEvent =
  | KeyEvent
  | (AttemptName & { readonly type: 'arrived' })
  | (AttemptName & { readonly type: 'moved'; readonly transfer: Transfer })
  | (AttemptName & {
      readonly type: 'answered' | 'reply-lost'
      readonly status: number
      readonly replayed: boolean
    })
  | (AttemptName & { readonly type: 'crashed' })
  /** The accounts are not what they were. */
  | { readonly type: 'ledger' }

/** An event, and when it was, in milliseconds since the epoch. */
export type TimedEvent = DemoEvent & { readonly at: number }
