import {
  CommitUndecidedError,
  KeyInProgressError,
  KeyInvalidError,
  KeyReusedError,
  OptionsError,
  OutcomeUnknownError,
  StoreUnavailableError,
} from '../contract/errors.js'
import { hashOfName, keyProblem, nameInScope } from '../contract/key.js'
import { isPromise, type MaybePromise } from '../contract/maybe-promise.js'
import type { ClaimResult, IdempotencyStore, Outcome } from '../contract/store.js'
import { ClaimAttempt } from './claim.js'
import { createKeyDerivation } from './derived-keys.js'
import {
  createEvents,
  type EventSubject,
  type IdempotencyEvent,
  type IdempotencyListener,
  type OutcomeReader,
} from './events.js'
import {
  createExecution,
  createUnprotectedExecution,
  type EndedTransaction,
  type Execution,
  type LiveExecution,
} from './execution.js'
import type { Policy } from './policy.js'
import { createReconciler } from './reconciler.js'
import { type CachedOutcome, createReplayCache, type ReplayCacheLimits } from './replay-cache.js'
import { createScopes } from './scopes.js'
import { createStoreCalls } from './store-calls.js'
import { type TransactionWork, transact } from './transaction.js'
import { createUpkeep } from './upkeep.js'
import { createWaitingRoom } from './waiting-room.js'

/** An operation that somebody wants done once. */
export interface Operation {
  /** The caller. Two scopes never see each other's keys. */
  readonly scope: string
  readonly key: string
  /** Which request the key stands for; `undefined` turns the check off. */
  readonly fingerprint: string | undefined
  /** Method and route pattern, or a name, for operators. */
  readonly route: string
  readonly policy: Policy
  /** Reads its outcome for subscribers. Nothing is decided by it. */
  readonly reads?: OutcomeReader
}

/** What became of an operation that was not refused: run it, or answer with what was kept. */
export type Begun =
  | { readonly kind: 'run'; readonly execution: Execution }
  | {
      readonly kind: 'replay'
      readonly outcome: Outcome
      readonly ageMs: number
      /** Where it was found. The cache gives the same object to each retry. */
      readonly from: 'store' | 'cache'
    }

/** Decides for every operation whether it runs, and keeps what it answered. Adapters translate to it and back. */
export interface Engine {
  /** Where its records are: for operators, who look and settle there. The engine alone claims and completes. */
  readonly store: IdempotencyStore

  /** What `recordId` makes ids with, beside scope and key. */
  readonly namespace: string

  /**
   * Claims the operation, or finds the outcome of its first run.
   *
   * @throws {KeyInvalidError} when the key is empty, too long, or has control characters.
   * @throws {ScopeMissingError} when the scope is empty.
   * @throws {KeyReusedError} when the key stands for another request.
   * @throws {KeyInProgressError} when the first run has not ended, and waiting is not allowed or did not help.
   * @throws {OutcomeUnknownError} when nobody knows how an earlier run ended.
   * @throws {StoreUnavailableError} when the store failed or did not answer in time.
   * @throws {StoreFullError} when a bounded store has no room.
   */
  begin(operation: Operation): Promise<Begun>

  /**
   * Does what `begin` does, and gives it at once where neither the store nor anybody else has to be waited for. What
   * `begin` rejects with may be thrown, or come as a rejected promise.
   */
  beginNow(operation: Operation): MaybePromise<Begun>

  /**
   * Runs `work` in a transaction of the store that keeps no outcome: for requests without a key.
   *
   * @throws what `work` throws: everything was rolled back.
   * @throws {TransactionUnsupportedError} when the store has no transactions.
   * @throws {StoreUnavailableError} when the store could not begin.
   * @throws {CommitUndecidedError} when the answer to the commit was lost.
   */
  transaction<T>(policy: Policy, work: TransactionWork<T>): Promise<EndedTransaction<T>>

  /**
   * Sees to it at start that the store can do what a policy asks for.
   *
   * @throws {OptionsError} when the policy is `atomic` and the store has no transactions.
   */
  assertSupports(policy: Policy, where: string): void

  /**
   * Subscribes to everything the engine reports, or to events of some types: those that nobody hears are not made.
   *
   * @returns a function that ends the subscription.
   */
  on(listener: IdempotencyListener, types?: readonly IdempotencyEvent['type'][]): () => void

  /**
   * Asks `traceparent` at each claim which trace it belongs to, and keeps that with the outcome where its door can: HTTP
   * does. The event `replayed` tells it. The last one that was given is asked.
   *
   * @returns a function that ends it.
   */
  traceWith(traceparent: () => string | undefined): () => void

