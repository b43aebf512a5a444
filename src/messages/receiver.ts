import { z } from 'zod'
import { BatchInterruptedError, isIdempotencyError } from '../contract/errors.js'
import type { LogPosition } from '../contract/inbox.js'
import { fn } from '../core/parse-options.js'
import type { Inbox } from './inbox.js'
import type { MessageResult } from './inbox-events.js'
import { type BrokerMessage, type KeyOption, messageKey } from './message-key.js'
import type { Attempt, Message } from './message-processing.js'

/** How an adapter reads messages. */
export interface ReceiverOptions<Raw> {
  /**
   * Where the key of a message is found.
   *
   * @default 'auto'
   */
  readonly key?: KeyOption<Raw>
  /**
   * What the key of a message stands for. The same key with another fingerprint is given up, and not skipped.
   *
   * @default undefined, which checks nothing but the key
   */
  readonly fingerprint?: (message: Raw) => string
}

/** The same options, for the schema of each adapter. */
export const receiverShape = {
  key: z
    .custom<KeyOption<never>>(
      (value) => value === 'auto' || value === 'require' || typeof value === 'function',
      `must be 'auto', 'require' or a function`,
    )
    .optional(),
  fingerprint: fn<(message: never) => string>('a function').optional(),
}

/** A message as an adapter hands it in. */
export interface Incoming<Raw> {
  /** The message as the broker's client gave it: what handlers and `onDead` get. */
  readonly raw: Raw
  readonly broker: BrokerMessage
  readonly position?: LogPosition
  readonly deliveryCount?: number
  readonly mayHaveCrashed?: boolean
  readonly signal?: AbortSignal
}

/** What an adapter does with a message now. */
export type Disposition =
  /** It has ended: acknowledge it. */
  | { readonly type: 'acknowledge'; readonly result: Exclude<MessageResult, 'in-progress'> }
  /** It has not: let it come again, not before `delayMs` have passed. `error` is what it failed with, where it did. */
  | { readonly type: 'retry'; readonly delayMs: number; readonly error: unknown }
  /** It has no key, and no place that could stand for one: leave it to the broker. The inbox has reported it. */
  | { readonly type: 'refuse' }

/** Reads the messages of a broker into an inbox, and says what to do with them. */
export interface Receiver<Raw, Context, BatchContext> {
  /** Processes one message. It rejects only for what no later delivery would mend. */
  receive(
    incoming: Incoming<Raw>,
    handler: (raw: Raw, context: Context) => Promise<void> | void,
  ): Promise<Disposition>

  /**
   * Processes the first of several messages together: as many as have a key, or one that has none. `done` says how many
   * of them may be acknowledged, which may be fewer than there are. With `retry`, the next one has to come again.
   */
  receiveBatch(
    incoming: readonly Incoming<Raw>[],
    handler: BatchHandler<Raw, BatchContext>,
  ): Promise<ReceivedBatch>
}

/** What is done with the new ones of a batch, in their order. */
export type BatchHandler<Raw, BatchContext> = (
  messages: readonly { readonly raw: Raw; readonly attempt: Attempt }[],
  context: BatchContext,
) => Promise<void> | void

/** What became of a batch. */
export interface ReceivedBatch {
  readonly done: number
  /** How many of those were new. */
  readonly processed: number
  readonly retry: Extract<Disposition, { readonly type: 'retry' }> | undefined
}

const LONGEST_DELAY_MS = 60_000
/** A millisecond is longer than the longest delay after fewer. */
const MOST_DOUBLINGS = 20

