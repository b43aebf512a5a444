import {
  ClaimLostError,
  CommitUndecidedError,
  type IdempotencyError,
  KeyInProgressError,
  MaxRunExceededError,
  OutcomeUnknownError,
  StoreFullError,
  StoreUnavailableError,
  TransactionMisuseError,
  TransactionUnsupportedError,
} from '../contract/errors.js'
import type { MaybePromise } from '../contract/maybe-promise.js'
import type { ExecuteStatement, IdempotencyStore, Outcome } from '../contract/store.js'
import { type Deadline, deadlines } from './deadlines.js'
import type { DeriveKey, KeyDerivation } from './derived-keys.js'
import type { EventSubject, Events, IdempotencyEvent, OutcomeReader } from './events.js'
import type { Policy } from './policy.js'
import type { StoreCalls } from './store-calls.js'
import { type Transacted, type TransactionWork, transact } from './transaction.js'

/** The right to run one operation, until it is completed or released. */
export interface Execution {
  /** How many times this operation was claimed: 1, 2, ... Hand it to systems that can compare it. */
  readonly fence: number
  /** Aborts when the claim is lost, when it may be, or when `maxRun` has passed. */
  readonly signal: AbortSignal
  /** Whether a claim stands behind this run. `false` after a store outage with `onStoreOutage: 'run'`. */
  readonly isProtected: boolean
  /** The trace that this run belongs to, for whoever writes the outcome's head. It decides nothing. */
  readonly traceparent: string | undefined

  /**
   * Keeps the outcome, and says which answer the caller gets: its own, or the one that another run kept. It says so at
   * once where the store does.
   *
   * A store that is away does not hold the answer back: the first failed attempt lets it go, and saving goes on in
   * the background.
   *
   * @throws {KeyInProgressError | OutcomeUnknownError} when the claim was lost and another run has not ended.
   * @throws {StoreUnavailableError} when the claim was lost and the store cannot say to whom.
   */
  complete(outcome: Outcome, ttlMs?: number): MaybePromise<Answer>

  /** Gives the claim back: nothing was done. A store that is away is asked again in the background. */
  release(): Promise<void>

  /** Makes a key for a downstream call: the same in every run of this operation. */
  deriveKey(label: string): string

  /**
   * Runs `work` in a transaction of the store, and commits its effects together with the outcome that it gives. Once
   * that is committed, the operation has ended; after a roll-back it goes on, and nothing has happened so far.
   *
   * @throws what `work` throws: everything was rolled back.
   * @throws {ClaimLostError} when the claim went to somebody else: everything was rolled back. `complete` finds the
   *   other's answer.
   * @throws {StoreUnavailableError} when the store could not begin, or did not commit: nothing happened.
   * @throws {CommitUndecidedError} when nobody can say now whether it was committed. It is found out in the background.
   */
  transaction<T>(work: TransactionWork<T>): Promise<EndedTransaction<T>>

  /**
   * Keeps the outcome as a part of a transaction that the application has begun. `decide` says what became of it.
   *
   * @throws {ClaimLostError} when the claim went to somebody else: the application must roll back.
   */
  saveIn(execute: ExecuteStatement, outcome: Outcome): Promise<void>

  /**
   * Finds out whether a transaction that kept `outcome` was committed, and sees to it that it no longer can be where it
   * was not: then the claim is given back.
   *
   * @returns the outcome that is kept, or `undefined` when it was not committed.
   * @throws {CommitUndecidedError} when nobody can say now. It is found out in the background.
   */
  decide(outcome: Outcome): Promise<Outcome | undefined>

  /** The outcome that the record holds by now, if it is `outcome`, and of this run. */
  keptOutcome(outcome: Outcome): Promise<Outcome | undefined>

  /**
   * After a claim was lost: the answer that whoever has it now has kept, or one's own where nobody has it.
   *
   * @throws {KeyInProgressError | OutcomeUnknownError} when the other run has not ended.
   * @throws {StoreUnavailableError} when the store cannot say.
   */
  answerOfTheHolder(): Promise<Answer>
}

/** A transaction that was committed with its outcome, or rolled back because its work asked for it. */
export type EndedTransaction<T> = Extract<Transacted<T>, { readonly kind: 'committed' | 'rolled-back' }>

/** Whose answer the caller gets. */
export type Answer = { readonly whose: 'own' } | { readonly whose: 'other'; readonly outcome: Outcome }

