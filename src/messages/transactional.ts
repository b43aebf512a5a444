import {
  CommitUndecidedError,
  isIdempotencyError,
  KeyInProgressError,
  KeyReusedError,
  LogReplacedError,
  MaxRunExceededError,
  StoreUnavailableError,
  saysRejected,
} from '../contract/errors.js'
import type {
  InboxEntry,
  InboxFinding,
  InboxStep,
  InboxTable,
  InboxTransaction,
  NotedAttempt,
} from '../contract/inbox.js'
import type { ExecuteStatement } from '../contract/store.js'
import { deadlines } from '../core/deadlines.js'
import type { KeyDerivation } from '../core/derived-keys.js'
import type { Events } from '../core/events.js'
import type { StoreCalls } from '../core/store-calls.js'
import { type Transacted, type TransactionWork, transact } from '../core/transaction.js'
import type { InboxEvent } from './inbox-events.js'
import type { InboxSettings } from './inbox-options.js'
import {
  type Attempt,
  type Delivery,
  type Ended,
  errorText,
  type MessageProcessing,
} from './message-processing.js'

/** What processing by transactions is made of. */
export interface TransactionalParts {
  readonly table: InboxTable
  readonly settings: InboxSettings
  readonly call: StoreCalls
  readonly events: Events<InboxEvent>
  readonly deriveKey: KeyDerivation
  /** Gives an entry its id. */
  readonly named: (entry: Omit<InboxEntry, 'id' | 'consumer'>) => InboxEntry
}

/** More attempts than any message has. */
const UNLIMITED = 2_147_483_647

/**
 * Processes messages in transactions: a message is entered first, then its handler runs, and both are one commit. A row
 * that was there before decides that it is a duplicate, and the same row holds back whoever is at it at the same time.
 */
