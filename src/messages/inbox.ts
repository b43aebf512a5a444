import {
  BatchInterruptedError,
  KeyInProgressError,
  KeyInvalidError,
  MessageDeadError,
  OptionsError,
  TransactionUnsupportedError,
} from '../contract/errors.js'
import type { DeadMessage, InboxEntry, InboxTable } from '../contract/inbox.js'
import { recordId } from '../contract/key.js'
import type { ExecuteStatement, IdempotencyStore } from '../contract/store.js'
import { createKeyDerivation } from '../core/derived-keys.js'
import { createEngine } from '../core/engine.js'
import { createEvents } from '../core/events.js'
import type { TransactionClient } from '../core/operation.js'
import { createStoreCalls } from '../core/store-calls.js'
import { createUpkeep } from '../core/upkeep.js'
import type { InboxEvent, InboxListener, MessageResult } from './inbox-events.js'
import { type InboxOptions, resolveInboxOptions } from './inbox-options.js'
import { leased } from './leased.js'
import type {
  BatchMessage,
  Delivery,
  Ended,
  EnlistedTransaction,
  LeasedBatchContext,
  LeasedContext,
  Message,
  MessageProcessing,
  TransactionalBatchContext,
  TransactionalContext,
} from './message-processing.js'
import { transactional } from './transactional.js'

export type { DeadMessage, LogPosition } from '../contract/inbox.js'
export { type HighWatermark, highWatermark } from './high-watermark.js'
export type {
  InboxEvent,
  InboxListener,
  MessageEvent,
  MessageResult,
  MessageSubject,
} from './inbox-events.js'
export type { DyingMessage, InboxOptions, OnDead, OnUnknownMessage, UnknownMessage } from './inbox-options.js'
export {
  type BrokerMessage,
  type KeyKind,
  type KeyOption,
  type MessageKey,
  messageKey,
} from './message-key.js'
export type {
  Attempt,
  BatchMessage,
  EnlistedTransaction,
  LeasedBatchContext,
  LeasedContext,
  Message,
  TransactionalBatchContext,
  TransactionalContext,
} from './message-processing.js'

/** Names a message to the operators' steps. */
export interface MessageName {
  /** @default '' */
  readonly source?: string
  readonly key: string
}

/** Applies each message of a consumer once. `Context` and `BatchContext` are what handlers get. */
export interface Inbox<Context = LeasedContext, BatchContext = LeasedBatchContext> {
  readonly consumer: string
  /** What becomes of the messages behind a dead one. Adapters obey it. */
  readonly order: 'skip' | 'block'
  /** After so many attempts a message is dead. Adapters make sure that their broker does not give up before. */
  readonly maxAttempts: number
  /** How long a handler may run, in milliseconds. */
  readonly maxRunMs: number
  /** How long adapters wait after a first failed attempt, in milliseconds. */
  readonly attemptDelayMs: number
  /** Whether messages need their position. */
  readonly usesWatermark: boolean

  /**
   * Runs `handler` unless the message was processed before, and answers what became of the message. Whoever gets
   * `in-progress`, or an error, must not acknowledge it: the broker has to deliver it again.
   *
   * @throws what `handler` throws, once that is counted as an attempt; after the last attempt the answer is `dead`.
   * @throws {KeyInvalidError} when key or source are empty, too long, or cannot be kept.
   * @throws {LogReplacedError} with `highWatermark()`, when the message is not of the log that was read before.
   * @throws {StoreUnavailableError} when the store failed or did not answer in time: nothing happened.
   * @throws {CommitUndecidedError} when nobody can say whether it was committed. The next delivery finds out.
   */
  processOnce(message: Message, handler: (context: Context) => Promise<void> | void): Promise<MessageResult>

  /**
   * Processes several messages, in one transaction where the store has them. `handler` gets those that are new, in their
   * order. When it fails they are processed one by one: it gets a list of one then, and what fails alone is one message.
   *
   * Resolves when every message may be acknowledged, with a result for each.
   *
   * @throws {BatchInterruptedError} when not every message may be. Its `results` are those of the first that may, its
   *   `cause` is what the next one failed with, or a `KeyInProgressError`, or with `order: 'block'` a `MessageDeadError`.
   */
  processBatch<M extends Message>(
    messages: readonly M[],
    handler: (messages: readonly BatchMessage<M>[], context: BatchContext) => Promise<void> | void,
  ): Promise<readonly MessageResult[]>