/** What an execution needs of the engine. */
export interface ExecutionContext {
  readonly store: IdempotencyStore
  readonly call: StoreCalls
  readonly events: Events
  /** Called once, when the claim is no longer held. */
  readonly ended: (subject: EventSubject, execution: LiveExecution) => void
  /** Keeps work that goes on after the answer, so that `close` can wait for it. */
  readonly background: (work: Promise<void>) => void
  readonly deriveKey: KeyDerivation
}

/** What is claimed. */
export interface ClaimIntent {
  readonly subject: EventSubject
  readonly fingerprint: string
  readonly policy: Policy
  readonly takeOver: boolean
  /** When it is asked for, by the monotonic clock: the lease lasts at least `leaseMs` from then. */
  readonly claimedAt: number
  /** Reads the outcome for subscribers; `undefined` where its door has nothing to say of it. */
  readonly reads: OutcomeReader | undefined
}

/** A claim that this process holds. */
export interface HeldClaim {
  readonly intent: ClaimIntent
  readonly token: string
}

/** How it was granted. */
export interface Grant {
  readonly fence: number
  /** When the store had answered, by the monotonic clock. */
  readonly answeredAt: number
  readonly traceparent: string | undefined
}

/** An execution as the engine sees it. */
export interface LiveExecution extends Execution {
  /** Milliseconds for which this process knows that the lease holds. */
  leaseLeftMs(): number
}

const OWN: Answer = { whose: 'own' }
const FIRST_RETRY_MS = 100
const LONGEST_RETRY_MS = 5000

/** Starts to hold a claim: it is renewed from now on. */
export function createExecution(claim: HeldClaim, grant: Grant, context: ExecutionContext): LiveExecution {
  return new HeldExecution(claim, grant, context)
}

// A class, since every protected request makes one: a dozen functions that close over it would be a dozen objects.
class HeldExecution implements LiveExecution {
  readonly isProtected = true
  readonly fence: number
  readonly traceparent: string | undefined
  readonly #claim: ClaimIntent
  readonly #token: string
  readonly #context: ExecutionContext
  #leaseUntil: number
  #state: 'running' | 'ending' | 'ended' = 'running'
  #isLost = false
  #controller: AbortController | undefined
  #abortReason: IdempotencyError | undefined
  #renewal: Deadline
  /** Ends the transaction that is open now. */
  #giveUp: AbortController | undefined
  #isCommitting = false

  constructor({ intent, token }: HeldClaim, grant: Grant, context: ExecutionContext) {
    const { policy, claimedAt } = intent
    this.fence = grant.fence
    this.traceparent = grant.traceparent
    this.#claim = intent
    this.#token = token
    this.#context = context
    this.#leaseUntil = claimedAt + policy.leaseMs
    this.#renewal = this.#after(Math.min(this.#renewEveryMs, policy.maxRunMs), grant.answeredAt)
  }