export function transactional<Client>(parts: TransactionalParts): MessageProcessing<Client> {
  const { table, settings, call, events, deriveKey } = parts
  const { consumer, windowMs, lockTimeoutMs, maxAttempts } = settings

  /** Begins a transaction with `step`, and runs `work` in it. It is given up when `signal` aborts or `maxRun` has passed. */
  async function begin<T>(
    step: InboxStep,
    name: string,
    signal: AbortSignal | undefined,
    work: (transaction: InboxTransaction, signal: AbortSignal) => ReturnType<TransactionWork<T>>,
  ): Promise<Transacted<T>> {
    const giveUp = new AbortController()
    const onAbort = (): void => giveUp.abort(signal?.reason)
    signal?.throwIfAborted()
    signal?.addEventListener('abort', onAbort, { once: true })
    let lost: StoreUnavailableError | undefined
    const transaction: InboxTable['transaction'] = async (...args) => {
      try {
        return await table.transaction(...args)
      } catch (error) {
        if (error instanceof StoreUnavailableError) lost = error
        throw error
      }
    }
    const deadline = deadlines.after(settings.maxRunMs, () => giveUp.abort(new MaxRunExceededError(name)))
    try {
      return await transact<T>(
        {
          store: { transaction: (run, runSettings) => transaction(step, run, runSettings) },
          call,
          settings: {
            isolation: settings.isolation,
            lockTimeoutMs: undefined,
            attempts: settings.transactionAttempts,
          },
          giveUp,
          claim: undefined,
          // Whoever asks for the commit waits for its answer: a deadline in between would only make it undecided.
          onCommitting: () => {
            deadline.cancel()
            signal?.removeEventListener('abort', onAbort)
          },
          onRepeated: () => {},
        },
        (begun) => work(begun as InboxTransaction, giveUp.signal),
      )
    } catch (error) {
      // Whatever the work made of a connection that was lost.
      throw lost ?? error
    } finally {
      deadline.cancel()
      signal?.removeEventListener('abort', onAbort)
    }
  }

  async function once(
    delivery: Delivery,
    handler: Parameters<MessageProcessing<Client>['once']>[1],
  ): Promise<Ended> {
    const noted = delivery.mayHaveCrashed ? await noteBeforehand(delivery.entry) : 'no'
    if (noted === 'busy') return { result: 'in-progress', attempt: 0 }
    if (noted === 'too-often')
      return bury(
        delivery,
        new Error(`${maxAttempts} attempts were begun, and the last of them did not even end`),
        0,
      )
    let attempt = 0
    try {
      const ended = await begin<InboxFinding>(
        {
          type: 'enter',
          entries: [delivery.entry],
          settings: { windowMs, lockTimeoutMs, countsAttempt: noted === 'no' },
        },
        delivery.entry.key,
        delivery.signal,
        async ({ client, findings }, signal) => {
          const finding = findings[0] as InboxFinding
          if (finding.status !== 'entered') return { value: finding, outcome: 'roll-back' }
          attempt = finding.attempt
          await handler({ tx: client as Client, signal, ...attemptOf(delivery, attempt) })
          return { value: finding, outcome: undefined }
        },
      )
      if (ended.kind === 'lost') return { result: 'in-progress', attempt: 0 }
      if (ended.kind === 'committed') return { result: 'processed', attempt }
      if (ended.kind === 'undecided') throw new CommitUndecidedError({ cause: ended.error })
      return await known(delivery, ended.value)
    } catch (error) {
      return failed(delivery, error, { attempt, wasNoted: noted === 'yes' })
    }
  }

  async function together(
    deliveries: readonly Delivery[],
    handler: Parameters<MessageProcessing<Client>['together']>[1],
  ): Promise<readonly Ended[] | undefined> {
    if (deliveries.some(({ mayHaveCrashed }) => mayHaveCrashed)) return undefined
    const firsts = new Map<string, Delivery>()
    for (const delivery of deliveries)
      if (!firsts.has(delivery.entry.id)) firsts.set(delivery.entry.id, delivery)
    const distinct = [...firsts.values()]
    const signal = anySignal(deliveries)
    let ended: Transacted<readonly InboxFinding[]>
    try {
      ended = await begin(
        {
          type: 'enter',
          entries: distinct.map(({ entry }) => entry),
          settings: { windowMs, lockTimeoutMs, countsAttempt: true },
        },
        `a batch of ${distinct.length}`,
        signal,
        async ({ client, findings }, givenUp) => {
          const entered = distinct.flatMap((delivery, place) => {
            const finding = findings[place]
            if (finding?.status !== 'entered') return []
            return [{ delivery, attempt: attemptOf(delivery, finding.attempt) }]
          })
          if (entered.length === 0 || needsOrder(distinct, findings))
            return { value: findings, outcome: 'roll-back' }
          await handler(entered, { tx: client as Client, signal: givenUp })
          return { value: findings, outcome: undefined }
        },
      )
    } catch (error) {
      // Batches that meet again and again get through one by one, as does a batch with a message that fails alone.
      if (signal?.aborted !== true && (isOfTheMessage(error) || hasSqlState(error, /^40/))) return undefined
      throw error
    }
    if (ended.kind === 'undecided') throw new CommitUndecidedError({ cause: ended.error })
    // One by one they find out which of them is held, or how far they get.
    if (ended.kind === 'lost' || needsOrder(distinct, ended.value)) return undefined
    const results = new Map<string, Ended>()
    for (const [place, delivery] of distinct.entries()) {
      const finding = ended.value[place] as InboxFinding
      const result: Ended =
        finding.status === 'entered'
          ? { result: 'processed', attempt: finding.attempt }
          : await known(delivery, finding)
      results.set(delivery.entry.id, result)
    }
    return deliveries.map((delivery) => {
      const result = results.get(delivery.entry.id) as Ended
      const isFirst = firsts.get(delivery.entry.id) === delivery
      return isFirst || result.result !== 'processed' ? result : { result: 'duplicate', attempt: 0 }
    })
  }

  /** Whether there is a message that those behind it must not overtake. */
  function needsOrder(deliveries: readonly Delivery[], findings: readonly InboxFinding[]): boolean {
    return findings.some((finding, place) => {
      if (finding.status === 'entered') return false
      if (finding.status === 'foreign') return true
      const isDead = finding.status === 'dead' || isAnother(deliveries[place]?.entry, finding.fingerprint)
      return isDead && settings.order === 'block'
    })
  }

  function attemptOf({ entry, redelivered }: Delivery, attempt: number): Attempt {
    return {
      attempt,
      redelivered: redelivered || attempt > 1,
      deriveKey: (label) => deriveKey(entry.id, label),
    }
  }

  async function noteBeforehand(entry: InboxEntry): Promise<'yes' | 'no' | 'busy' | 'too-often'> {
    const noted = await call('note', () =>
      table.note(entry, {
        windowMs,
        lockTimeoutMs,
        attempts: 1,
        maxAttempts: UNLIMITED,
        error: 'The attempt was begun and did not end',
      }),
    )
    if (noted === undefined) return 'busy'
    // Entering finds out more about one that has ended.
    if (noted.status !== 'open') return 'no'
    return noted.attempts > maxAttempts ? 'too-often' : 'yes'
  }

  /** A message that was not entered: why. */
  async function known(delivery: Delivery, finding: InboxFinding): Promise<Ended> {
    const { entry } = delivery
    if (finding.status === 'entered') throw new Error('An entered message is not rolled back')
    if (finding.status === 'foreign') {
      const { topic = '', partition = 0, offset = 0n } = entry.position ?? {}
      throw new LogReplacedError(topic, partition, offset)
    }
    if (!isAnother(entry, finding.fingerprint))
      return { result: finding.status === 'dead' ? 'dead' : 'duplicate', attempt: 0 }
    // Under its own key it would be taken for the other one.
    const renamed = parts.named({ ...entry, key: `${entry.key} with fingerprint ${entry.fingerprint}` })
    return bury({ ...delivery, entry: renamed }, new KeyReusedError(entry.key), 1)
  }

  async function failed(
    delivery: Delivery,
    error: unknown,
    { attempt, wasNoted }: { readonly attempt: number; readonly wasNoted: boolean },
  ): Promise<Ended> {
    if (saysRejected(error)) return bury(delivery, error, wasNoted ? 0 : 1, attempt)
    if (delivery.signal?.aborted === true || !isOfTheMessage(error)) throw error
    return note(delivery, error, { attempts: wasNoted ? 0 : 1, maxAttempts, attempt })
  }

  /** Marks a message as dead, with whatever attempts it has had. */
  function bury(delivery: Delivery, error: unknown, attempts: 0 | 1, attempt = 0): Promise<Ended> {
    return note(delivery, error, { attempts, maxAttempts: 0, attempt })
  }

  /** Notes a failed attempt, and buries the message where that was its last. Otherwise throws what it failed with. */
  async function note(
    delivery: Delivery,
    error: unknown,
    counted: { readonly attempts: 0 | 1; readonly maxAttempts: number; readonly attempt: number },
  ): Promise<Ended> {
    const { entry, subject, payload } = delivery
    const { attempts, attempt } = counted
    const step = (limit: number): Extract<InboxStep, { readonly type: 'note' }> => ({
      type: 'note',
      entry,
      settings: { windowMs, lockTimeoutMs, attempts, maxAttempts: limit, error: errorText(error) },
    })
    let hasOnDeadFailed = false
    try {
      const ended = await begin<NotedAttempt>(
        step(counted.maxAttempts),
        entry.key,
        undefined,
        async ({ client, noted }) => {
          const value = noted as NotedAttempt
          if (value.status === 'buried')
            try {
              const { source, key } = entry
              await settings.onDead?.(
                { source, key, attempts: value.attempts, error, payload },
                { tx: client },
              )
            } catch (cause) {
              hasOnDeadFailed = true
              throw cause
            }
          return { value, outcome: undefined }
        },
      )
      if (ended.kind === 'undecided') throw new CommitUndecidedError({ cause: ended.error })
      if (ended.kind === 'committed' && ended.value.status === 'buried') {
        events.emit({ type: 'message-dead', message: subject, error, attempts: ended.value.attempts })
        return { result: 'dead', attempt }
      }
      if (ended.kind === 'committed' && ended.value.status === 'dead') return { result: 'dead', attempt }
    } catch (cause) {
      await notNoted(cause)
    }
    throw error

    async function notNoted(cause: unknown): Promise<void> {
      if (!hasOnDeadFailed) {
        events.emit({ type: 'attempt-not-noted', message: subject, error: cause })
        return
      }
      events.emit({ type: 'on-dead-failed', message: subject, error: cause })
      // It is not dead, and yet it was tried.
      const { settings: noteSettings } = step(UNLIMITED)
      await call('note', () => table.note(entry, noteSettings)).catch((lost: unknown) => {
        events.emit({ type: 'attempt-not-noted', message: subject, error: lost })
      })
    }
  }

  async function enlist(
    execute: ExecuteStatement,
    delivery: Delivery,
  ): Promise<'fresh' | 'duplicate' | 'dead'> {
    const { entry } = delivery
    const finding = await table.enterIn(execute, entry, { windowMs, lockTimeoutMs, countsAttempt: true })
    if (finding === undefined) throw new KeyInProgressError(entry.key)
    if (finding.status === 'entered') return 'fresh'
    const { result } = await known(delivery, finding)
    return result === 'dead' ? 'dead' : 'duplicate'
  }

  return {
    once,
    together,
    enlist,
    giveUp: (delivery, error) => bury(delivery, error, 1),
    dead: (source) => table.dead(consumer, source),
    redrive: ({ id }) => call('redrive', () => table.redrive(id)),
    forget: ({ id }) => call('forget', () => table.forget(id)),
    forgetSource: (source) => table.forgetSource(consumer, source),
  }
}