  /**
   * Gives a message up without an attempt: it is dead, and `onDead` is told. For one that cannot even be read.
   *
   * @throws what `onDead` failed with is an event; `error` is thrown then, and the message is not dead.
   */
  giveUp(message: Message, error: unknown): Promise<MessageResult>

  /**
   * Reports a message that nothing names, and that is therefore left to its broker. Nothing is kept of it.
   *
   * @param source what it came from.
   */
  refuse(source: string, error: unknown): void

  /** The dead messages, of one source or of all, in no certain order. */
  listDead(query?: { readonly source?: string }): AsyncIterable<DeadMessage>

  /**
   * Lets a dead message be processed when it is delivered again, with all of its attempts. Delivering it is up to you: by
   * what `onDead` has put aside, or by the broker's log.
   *
   * @returns `false` when it is not dead.
   */
  redrive(message: MessageName): Promise<boolean>

  /**
   * Forgets a message, or with `{ source }` alone everything of a source and its high watermarks, whatever became of it:
   * **what is delivered again then is processed again**. For a replay that is meant.
   *
   * @returns how many entries went.
   */
  reset(what: MessageName | { readonly source: string }): Promise<number>

  /** Subscribes to everything the inbox reports. @returns a function that ends the subscription. */
  on(listener: InboxListener): () => void

  /**
   * Checks the store, once. The first message does otherwise.
   *
   * @throws {StoreUnfitError} when the store must not be used as it is.
   * @throws {StoreUnavailableError} when it cannot be reached.
   */
  check(): Promise<void>

  /** Ends upkeep. The store stays open. */
  close(): Promise<void>
}

/** An inbox whose store commits the entry of a message together with its effect. */
export interface TransactionalInbox<Client = TransactionClient>
  extends Inbox<TransactionalContext<Client>, TransactionalBatchContext<Client>> {
  /**
   * Enters a message in a transaction that you have begun: call it first, and apply the effect only when it answers
   * `fresh`. The commit is yours. Attempts are not counted.
   *
   * @param tx a client with `query`, or a function that runs one statement in your transaction and gives its rows.
   * @throws {KeyInProgressError} when somebody else is at it: roll back.
   * @throws {TransactionMisuseError} when `tx` runs its statements each for itself.
   * @throws {LogReplacedError} as `processOnce` does.
   */
  enlist(tx: EnlistedTransaction, message: Message): Promise<'fresh' | 'duplicate' | 'dead'>
}

/** A store that keeps messages in its transactions, such as `postgresStore(pool)`. */
export interface TransactionalStore extends IdempotencyStore {
  readonly inbox: InboxTable
}

/**
 * Makes the inbox of a consumer: at-least-once delivery comes in, one effect comes out.
 *
 * With a store that has transactions, a message is entered in the same transaction as its effect, and the row that stands
 * for it decides. With leases, a process that dies between the effect of a message and its completion leaves a message
 * whose outcome nobody knows: see `onUnknown`.
 *
 * @throws {OptionsError} naming the option that is wrong.
 */
