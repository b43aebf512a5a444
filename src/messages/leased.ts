import { isIdempotencyError, KeyReusedError, OptionsError, saysRejected } from '../contract/errors.js'
import type { InboxEntry } from '../contract/inbox.js'
import { recordId } from '../contract/key.js'
import type { IdempotencyStore, Outcome, StoredRecord } from '../contract/store.js'
import type { KeyDerivation } from '../core/derived-keys.js'
import type { Begun, Engine } from '../core/engine.js'
import type { Events } from '../core/events.js'
import type { Execution } from '../core/execution.js'
import { DEFAULT_POLICY, type Policy } from '../core/policy.js'
import type { StoreCalls } from '../core/store-calls.js'
import type { InboxEvent } from './inbox-events.js'
import type { InboxSettings } from './inbox-options.js'
import { type Delivery, type Ended, errorText, type MessageProcessing } from './message-processing.js'

/** What processing by leases is made of. */
export interface LeasedParts {
  readonly engine: Engine
  readonly store: IdempotencyStore
  readonly settings: InboxSettings
  /** The namespace of the engine. */
  readonly namespace: string
  readonly call: StoreCalls
  readonly events: Events<InboxEvent>
  readonly deriveKey: KeyDerivation
  /** Gives an entry its id. */
  readonly named: (entry: Omit<InboxEntry, 'id' | 'consumer'>) => InboxEntry
}

/** What is kept of an attempt that has ended. */
type AttemptEnd =
  | { readonly state: 'processed' }
  /** `counts` is false where it was taken back, so that the message is not to blame. */
  | { readonly state: 'failed'; readonly error: string; readonly counts: boolean }
  | { readonly state: 'dead'; readonly error: string; readonly attempts: number }

/** The dead are kept until somebody decides, or for as long as a store can. */
const DEAD_TTL_MS = 3650 * 24 * 3_600_000

/**
 * Processes messages under leases. **A process that dies between the effect of a message and its completion leaves a
 * message of which nobody knows whether its effect happened**: `onUnknown` says what becomes of it.
 *
 * Every attempt is an operation of its own, with a record of its own: the first that has not failed decides.
 */