/** Makes the receiver of an adapter. */
export function createReceiver<Raw, Context extends Attempt, BatchContext = unknown>(
  inbox: Inbox<Context, BatchContext>,
  { key = 'auto', fingerprint }: ReceiverOptions<Raw>,
): Receiver<Raw, Context, BatchContext> {
  function messageOf(incoming: Incoming<Raw>): Message<Raw> {
    const message = named(incoming, keyOf(incoming))
    return fingerprint === undefined ? message : { ...message, fingerprint: fingerprint(incoming.raw) }
  }

  function keyOf({ raw, broker }: Incoming<Raw>): ReturnType<typeof messageKey> {
    if (typeof key !== 'function') return messageKey(broker, key === 'auto')
    const given = key(raw)
    return typeof given === 'string'
      ? { source: broker.origin, key: given, kind: 'custom' }
      : { ...given, kind: 'custom' }
  }

  function named(incoming: Incoming<Raw>, found: ReturnType<typeof messageKey>): Message<Raw> {
    const { raw, broker: _, ...delivery } = incoming
    return { ...delivery, source: found.source, key: found.key, keyKind: found.kind, payload: raw }
  }

  async function receive(
    incoming: Incoming<Raw>,
    handler: (raw: Raw, context: Context) => Promise<void> | void,
  ): Promise<Disposition> {
    let attempt = 1
    try {
      const result = await process(incoming, (context) => {
        attempt = context.attempt
        return handler(incoming.raw, context)
      })
      if (result === undefined) return { type: 'refuse' }
      if (result === 'in-progress') return { type: 'retry', delayMs: delayMs(1), error: undefined }
      if (result === 'dead' && inbox.order === 'block')
        return { type: 'retry', delayMs: delayMs(inbox.maxAttempts + 1), error: undefined }
      return { type: 'acknowledge', result }
    } catch (error) {
      // Another log is no matter of time.
      if (isIdempotencyError(error) && error.code === 'IDEMPOTENCY_LOG_REPLACED') throw error
      return { type: 'retry', delayMs: delayMs(attempt), error }
    }
  }

  async function receiveBatch(
    incoming: readonly Incoming<Raw>[],
    handler: BatchHandler<Raw, BatchContext>,
  ): Promise<ReceivedBatch> {
    const messages = namedFirst(incoming)
    if (messages.length === 0) return receiveUnnamed(incoming)
    let attempts = 1
    try {
      const results = await inbox.processBatch(messages, (fresh, context) => {
        for (const { attempt } of fresh) attempts = Math.max(attempts, attempt)
        return handler(
          fresh.map(({ message, ...attempt }) => ({ raw: message.payload as Raw, attempt })),
          context,
        )
      })
      return { done: results.length, processed: processedOf(results), retry: undefined }
    } catch (error) {
      if (!(error instanceof BatchInterruptedError)) throw error
      const results = error.results as readonly MessageResult[]
      const { cause } = error
      const code = isIdempotencyError(cause) ? cause.code : undefined
      if (code === 'IDEMPOTENCY_LOG_REPLACED') throw cause
      const isWaiting = code === 'IDEMPOTENCY_KEY_IN_PROGRESS'
      const attempt = code === 'IDEMPOTENCY_MESSAGE_DEAD' ? inbox.maxAttempts + 1 : isWaiting ? 1 : attempts
      const retry = {
        type: 'retry',
        delayMs: delayMs(attempt),
        error: isWaiting ? undefined : cause,
      } as const
      return { done: results.length, processed: processedOf(results), retry }
    }
  }

  /** Those before the first that has no key. */
  function namedFirst(incoming: readonly Incoming<Raw>[]): readonly Message<Raw>[] {
    const messages: Message<Raw>[] = []
    try {
      for (const one of incoming) messages.push(messageOf(one))
    } catch {
      // It goes alone, and what it lacks is said then.
    }
    return messages
  }

  async function receiveUnnamed([first]: readonly Incoming<Raw>[]): Promise<ReceivedBatch> {
    if (first === undefined) return { done: 0, processed: 0, retry: undefined }
    const disposition = await receive(first, () => {})
    return disposition.type === 'retry'
      ? { done: 0, processed: 0, retry: disposition }
      : { done: 1, processed: 0, retry: undefined }
  }

  /** `undefined` for a message that nothing names, and that could not be known again. */
  async function process(
    incoming: Incoming<Raw>,
    handler: (context: Context) => Promise<void> | void,
  ): Promise<MessageResult | undefined> {
    let message: Message<Raw>
    let hasBegun = false
    try {
      message = messageOf(incoming)
    } catch (error) {
      return withoutKey(incoming, error)
    }
    try {
      return await inbox.processOnce(message, (context) => {
        hasBegun = true
        return handler(context)
      })
    } catch (error) {
      const isKeyInvalid = isIdempotencyError(error) && error.code === 'IDEMPOTENCY_KEY_INVALID'
      if (!isKeyInvalid || hasBegun) throw error
      return withoutKey(incoming, error)
    }
  }

  /** No attempt would give it a key that can be kept. It is known by its place, so that it can be found and redriven. */
  async function withoutKey(incoming: Incoming<Raw>, error: unknown): Promise<MessageResult | undefined> {
    const { origin, position } = incoming.broker
    if (position !== undefined)
      return inbox.giveUp(named(incoming, { source: origin, key: position, kind: 'position' }), error)
    inbox.refuse(origin, error)
    return undefined
  }

  /** Exponential, capped, with full jitter. */
  function delayMs(attempt: number): number {
    const doublings = Math.min(attempt - 1, MOST_DOUBLINGS)
    return Math.random() * Math.min(LONGEST_DELAY_MS, inbox.attemptDelayMs * 2 ** doublings)
  }

  return { receive, receiveBatch }
}

function processedOf(results: readonly MessageResult[]): number {
  return results.filter((result) => result === 'processed').length
}