export function createInbox<Client = TransactionClient>(
  options: InboxOptions<Client, TransactionalStore> & { readonly mode?: 'transaction' },
): TransactionalInbox<Client>
export function createInbox(options: InboxOptions): Inbox
export function createInbox(options: InboxOptions<never>): TransactionalInbox<unknown> {
  const settings = resolveInboxOptions(options)
  const { store, consumer, storeTimeoutMs, sweepMs, order, usesWatermark } = settings
  const { maxAttempts, maxRunMs, attemptDelayMs } = settings
  const events = createEvents<InboxEvent>()
  const call = createStoreCalls({ events, storeTimeoutMs })
  const deriveKey = createKeyDerivation(settings.secret)
  const namespace = `messages:${settings.namespace}`
  const { processing, upkeep } = settings.mode === 'lease' ? byLeases() : byTransactions(store.inbox)

  function byTransactions(table: InboxTable | undefined) {
    if (table === undefined) throw new OptionsError('createInbox: the store has no transactions')
    const processing = transactional<unknown>({ table, settings, call, events, deriveKey, named })
    return { processing, upkeep: createUpkeep({ store, call, events, sweepMs, storeTimeoutMs }) }
  }

  function byLeases() {
    const { secret } = settings
    const engine = createEngine({ store, namespace, storeTimeoutMs, replayCache: false, sweepMs, secret })
    engine.on(events.emit)
    const processing = leased({ engine, store, settings, namespace, call, events, deriveKey, named })
    return { processing: processing as MessageProcessing<unknown>, upkeep: engine }
  }

  function entryOf({ source = '', key, fingerprint, position }: Omit<Message, 'signal'>): InboxEntry {
    assertName('key', key)
    if (source !== '') assertName('source', source)
    if (fingerprint !== undefined) assertName('fingerprint', fingerprint)
    if (usesWatermark && position === undefined)
      throw new KeyInvalidError('With highWatermark(), a message needs its position')
    return named({ source, key, fingerprint, position: usesWatermark ? position : undefined })
  }

  function named(name: Omit<InboxEntry, 'id' | 'consumer'>): InboxEntry {
    const key = JSON.stringify([name.source, name.key])
    return { ...name, id: recordId({ namespace, scope: consumer, key }), consumer }
  }

  function deliveryOf(message: Message): Delivery {
    const { deliveryCount = 1, signal, payload, keyKind = 'custom' } = message
    const entry = entryOf(message)
    const { source, key } = entry
    const redelivered = deliveryCount > 1
    const mayHaveCrashed = message.mayHaveCrashed ?? redelivered
    return {
      entry,
      subject: { consumer, source, key, keyKind },
      redelivered,
      mayHaveCrashed,
      signal,
      payload,
    }
  }

  /** Processes one delivery, and reports how it ended. */
  async function reported(
    delivery: Delivery,
    process: (onAttempt: (attempt: number) => void) => Promise<Ended>,
  ): Promise<MessageResult> {
    const { subject: message, redelivered } = delivery
    const startedAt = performance.now()
    let reached = 0
    try {
      await upkeep.check()
      const { result, attempt } = await process((attempt) => {
        reached = attempt
      })
      const durationMs = performance.now() - startedAt
      events.emit({ type: 'message', message, result, attempt, redelivered, durationMs })
      return result
    } catch (error) {
      const durationMs = performance.now() - startedAt
      events.emit({ type: 'message-failed', message, error, attempt: reached, redelivered, durationMs })
      throw error
    }
  }

  function processOnce(
    message: Message,
    handler: (context: TransactionalContext<unknown>) => Promise<void> | void,
  ): Promise<MessageResult> {
    return settled(() => {
      return deliver(deliveryOf(message), handler)
    })
  }

  function deliver(
    delivery: Delivery,
    handler: (context: TransactionalContext<unknown>) => Promise<void> | void,
  ): Promise<MessageResult> {
    return reported(delivery, (onAttempt) =>
      processing.once(delivery, async (context) => {
        onAttempt(context.attempt)
        await handler(context)
      }),
    )
  }

  async function processBatch<M extends Message>(
    messages: readonly M[],
    handler: (
      messages: readonly BatchMessage<M>[],
      context: TransactionalBatchContext<unknown>,
    ) => Promise<void> | void,
  ): Promise<readonly MessageResult[]> {
    const deliveries = messages.map(deliveryOf)
    if (deliveries.length === 0) return []
    const messageOf = new Map(deliveries.map((delivery, place) => [delivery, messages[place] as M]))
    const startedAt = performance.now()
    if (deliveries.length > 1) {
      const ended = await together(deliveries, (attempts, context) =>
        handler(
          attempts.map(({ delivery, attempt }) => ({ message: messageOf.get(delivery) as M, ...attempt })),
          context,
        ),
      )
      const durationMs = performance.now() - startedAt
      if (ended !== undefined) {
        for (const [place, { result, attempt }] of ended.entries()) {
          const { subject: message, redelivered } = deliveries[place] as Delivery
          events.emit({ type: 'message', message, result, attempt, redelivered, durationMs })
        }
        return ended.map(({ result }) => result)
      }
    }
    return oneByOne(deliveries, (delivery, { tx, signal, ...attempt }) =>
      handler([{ message: messageOf.get(delivery) as M, ...attempt }], { tx, signal }),
    )
  }

  async function together(
    deliveries: readonly Delivery[],
    handler: (
      ...args: Parameters<Parameters<MessageProcessing<unknown>['together']>[1]>
    ) => Promise<void> | void,
  ): ReturnType<MessageProcessing<unknown>['together']> {
    try {
      await upkeep.check()
      return await processing.together(deliveries, async (...args) => handler(...args))
    } catch (cause) {
      throw new BatchInterruptedError([], { cause })
    }
  }

  async function oneByOne(
    deliveries: readonly Delivery[],
    handler: (delivery: Delivery, context: TransactionalContext<unknown>) => Promise<void> | void,
  ): Promise<readonly MessageResult[]> {
    const results: MessageResult[] = []
    for (const delivery of deliveries) {
      const { source, key } = delivery.entry
      let result: MessageResult
      try {
        result = await deliver(delivery, (context) => handler(delivery, context))
      } catch (cause) {
        throw new BatchInterruptedError(results, { cause })
      }
      if (result === 'in-progress')
        throw new BatchInterruptedError(results, { cause: new KeyInProgressError(key) })
      if (result === 'dead' && order === 'block')
        throw new BatchInterruptedError(results, { cause: new MessageDeadError(source, key) })
      results.push(result)
    }
    return results
  }

  async function enlist(tx: EnlistedTransaction, message: Message): Promise<'fresh' | 'duplicate' | 'dead'> {
    if (processing.enlist === undefined) throw new TransactionUnsupportedError('enlist()')
    const execute: ExecuteStatement = typeof tx === 'function' ? tx : (text, values) => tx.query(text, values)
    const delivery = deliveryOf(message)
    await upkeep.check()
    return processing.enlist(execute, delivery)
  }

  return {
    consumer,
    order,
    maxAttempts,
    maxRunMs,
    attemptDelayMs,
    usesWatermark,
    processOnce,
    processBatch,
    enlist,
    giveUp: (message, error) =>
      settled(() => {
        const delivery = deliveryOf(message)
        return reported(delivery, () => processing.giveUp(delivery, error))
      }),
    refuse: (source, error) => events.emit({ type: 'message-refused', consumer, source, error }),
    listDead: ({ source } = {}) => processing.dead(source),
    async redrive(name) {
      const { entry, subject: message } = deliveryOf(withoutPosition(name))
      const isRedriven = await processing.redrive(entry)
      if (isRedriven) events.emit({ type: 'message-redriven', message })
      return isRedriven
    },
    async reset(what) {
      if (!('key' in what)) return processing.forgetSource(what.source)
      return (await processing.forget(deliveryOf(withoutPosition(what)).entry)) ? 1 : 0
    },
    on: events.on,
    check: upkeep.check,
    close: upkeep.close,
  }

  /** An operator names a message without its position, and its id is the same. */
  function withoutPosition({ source = '', key }: MessageName): Message {
    return { source, key, position: { topic: source, partition: 0, offset: 0n, timestampMs: 0 } }
  }
}

const LONGEST_NAME = 1024

function assertName(what: string, name: unknown): void {
  const isOne = typeof name === 'string' && name !== '' && name.length <= LONGEST_NAME
  if (isOne && name.isWellFormed() && !name.includes('\0')) return
  throw new KeyInvalidError(
    `The ${what} of a message must be well-formed text of 1 to ${LONGEST_NAME} characters without NUL`,
  )
}

/** Lets what is thrown before the first step be a rejection like any other. */
async function settled<T>(step: () => Promise<T>): Promise<T> {
  return step()
}