export function leased(parts: LeasedParts): MessageProcessing<never> {
  const { engine, store, settings, namespace, call, events } = parts
  const { consumer, windowMs, maxAttempts, onUnknown } = settings
  const route = `message ${consumer}`
  const policy: Policy = {
    ...DEFAULT_POLICY,
    ttlMs: windowMs,
    leaseMs: settings.leaseMs,
    maxRunMs: settings.maxRunMs,
  }

  async function once(
    delivery: Delivery,
    handler: Parameters<MessageProcessing<never>['once']>[1],
  ): Promise<Ended> {
    delivery.signal?.throwIfAborted()
    let failures = 0
    for (let attempt = 1; ; attempt += 1) {
      const found = await look(delivery.entry, attempt)
      if (typeof found === 'string') {
        if (found === 'busy') return { result: 'in-progress', attempt: 0 }
        if (found === 'rerun') {
          failures += 1
          continue
        }
        if (found === 'mismatch') return buryMismatch(delivery)
        if (found === 'processed') return { result: 'duplicate', attempt: 0 }
        return die(
          delivery,
          new Error('Its process ended while it was handled: nobody knows whether its effect happened'),
          {
            attempts: failures + 1,
            keep: (outcome) => settle(delivery.entry, attempt, outcome, DEAD_TTL_MS),
          },
        )
      }
      if (found.kind === 'replay') {
        const end = endIn(found.outcome)
        if (end.state === 'processed') return { result: 'duplicate', attempt: 0 }
        if (end.state === 'dead') return { result: 'dead', attempt: 0 }
        if (end.counts) failures += 1
        continue
      }
      return run(delivery, found.execution, failures, handler)
    }
  }

  /** What there is of an attempt. `'processed'`, `'rerun'` and `'unknown'` say what became of one that never ended. */
  async function look(
    entry: InboxEntry,
    attempt: number,
  ): Promise<Begun | 'busy' | 'mismatch' | 'processed' | 'rerun' | 'unknown'> {
    const { fingerprint } = entry
    try {
      return await engine.begin({
        scope: consumer,
        key: attemptKey(entry, attempt),
        fingerprint,
        route,
        policy,
      })
    } catch (error) {
      if (!isIdempotencyError(error)) throw error
      if (error.code === 'IDEMPOTENCY_KEY_IN_PROGRESS') return 'busy'
      if (error.code === 'IDEMPOTENCY_KEY_REUSED') return 'mismatch'
      if (error.code !== 'IDEMPOTENCY_OUTCOME_UNKNOWN') throw error
    }
    const { source, key } = entry
    const answer = typeof onUnknown === 'function' ? await onUnknown({ source, key, attempt }) : onUnknown
    if (answer === 'reject') return 'unknown'
    const end: AttemptEnd =
      answer === 'processed'
        ? { state: 'processed' }
        : { state: 'failed', error: 'Its process ended while it was handled', counts: true }
    const isSettled = await settle(entry, attempt, outcomeOf(entry, end), ttlOf(end))
    // Somebody else has settled it, or its own process has come back: what is there now decides.
    return isSettled ? answer : look(entry, attempt)
  }

  async function run(
    delivery: Delivery,
    execution: Execution,
    failures: number,
    handler: Parameters<MessageProcessing<never>['once']>[1],
  ): Promise<Ended> {
    const { entry } = delivery
    const attempt = failures + 1
    const signal =
      delivery.signal === undefined ? execution.signal : AbortSignal.any([execution.signal, delivery.signal])
    const keep = (outcome: Outcome, ttlMs: number) => keepEnd(execution, outcome, ttlMs)
    if (failures >= maxAttempts)
      // It would be dead, had `onDead` not failed, or had its last process not ended.
      return die(delivery, new Error(`${failures} attempts were begun, and none ended well`), {
        attempts: failures,
        keep: (outcome) => keep(outcome, DEAD_TTL_MS),
      })
    try {
      await handler({
        tx: undefined as never,
        signal,
        attempt,
        redelivered: delivery.redelivered || attempt > 1,
        deriveKey: (label) => parts.deriveKey(entry.id, label),
      })
    } catch (error) {
      const counts = delivery.signal?.aborted !== true
      if (saysRejected(error) || (counts && attempt >= maxAttempts))
        return die(
          delivery,
          error,
          { attempts: attempt, keep: (outcome) => keep(outcome, DEAD_TTL_MS) },
          attempt,
        )
      const end: AttemptEnd = { state: 'failed', error: errorText(error), counts }
      await keep(outcomeOf(entry, end), ttlOf(end)).catch((cause: unknown) => {
        events.emit({ type: 'attempt-not-noted', message: delivery.subject, error: cause })
      })
      throw error
    }
    const end: AttemptEnd = { state: 'processed' }
    const isOwn = await keep(outcomeOf(entry, end), ttlOf(end))
    // Another process has taken the attempt for failed and has gone on: the effect happened here all the same.
    return { result: isOwn ? 'processed' : 'duplicate', attempt }
  }

  /** Keeps how an attempt ended, and says whether that is what its record says. */
  async function keepEnd(execution: Execution, outcome: Outcome, ttlMs: number): Promise<boolean> {
    return (await execution.complete(outcome, ttlMs)).whose === 'own'
  }

  async function die(
    delivery: Delivery,
    error: unknown,
    { attempts, keep }: { readonly attempts: number; keep(outcome: Outcome): Promise<boolean> },
    attempt = 0,
  ): Promise<Ended> {
    const { entry, subject, payload } = delivery
    const { source, key } = entry
    try {
      await settings.onDead?.({ source, key, attempts, error, payload }, { tx: undefined })
    } catch (cause) {
      events.emit({ type: 'on-dead-failed', message: subject, error: cause })
      const end: AttemptEnd = { state: 'failed', error: errorText(error), counts: true }
      await keep(outcomeOf(entry, end))
      throw error
    }
    await keep(outcomeOf(entry, { state: 'dead', error: errorText(error), attempts }))
    events.emit({ type: 'message-dead', message: subject, error, attempts })
    return { result: 'dead', attempt }
  }

  async function giveUp(delivery: Delivery, error: unknown): Promise<Ended> {
    for (let attempt = 1; ; attempt += 1) {
      const found = await look(delivery.entry, attempt)
      if (found === 'busy') return { result: 'in-progress', attempt: 0 }
      if (found === 'processed') return { result: 'duplicate', attempt: 0 }
      if (found === 'mismatch') return buryMismatch(delivery)
      if (found === 'unknown')
        return die(delivery, error, {
          attempts: attempt,
          keep: (outcome) => settle(delivery.entry, attempt, outcome, DEAD_TTL_MS),
        })
      if (found === 'rerun') continue
      if (found.kind === 'run')
        return die(delivery, error, {
          attempts: attempt,
          keep: (outcome) => keepEnd(found.execution, outcome, DEAD_TTL_MS),
        })
      const { state } = endIn(found.outcome)
      if (state !== 'failed') return { result: state === 'dead' ? 'dead' : 'duplicate', attempt: 0 }
    }
  }

  /** Under its own key it would be taken for the other one. */
  function buryMismatch(delivery: Delivery): Promise<Ended> {
    const { entry } = delivery
    const renamed = parts.named({ ...entry, key: `${entry.key} with fingerprint ${entry.fingerprint}` })
    return giveUp({ ...delivery, entry: renamed }, new KeyReusedError(entry.key))
  }

  function settle(entry: InboxEntry, attempt: number, outcome: Outcome, ttlMs: number): Promise<boolean> {
    return call('settle', () => store.settle(attemptId(entry, attempt), outcome, ttlMs))
  }

  function ttlOf(end: AttemptEnd): number {
    // A failed attempt leads to the one that succeeded, and must not be forgotten before it.
    return end.state === 'failed' ? 2 * windowMs : windowMs
  }

  function attemptId(entry: InboxEntry, attempt: number): string {
    return recordId({ namespace, scope: consumer, key: attemptKey(entry, attempt) })
  }

  /** The records of the attempts of a message, in their order. */
  async function recordsOf(entry: InboxEntry): Promise<readonly StoredRecord[]> {
    const records: StoredRecord[] = []
    for (let attempt = 1; ; attempt += 1) {
      const record = await call('find', () => store.find(attemptId(entry, attempt)))
      if (record === undefined) return records
      records.push(record)
    }
  }

  async function forgetRecords(records: readonly StoredRecord[]): Promise<number> {
    const remove = store.remove?.bind(store)
    if (remove === undefined) throw new OptionsError('The store of this inbox cannot remove records')
    let removed = 0
    // The last one first: until it is gone, what it says still holds.
    for (const { id } of records.toReversed()) if (await call('forget', () => remove(id))) removed += 1
    return removed
  }

  async function* ended(): AsyncIterable<{ readonly record: CompletedRecord; readonly named: NamedAttempt }> {
    if (store.list === undefined) throw new OptionsError('The store of this inbox cannot list records')
    for await (const record of store.list({ route }))
      if (record.status === 'completed') {
        const named = namedIn(record)
        if (named !== undefined) yield { record, named }
      }
  }

  return {
    once,
    together: async () => undefined,
    giveUp,

    async *dead(source) {
      for await (const { record, named } of ended()) {
        const end = endIn(record.outcome)
        if (end.state !== 'dead' || (source !== undefined && source !== named.source)) continue
        const { error, attempts } = end
        const diedAt = Math.round(Date.now() - record.ageMs)
        yield {
          source: named.source,
          key: named.key,
          attempts,
          error,
          firstSeenAt: record.meta.firstSeenAt,
          diedAt,
        }
      }
    },

    async redrive(entry) {
      const records = await recordsOf(entry)
      const last = records.at(-1)
      if (last?.status !== 'completed' || endIn(last.outcome).state !== 'dead') return false
      return (await forgetRecords(records)) > 0
    },

    async forget(entry) {
      return (await forgetRecords(await recordsOf(entry))) > 0
    },

    async forgetSource(source) {
      let removed = 0
      for await (const { record, named } of ended())
        if (named.source === source) removed += await forgetRecords([record])
      return removed
    },
  }
}