  /**
   * Checks the store, once. Adapters call it at start; the first operation does otherwise.
   *
   * @throws {StoreUnfitError} when the store must not be used as it is.
   * @throws {StoreUnavailableError} when it cannot be reached.
   */
  check(): Promise<void>

  /** Ends upkeep, and waits for outcomes that are still being saved, at most `storeTimeout` long. The store stays open. */
  close(): Promise<void>
}

/** What an engine is made of, checked and complete. */
export interface EngineSettings {
  readonly store: IdempotencyStore
  readonly namespace: string
  readonly storeTimeoutMs: number
  readonly replayCache: ReplayCacheLimits | false
  readonly sweepMs: number | false
  /** What `deriveKey` mixes in. Without one it throws. */
  readonly secret?: string | Uint8Array | undefined
}

/** The fingerprint of an operation that turned the check off. */
const UNCHECKED = 'unchecked'

/** Makes the engine of one store. */
export function createEngine(settings: EngineSettings): Engine {
  const { store, namespace, storeTimeoutMs } = settings
  const events = createEvents()
  const scopeOf = createScopes(namespace)
  const call = createStoreCalls({ events, storeTimeoutMs })
  const cache = settings.replayCache === false ? undefined : createReplayCache(settings.replayCache)
  const waiting = createWaitingRoom(store.watch?.bind(store))
  const upkeep = createUpkeep({ store, call, events, sweepMs: settings.sweepMs, storeTimeoutMs })
  const deriveKey = createKeyDerivation(settings.secret)
  const reconcile = createReconciler({ store, call, events, deriveKey })
  const claiming = { store, call, events, upkeep }
  const holding = { store, call, events, background: upkeep.background, deriveKey, ended }
  /** What this process has in flight: claims that the store has not answered, and claims that are held. */
  const inFlight = new Map<string, ClaimAttempt>()
  let traceparent: (() => string | undefined) | undefined

  function beginNow(operation: Operation): MaybePromise<Begun> {
    const problem = keyProblem(operation.key)
    if (problem !== undefined) throw new KeyInvalidError(problem)
    const { key, route } = operation
    const scope = scopeOf(operation.scope)
    const name = nameInScope(scope.prefix, key)
    const startedAt = performance.now()
    const cached = cache?.get(name, startedAt)
    if (cached !== undefined) return replayCached(operation, cached, startedAt)
    const subject: EventSubject = { id: hashOfName(name), key, route, scope: scope.hash }
    const takeOver = operation.policy.onUnknown === 'rerun'
    const first = upkeep.isReady
      ? claimOrShare(subject, operation, { takeOver, now: startedAt })
      : upkeep.check().then(() => claimOrShare(subject, operation, { takeOver, now: performance.now() }))
    if (!isPromise(first) && first.status === 'acquired') return { kind: 'run', execution: first.execution }
    return conclude(subject, operation, { first, startedAt })
  }

  /** Answers from memory. A storm of retries comes by here: what only listeners and refusals need is made for them only. */
  function replayCached(operation: Operation, cached: CachedOutcome, now: number): Begun {
    const { key, scope, route, fingerprint } = operation
    const { id, outcome } = cached
    const ageMs = cached.ageMs + (now - cached.cachedAt)
    const isSame = isSameRequest(fingerprint, cached.fingerprint)
    if (isSame && !events.isHeard('replayed')) return { kind: 'replay', outcome, ageMs, from: 'cache' }
    const subject = { id, key, route, scope: scopeOf(scope).hash }
    refuseMismatch(subject, fingerprint, cached.fingerprint)
    return replay(subject, operation, { from: 'cache', outcome, ageMs })
  }

  async function conclude(
    subject: EventSubject,
    operation: Operation,
    { first, startedAt }: { readonly first: MaybePromise<Found>; readonly startedAt: number },
  ): Promise<Begun> {
    try {
      const found = await first
      if (found.status === 'acquired') return { kind: 'run', execution: found.execution }
      return await decide(subject, operation, { first: found, startedAt })
    } catch (error) {
      // A store that is full or unfit is there, and says no: that is never a reason to run unprotected.
      const isAway = error instanceof StoreUnavailableError
      if (!isAway || operation.policy.onStoreOutage !== 'run') {
        if (!isReported(error)) events.emit({ type: 'refused', operation: subject, error })
        throw error
      }
      events.emit({ type: 'unprotected', operation: subject, error })
      const execution = createUnprotectedExecution({
        deriveKey: (label) => deriveKey(subject.id, label),
        transaction: (work) => transaction(operation.policy, work),
      })
      return { kind: 'run', execution }
    }
  }

  /** What becomes of an operation that is there already, as the first look has found it. */
  async function decide(
    subject: EventSubject,
    operation: Operation,
    { first, startedAt }: { readonly first: Found; readonly startedAt: number },
  ): Promise<Begun> {
    const { policy } = operation
    let takeOver = policy.onUnknown === 'rerun'
    for (let looks = 0; ; looks += 1) {
      const found =
        looks === 0 ? first : await claimOrShare(subject, operation, { takeOver, now: performance.now() })
      if (found.status === 'acquired') return { kind: 'run', execution: found.execution }
      refuseMismatch(subject, operation.fingerprint, found.fingerprint)
      if (found.status === 'completed') {
        // Remembered at its first retry, not at its completion: most operations never see one.
        const { fingerprint, outcome, ageMs } = found
        // Whoever shares the answer to a claim of this process finds it remembered by whoever asked.
        if (!found.shared)
          cache?.set(
            nameInScope(scopeOf(operation.scope).prefix, subject.key),
            { id: subject.id, fingerprint, outcome, ageMs, cachedAt: performance.now() },
            policy.ttlMs - ageMs,
          )
        return replay(subject, operation, { from: 'store', outcome, ageMs })
      }
      if (found.status === 'running') {
        await waitOrRefuse(subject, policy, { startedAt, looks, ...found })
        continue
      }
      // A shared claim that did not ask for a take-over says nothing about whether ours is granted.
      if (takeOver && found.shared) continue
      if (takeOver || policy.onUnknown === 'reject') throw unknown(subject, found)
      const answer = await reconcile(subject, operation, found).catch((error: unknown) => {
        if (error instanceof OutcomeUnknownError) unknown(subject, found)
        throw error
      })
      if (answer === 'reject') throw unknown(subject, found)
      takeOver = answer === 'rerun'
    }
  }

  /** How a claim is asked for. */
  interface Asked {
    readonly takeOver: boolean
    /** The monotonic clock: reading it is dear on some machines. */
    readonly now: number
  }

  type Found =
    | { readonly status: 'acquired'; readonly execution: LiveExecution }
    | (Exclude<ClaimResult, { status: 'acquired' | 'running' }> & { readonly shared: boolean })
    | {
        readonly status: 'running'
        readonly fingerprint: string
        readonly leaseLeftMs: number
        /** Held by this process: it will say when it ends, nobody needs to ask the store. */
        readonly isOurs: boolean
      }

  /** Claims an id at the store, or joins the claim that this process already has or is asking for. */
  function claimOrShare(subject: EventSubject, operation: Operation, asked: Asked): MaybePromise<Found> {
    const current = inFlight.get(subject.id)
    return current === undefined
      ? claim(subject, operation, asked)
      : share(current, subject, operation, asked.takeOver)
  }

  async function share(
    current: ClaimAttempt,
    subject: EventSubject,
    operation: Operation,
    takeOver: boolean,
  ): Promise<Found> {
    const answer = await current.answer
    if (answer.status !== 'acquired') return asFound(answer, true)
    const asked = { takeOver, now: performance.now() }
    // It may have ended while we waited for its answer, and then nobody would wake us.
    if (inFlight.get(subject.id) !== current) return claimOrShare(subject, operation, asked)
    const leaseLeftMs = current.execution?.leaseLeftMs() ?? 0
    if (leaseLeftMs > 0)
      return { status: 'running', fingerprint: current.intent.fingerprint, leaseLeftMs, isOurs: true }
    // Nobody here can vouch for its lease any more: the store's clock decides.
    return claim(subject, operation, asked)
  }

  function claim(
    subject: EventSubject,
    operation: Operation,
    { takeOver, now: claimedAt }: Asked,
  ): MaybePromise<Found> {
    const { policy, reads, fingerprint = UNCHECKED } = operation
    const attempt = new ClaimAttempt({ subject, fingerprint, policy, takeOver, claimedAt, reads }, claiming)
    const { answer } = attempt
    inFlight.set(subject.id, attempt)
    if (!isPromise(answer)) return claimed(attempt, answer, claimedAt)
    return answer.then(
      (result) => claimed(attempt, result, performance.now()),
      (error: unknown) => {
        forget(subject.id, attempt)
        attempt.abandon(error)
        throw error
      },
    )
  }

  /** What the store has answered to a claim of this process. */
  function claimed(attempt: ClaimAttempt, answer: ClaimResult, answeredAt: number): Found {
    const { subject } = attempt.intent
    if (answer.status !== 'acquired') {
      forget(subject.id, attempt)
      return asFound(answer, false)
    }
    const { fence } = answer
    if (events.isHeard('claimed')) events.emit({ type: 'claimed', operation: subject, fence })
    const execution = createExecution(attempt, { fence, answeredAt, traceparent: traceOfClaim() }, holding)
    attempt.execution = execution
    return { status: 'acquired', execution }
  }

  function ended({ id }: EventSubject, execution: LiveExecution): void {
    const entry = inFlight.get(id)
    // A claim of this process that has taken over stands in the place of the one that was lost.
    if (entry?.execution === execution) forget(id, entry)
    else waiting.wake(id)
  }

  function forget(id: string, entry: ClaimAttempt): void {
    if (inFlight.get(id) === entry) inFlight.delete(id)
    // An outgrown table of the map may keep the entry for a while. What it stood for need not wait as long.
    entry.execution = undefined
    waiting.wake(id)
  }

  /** Whoever traces must never change an answer, and its failure must not be silent either. */
  function traceOfClaim(): string | undefined {
    try {
      return traceparent?.()
    } catch (error) {
      process.emitWarning(error instanceof Error ? error : String(error), 'OncekeyListenerWarning')
      return undefined
    }
  }

  function replay(
    subject: EventSubject,
    { reads }: Operation,
    found: { readonly from: 'store' | 'cache'; readonly outcome: Outcome; readonly ageMs: number },
  ): Begun {
    const { from, outcome, ageMs } = found
    if (events.isHeard('replayed'))
      events.emit({
        type: 'replayed',
        operation: subject,
        from,
        ageMs,
        tombstone: outcome.body === null,
        facts: () => reads?.(outcome) ?? {},
      })
    return { kind: 'replay', outcome, ageMs, from }
  }

  function refuseMismatch(subject: EventSubject, asked: string | undefined, kept: string): void {
    if (isSameRequest(asked, kept)) return
    events.emit({ type: 'mismatch', operation: subject })
    throw new KeyReusedError(subject.key)
  }

  function unknown(
    subject: EventSubject,
    { fence, meta }: Extract<ClaimResult, { status: 'unknown' }>,
  ): OutcomeUnknownError {
    events.emit({ type: 'unknown', operation: subject, fence, firstSeenAt: meta.firstSeenAt })
    return new OutcomeUnknownError(subject.key)
  }

  async function waitOrRefuse(
    subject: EventSubject,
    { whenBusy }: Policy,
    busy: {
      readonly startedAt: number
      readonly looks: number
      readonly leaseLeftMs: number
      readonly isOurs: boolean
    },
  ): Promise<void> {
    const waitedMs = performance.now() - busy.startedAt
    if (whenBusy === 'reject' || waitedMs >= whenBusy.waitMs || waiting.size >= whenBusy.waiters) {
      events.emit({ type: 'in-progress', operation: subject })
      throw new KeyInProgressError(subject.key)
    }
    const maxMs = Math.min(whenBusy.waitMs - waitedMs, Math.max(1, busy.leaseLeftMs))
    await waiting.wait(subject.id, { maxMs, looks: busy.isOurs ? undefined : busy.looks })
    events.emit({ type: 'waited', operation: subject, waitedMs: performance.now() - busy.startedAt })
  }

  async function transaction<T>(policy: Policy, work: TransactionWork<T>): Promise<EndedTransaction<T>> {
    const ended = await transact(
      {
        store,
        call,
        settings: policy.transaction,
        giveUp: new AbortController(),
        claim: undefined,
        onCommitting: () => {},
        onRepeated: () => {},
      },
      work,
    )
    if (ended.kind === 'undecided') throw new CommitUndecidedError({ cause: ended.error })
    // Nothing is claimed here, so nothing can be lost.
    return ended as EndedTransaction<T>
  }

  function assertSupports(policy: Policy, where: string): void {
    if (!policy.atomic || store.transaction !== undefined) return
    throw new OptionsError(
      `${where}: option "atomic" needs a store with transactions, such as postgresStore(pool); this one has none`,
    )
  }

  function traceWith(given: () => string | undefined): () => void {
    traceparent = given
    return () => {
      if (traceparent === given) traceparent = undefined
    }
  }

  return {
    store,
    namespace,
    begin: async (operation) => beginNow(operation),
    beginNow,
    transaction,
    assertSupports,
    on: events.on,
    traceWith,
    check: upkeep.check,
    close: upkeep.close,
  }
}

function isSameRequest(asked: string | undefined, kept: string): boolean {
  return asked === undefined || asked === kept || kept === UNCHECKED
}

/** Whether an event of its own has told of a refusal. */
function isReported(error: unknown): boolean {
  return (
    error instanceof KeyReusedError ||
    error instanceof KeyInProgressError ||
    error instanceof OutcomeUnknownError
  )
}

function asFound(answer: Exclude<ClaimResult, { status: 'acquired' }>, shared: boolean) {
  return answer.status === 'running' ? { ...answer, isOurs: false } : { ...answer, shared }
}