  get #renewEveryMs(): number {
    return this.#claim.policy.leaseMs / 3
  }

  get #runsUntil(): number {
    return this.#claim.claimedAt + this.#claim.policy.maxRunMs
  }

  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController()
      if (this.#abortReason !== undefined) this.#controller.abort(this.#abortReason)
    }
    return this.#controller.signal
  }

  leaseLeftMs(): number {
    return this.#isLost ? 0 : this.#leaseUntil - performance.now()
  }

  complete(outcome: Outcome, ttlMs = this.#claim.policy.ttlMs): MaybePromise<Answer> {
    if (this.#state !== 'running') return OWN
    this.#state = 'ending'
    // Straight to the store, since every request waits here: what takes another step is rare.
    const saved = this.#save(outcome, ttlMs)
    if (saved !== true) return this.#concluded(saved, outcome, ttlMs)
    this.#kept(outcome, false)
    return OWN
  }

  async #concluded(saved: MaybePromise<boolean>, outcome: Outcome, ttlMs: number): Promise<Answer> {
    let kept: Outcome | undefined
    try {
      kept = (await saved) ? outcome : undefined
    } catch (error) {
      try {
        kept = await this.#saveShortened(outcome, ttlMs, error)
      } catch (reason) {
        this.#emit({ type: 'save-failed', operation: this.#claim.subject, error: reason })
        this.#context.background(this.#saveLater(outcome, ttlMs))
        return OWN
      }
    }
    if (kept !== undefined) {
      this.#kept(kept, false)
      return OWN
    }
    this.#lose()
    return this.answerOfTheHolder()
  }

  async release(): Promise<void> {
    if (this.#state !== 'running') return
    this.#state = 'ending'
    const failed = (error: unknown): void =>
      this.#emit({ type: 'release-failed', operation: this.#claim.subject, error })
    try {
      await this.#giveBack()
    } catch (error) {
      failed(error)
      this.#context.background(this.#insist(() => this.#giveBack(), failed))
    }
  }

  deriveKey(label: string): string {
    return this.#context.deriveKey(this.#claim.subject.id, label)
  }

  async transaction<T>(work: TransactionWork<T>): Promise<EndedTransaction<T>> {
    this.#refuseMisuse('transaction()')
    const { subject, policy } = this.#claim
    const { store, call } = this.#context
    const giveUp = new AbortController()
    this.#giveUp = giveUp
    const rolledBack = (why: 'failed' | 'asked' | 'lost'): void =>
      this.#emit({ type: 'rolled-back', operation: subject, fence: this.fence, why })
    let ended: Transacted<T>
    try {
      ended = await transact(
        {
          store,
          call,
          settings: policy.transaction,
          giveUp,
          claim: { id: subject.id, token: this.#token, ttlMs: policy.ttlMs },
          onCommitting: () => {
            this.#isCommitting = true
          },
          onRepeated: (attempt) => {
            this.#isCommitting = false
            this.#emit({ type: 'transaction-repeated', operation: subject, attempt })
          },
        },
        work,
      )
    } catch (error) {
      rolledBack('failed')
      throw error
    } finally {
      this.#giveUp = undefined
      this.#isCommitting = false
    }
    switch (ended.kind) {
      case 'committed': {
        const { value, outcome } = ended
        if (outcome !== undefined) this.#kept(outcome, false)
        return { kind: 'committed', value, outcome }
      }
      case 'rolled-back':
        rolledBack('asked')
        return ended
      case 'lost':
        rolledBack('lost')
        this.#lose()
        throw new ClaimLostError(subject.key)
      case 'undecided': {
        this.#emit({ type: 'commit-undecided', operation: subject, error: ended.error })
        const outcome = ended.outcome && (await this.decide(ended.outcome))
        if (outcome !== undefined) return { kind: 'committed', value: ended.value, outcome }
        throw new StoreUnavailableError('The transaction was not committed', { cause: ended.error })
      }
    }
  }

  async saveIn(execute: ExecuteStatement, outcome: Outcome): Promise<void> {
    this.#refuseMisuse('saveIn()')
    const { subject, policy } = this.#claim
    const { store } = this.#context
    if (store.completeIn === undefined) throw new TransactionUnsupportedError('saveIn()')
    // It is the application's transaction, and its time.
    if (await store.completeIn(execute, subject.id, this.#token, outcome, policy.ttlMs)) return
    this.#emit({ type: 'rolled-back', operation: subject, fence: this.fence, why: 'lost' })
    this.#lose()
    throw new ClaimLostError(subject.key)
  }

  async decide(outcome: Outcome): Promise<Outcome | undefined> {
    if (this.#state !== 'running') return undefined
    this.#state = 'ending'
    try {
      return await this.#verdict(outcome)
    } catch (cause) {
      this.#context.background(
        this.#insist(
          async () => {
            await this.#verdict(outcome)
          },
          (error) => this.#emit({ type: 'save-abandoned', operation: this.#claim.subject, error }),
        ),
      )
      throw new CommitUndecidedError({ cause })
    }
  }

  async keptOutcome(outcome: Outcome): Promise<Outcome | undefined> {
    const { subject } = this.#claim
    const { store, call } = this.#context
    const record = await call('find', () => store.find(subject.id))
    if (record?.status !== 'completed' || record.fence !== this.fence) return undefined
    // A store that lost this claim in a crash counts its fences anew: the record may be of another run.
    if (!isSame(record.outcome, outcome)) return undefined
    if (this.#state !== 'ended') this.#kept(record.outcome, false)
    return record.outcome
  }

  /** Whether the record has an outcome now. If it has none, it is made sure that a commit under way cannot add one. */
  async #verdict(expected: Outcome): Promise<Outcome | undefined> {
    const { subject } = this.#claim
    const { store, call } = this.#context
    const kept = await this.keptOutcome(expected)
    if (kept !== undefined) return kept
    // The store keeps this step waiting behind a commit that is under way, and a later one finds its token gone.
    const released = await call('release', () => store.release(subject.id, this.#token))
    // It ended between the two steps: committed after all, or taken over.
    const outcome = released ? undefined : await this.keptOutcome(expected)
    if (outcome !== undefined) return outcome
    const wasOurs = this.#wasReleased(released)
    this.#emit({
      type: 'rolled-back',
      operation: subject,
      fence: this.fence,
      why: wasOurs ? 'failed' : 'lost',
    })
    if (!wasOurs) this.#lose()
    this.#end()
    return undefined
  }

  #refuseMisuse(what: string): void {
    if (this.#giveUp !== undefined)
      throw new TransactionMisuseError(
        `${what} was called inside of transaction(): one commit has one outcome`,
      )
    if (this.#state !== 'running')
      throw new TransactionMisuseError(`${what} was called after the outcome of the operation was kept`)
    if (this.#abortReason instanceof MaxRunExceededError) throw this.#abortReason
  }

  #after(delayMs: number, now?: number): Deadline {
    return deadlines.after(delayMs, () => this.#tick(), now)
  }

  #tick(): void {
    if (performance.now() < this.#runsUntil) {
      this.#context.background(this.#renew())
      return
    }
    const { subject } = this.#claim
    this.#emit({ type: 'max-run', operation: subject, fence: this.fence })
    this.#abort(new MaxRunExceededError(subject.key))
  }

  async #renew(): Promise<void> {
    const { subject, policy } = this.#claim
    const { store, call } = this.#context
    const askedAt = performance.now()
    let held: boolean
    try {
      held = await call(
        'renew',
        () => store.renew(subject.id, this.#token, policy.leaseMs),
        this.#renewEveryMs,
      )
    } catch (error) {
      if (this.#state === 'ended') return
      this.#emit({ type: 'renewal-failed', operation: subject, error })
      if (performance.now() >= this.#leaseUntil) this.#lose()
      // Soon again, and not at once: a store that refuses connections answers in no time.
      this.#renewal = this.#after(Math.min(this.#renewEveryMs / 4, 1000))
      return
    }
    if (this.#state === 'ended') return
    if (!held) {
      // A last step that is under way may have ended the claim itself, and says so.
      if (this.#state === 'running' && !this.#isCommitting) this.#lose()
      return
    }
    this.#leaseUntil = askedAt + policy.leaseMs
    this.#renewal = this.#after(Math.min(this.#renewEveryMs, this.#runsUntil - performance.now()))
  }

  #save(outcome: Outcome, ttlMs: number): MaybePromise<boolean> {
    const { subject } = this.#claim
    const { store, call } = this.#context
    return call('complete', () => store.complete(subject.id, this.#token, outcome, ttlMs))
  }

  /**
   * Saves an outcome that a bounded store has no room for without its body: that the operation ended matters more.
   *
   * @returns what is kept, `undefined` when the claim was lost.
   * @throws any other failure, and that of a tombstone.
   */
  async #saveShortened(outcome: Outcome, ttlMs: number, failure: unknown): Promise<Outcome | undefined> {
    if (!(failure instanceof StoreFullError) || outcome.body === null) throw failure
    this.#emit({ type: 'body-not-kept', operation: this.#claim.subject, reason: failure.message })
    const shortened = { ...outcome, body: null }
    return (await this.#save(shortened, ttlMs)) ? shortened : undefined
  }

  async #saveOrShorten(outcome: Outcome, ttlMs: number): Promise<Outcome | undefined> {
    let held: boolean
    try {
      held = await this.#save(outcome, ttlMs)
    } catch (error) {
      return this.#saveShortened(outcome, ttlMs, error)
    }
    return held ? outcome : undefined
  }

  #kept(outcome: Outcome, late: boolean): void {
    const { subject, claimedAt, reads } = this.#claim
    if (this.#context.events.isHeard('completed'))
      this.#emit({
        type: 'completed',
        operation: subject,
        result: outcome.result,
        tombstone: outcome.body === null,
        runMs: performance.now() - claimedAt,
        late,
        facts: () => reads?.(outcome) ?? {},
      })
    this.#end()
  }

  async answerOfTheHolder(): Promise<Answer> {
    const { subject, fingerprint, policy } = this.#claim
    const { store, call } = this.#context
    this.#emit({ type: 'outcome-lost', operation: subject, fence: this.fence })
    this.#end()
    const record = await call('find', () => store.find(subject.id))
    if (record?.status === 'completed' && record.fingerprint === fingerprint)
      return { whose: 'other', outcome: record.outcome }
    if (record === undefined) return OWN
    // What is unknown is not the last word where a retry runs it again, or finds out.
    throw record.status === 'running' || policy.onUnknown !== 'reject'
      ? new KeyInProgressError(subject.key)
      : new OutcomeUnknownError(subject.key)
  }

  #saveLater(outcome: Outcome, ttlMs: number): Promise<void> {
    const { subject } = this.#claim
    return this.#insist(
      async () => {
        const kept = await this.#saveOrShorten(outcome, ttlMs)
        if (kept !== undefined) return this.#kept(kept, true)
        this.#lose()
        this.#emit({ type: 'outcome-lost', operation: subject, fence: this.fence })
        this.#end()
      },
      (error) => this.#emit({ type: 'save-abandoned', operation: subject, error }),
    )
  }

  async #giveBack(): Promise<void> {
    const { subject, claimedAt } = this.#claim
    const { store, call } = this.#context
    const held = await call('release', () => store.release(subject.id, this.#token))
    if (this.#wasReleased(held))
      this.#emit({ type: 'released', operation: subject, runMs: performance.now() - claimedAt })
    else this.#lose()
    this.#end()
  }

  /** While the lease lasts nobody can have taken over: then it was released before, and only the answer was lost. */
  #wasReleased(held: boolean): boolean {
    return held || this.leaseLeftMs() > 0
  }

  /** Tries a last step of this claim again and again, until `maxRun`. */
  async #insist(step: () => Promise<void>, onGivenUp: (error: unknown) => void): Promise<void> {
    // A run that ended close to `maxRun` still gets one lease for its last step.
    const givesUpAt = Math.max(this.#runsUntil, performance.now() + this.#claim.policy.leaseMs)
    for (let attempt = 0; ; attempt += 1) {
      await pause(retryDelayMs(attempt))
      try {
        return await step()
      } catch (error) {
        if (performance.now() < givesUpAt) continue
        onGivenUp(error)
        return this.#end()
      }
    }
  }

  #lose(): void {
    if (this.#isLost) return
    this.#isLost = true
    const { subject } = this.#claim
    this.#emit({ type: 'claim-lost', operation: subject, fence: this.fence })
    this.#abort(new ClaimLostError(subject.key))
  }

  #abort(reason: IdempotencyError): void {
    if (this.#abortReason !== undefined) return
    this.#abortReason = reason
    this.#controller?.abort(reason)
    // A lost claim ends at the commit, which decides. A run that takes too long may never come to it.
    if (reason instanceof MaxRunExceededError) this.#giveUp?.abort(reason)
  }

  #end(): void {
    if (this.#state === 'ended') return
    this.#state = 'ended'
    this.#renewal.cancel()
    const { subject } = this.#claim
    const { events, ended } = this.#context
    ended(subject, this)
    if (events.isHeard('claim-ended'))
      this.#emit({ type: 'claim-ended', operation: subject, fence: this.fence })
  }

  #emit(event: IdempotencyEvent): void {
    this.#context.events.emit(event)
  }
}

function isSame(one: Outcome, other: Outcome): boolean {
  if (one.result !== other.result || one.head !== other.head) return false
  if (one.body === null || other.body === null) return one.body === other.body
  return Buffer.compare(one.body, other.body) === 0
}

/** An execution without a claim: it runs, keeps nothing and never loses anything. */
export function createUnprotectedExecution(parts: {
  readonly deriveKey: DeriveKey
  readonly transaction: PlainTransaction
}): Execution {
  const controller = new AbortController()
  return {
    fence: 0,
    isProtected: false,
    traceparent: undefined,
    signal: controller.signal,
    complete: async () => OWN,
    release: async () => {},
    ...parts,
    saveIn: async () => {},
    decide: async () => undefined,
    keptOutcome: async () => undefined,
    answerOfTheHolder: async () => OWN,
  }
}

/** A transaction that keeps no outcome. */
export type PlainTransaction = <T>(work: TransactionWork<T>) => Promise<EndedTransaction<T>>

/** Exponential, capped, with jitter: how long background work waits before its next attempt. */
export function retryDelayMs(attempt: number): number {
  const longest = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(attempt, 10))
  return longest / 2 + Math.random() * (longest / 2)
}

/** Waits without keeping the process alive. */
export function pause(delayMs: number): Promise<void> {
  return new Promise((resolve) => {
    deadlines.after(delayMs, resolve)
  })
}