type CompletedRecord = Extract<StoredRecord, { readonly status: 'completed' }>

interface NamedAttempt {
  readonly source: string
  readonly key: string
}

/** The key of one attempt's record: source, key and number, so that operators can read them and no two are alike. */
function attemptKey(entry: InboxEntry, attempt: number): string {
  const text = JSON.stringify([entry.source, entry.key, attempt]).replaceAll('\u007f', '\\u007f')
  // An id is no list, so that it is never the text of another one.
  return text.length <= LONGEST_KEY ? text : `${entry.id}/${attempt}`
}

const LONGEST_KEY = 255

/** Which message the record of an attempt is of: its key says so, or else its outcome. */
function namedIn({ meta, outcome }: CompletedRecord): NamedAttempt | undefined {
  const { of } = JSON.parse(outcome.head) as { readonly of?: NamedAttempt }
  if (of !== undefined || !meta.key.startsWith('[')) return of
  const [source, key] = JSON.parse(meta.key) as [string, string]
  return { source, key }
}

function outcomeOf(entry: InboxEntry, end: AttemptEnd): Outcome {
  const { source, key } = entry
  // However many attempts there are: the number of the attempt has its place in the key, too.
  const isReadable = attemptKey(entry, 1_000_000).startsWith('[')
  return {
    result: end.state === 'processed' ? 'succeeded' : 'failed',
    head: JSON.stringify(isReadable ? end : { ...end, of: { source, key } }),
    body: new Uint8Array(0),
  }
}

function endIn(outcome: Outcome): AttemptEnd {
  return JSON.parse(outcome.head) as AttemptEnd
}
