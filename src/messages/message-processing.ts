import type { DeadMessage, InboxEntry, LogPosition } from '../contract/inbox.js'
import type { ExecuteStatement, StatementResult, StatementValue } from '../contract/store.js'
import type { MessageResult, MessageSubject } from './inbox-events.js'
import type { KeyKind } from './message-key.js'

/** A delivery of a message. */
export interface Message<Payload = unknown> {
  /** The same for every delivery of the message, and for no other message of its source: 1 to 1,024 characters. */
  readonly key: string
  /**
   * Who gave the key: a topic, a stream, the source of an event. The same key of two sources is two messages.
   *
   * @default ''
   */
  readonly source?: string
  /** What the key stands for, such as a hash of the content. The same key with another one is given up, and not skipped. */
  readonly fingerprint?: string
  /** How often the broker has delivered it, where the broker says so: 1 for the first time. */
  readonly deliveryCount?: number
  /**
   * Whether an earlier delivery may have ended with its process. Then the attempt is noted before the handler begins, so
   * that a message that kills its process is given up as well. It costs a round trip.
   *
   * @default whether `deliveryCount` is above 1
   */
  readonly mayHaveCrashed?: boolean
  /** Aborts when the delivery is taken back: what was done is rolled back, and is no attempt of the message. */
  readonly signal?: AbortSignal
  /** Where the message is in its log. Needed with `highWatermark()`. */
  readonly position?: LogPosition
  /** Where the key was found, for events. */
  readonly keyKind?: KeyKind
  /** Is handed on to `onDead`, and never kept. */
  readonly payload?: Payload
}

/** What a handler is told about a message. */
export interface Attempt {
  /** Which attempt of the message this is: 1, 2, ... */
  readonly attempt: number
  /** Whether it may have been delivered before. */
  readonly redelivered: boolean
  /**
   * A key for a downstream call: the same in every attempt of the message, another for every label, unguessable from
   * outside. 43 characters of base64url, as an `Idempotency-Key`. Needs the option `secret`.
   */
  deriveKey(label: string): string
}

/** What a handler gets beside its message, where the store has no transactions. */
export interface LeasedContext extends Attempt {
  /** Aborts when the delivery is taken back, when the claim is lost, and when `maxRun` has passed. */
  readonly signal: AbortSignal
}

/** What a handler gets beside its message, where effect and entry are one commit. */
export interface TransactionalContext<Client> extends LeasedContext {
  /** The transaction: for a `pg` Pool a client with `query`. What is sent elsewhere is not undone when the attempt fails. */
  readonly tx: Client
}

/** A message of a batch. */
export interface BatchMessage<M extends Message> extends Attempt {
  readonly message: M
}

/** What the handler of a batch gets beside its messages. */
export interface LeasedBatchContext {
  readonly signal: AbortSignal
}

/** What the handler of a batch gets beside its messages, where effects and entries are one commit. */
export interface TransactionalBatchContext<Client> extends LeasedBatchContext {
  readonly tx: Client
}

/** What the application's statements may be sent through in `enlist`: a client with `query`, or a function. */
export type EnlistedTransaction =
  | { query(text: string, values: StatementValue[]): PromiseLike<StatementResult> }
  | ((text: string, values: StatementValue[], strings: TemplateStringsArray) => PromiseLike<StatementResult>)

/** A delivery, checked and named. */
export interface Delivery<Payload = unknown> {
  readonly entry: InboxEntry
  readonly subject: MessageSubject
  readonly redelivered: boolean
  readonly mayHaveCrashed: boolean
  readonly signal: AbortSignal | undefined
  readonly payload: Payload | undefined
}

/** The end of a delivery: its result, and the number of the attempt that led to it, 0 where the handler did not run. */
export interface Ended {
  readonly result: MessageResult
  readonly attempt: number
}

/** How a message is processed once: with a transaction, or with a lease. */
export interface MessageProcessing<Client> {
  once(delivery: Delivery, handler: (context: TransactionalContext<Client>) => Promise<void>): Promise<Ended>

  /** Several at once. `undefined` when they must be processed one by one. */
  together(
    deliveries: readonly Delivery[],
    handler: (
      attempts: readonly { readonly delivery: Delivery; readonly attempt: Attempt }[],
      context: TransactionalBatchContext<Client>,
    ) => Promise<void>,
  ): Promise<readonly Ended[] | undefined>

  /** Enters a message in a transaction of the application. Not where there are none. */
  enlist?(execute: ExecuteStatement, delivery: Delivery): Promise<'fresh' | 'duplicate' | 'dead'>

  /** Gives a message up without an attempt. */
  giveUp(delivery: Delivery, error: unknown): Promise<Ended>
  dead(source: string | undefined): AsyncIterable<DeadMessage>
  redrive(entry: InboxEntry): Promise<boolean>
  forget(entry: InboxEntry): Promise<boolean>
  forgetSource(source: string): Promise<number>
}

/** What an error says, for operators. */
export function errorText(error: unknown): string {
  const text = error instanceof Error ? `${error.name}: ${error.message}` : String(error)
  return text.replaceAll('\0', '').slice(0, LONGEST_ERROR)
}

const LONGEST_ERROR = 2000