/** Whether a known message is another one than that which was delivered now, under the same key. */
function isAnother(entry: InboxEntry | undefined, fingerprint: string | undefined): boolean {
  return entry?.fingerprint !== undefined && fingerprint !== undefined && entry.fingerprint !== fingerprint
}

/**
 * Whether an attempt failed for something that the message may be the cause of. A database that is away, restarts, is
 * full or has conflicts would fail any message, and must not use up the attempts of this one.
 *
 * @see https://www.postgresql.org/docs/current/errcodes-appendix.html
 */
function isOfTheMessage(error: unknown): boolean {
  if (isIdempotencyError(error)) {
    const { code } = error
    return (
      code !== 'IDEMPOTENCY_STORE_UNAVAILABLE' &&
      code !== 'IDEMPOTENCY_COMMIT_UNDECIDED' &&
      code !== 'IDEMPOTENCY_LOG_REPLACED'
    )
  }
  // A statement that runs for too long (57014) may well be the message's own fault.
  return !hasSqlState(error, /^(08|40|53|57(?!014))/)
}

/** Whether the database gave an error of those codes. Query builders wrap what the client throws. */
function hasSqlState(error: unknown, states: RegExp, depth = 0): boolean {
  if (typeof error !== 'object' || error === null || depth > 4) return false
  const { code, cause } = error as { readonly code?: unknown; readonly cause?: unknown }
  if (typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code) && states.test(code)) return true
  return hasSqlState(cause, states, depth + 1)
}

/** One signal for several deliveries. Most batches have one or none. */
function anySignal(deliveries: readonly Delivery[]): AbortSignal | undefined {
  const signals = [...new Set(deliveries.flatMap(({ signal }) => (signal === undefined ? [] : [signal])))]
  return signals.length > 1 ? AbortSignal.any(signals) : signals[0]
}
