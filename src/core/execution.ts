import {
  ClaimLostError,
  type IdempotencyError,
  KeyInProgressError,
  MaxRunExceededError,
  OutcomeUnknownError,
  StoreFullError,
} from '../contract/errors.js'
import type { IdempotencyStore, Outcome } from '../contract/store.js'
import { type Deadline, deadlines } from './deadlines.js'
import type { EventSubject, Events, IdempotencyEvent } from './events.js'
import type { Policy } from './policy.js'
import type { StoreCalls } from './store-calls.js'

/** The right to run one operation, until it is completed or released. */
export interface Execution {
  /** How many times this operation was claimed: 1, 2, ... Hand it to systems that can compare it. */
  readonly fence: number
  /** Aborts when the claim is lost, when it may be, or when `maxRun` has passed. */
  readonly signal: AbortSignal
  /** Whether a claim stands behind this run. `false` after a store outage with `onStoreOutage: 'run'`. */
  readonly isProtected: boolean

  /**
   * Keeps the outcome, and says which answer the caller gets: its own, or the one that another run kept.
   *
   * A store that is away does not hold the answer back: the first failed attempt lets it go, and saving goes on in
   * the background.
   *
   * @throws {KeyInProgressError | OutcomeUnknownError} when the claim was lost and another run has not ended.
   * @throws {StoreUnavailableError} when the claim was lost and the store cannot say to whom.
   */
  complete(outcome: Outcome, ttlMs?: number): Promise<Answer>

  /** Gives the claim back: nothing was done. A store that is away is asked again in the background. */
  release(): Promise<void>
}

/** Whose answer the caller gets. */
export type Answer = { readonly whose: 'own' } | { readonly whose: 'other'; readonly outcome: Outcome }

/** What an execution needs of the engine. */
export interface ExecutionContext {
  readonly store: IdempotencyStore
  readonly call: StoreCalls
  readonly events: Events
  /** Called once, when the claim is no longer held. */
  readonly onEnd: () => void
  /** Keeps work that goes on after the answer, so that `close` can wait for it. */
  readonly background: (work: Promise<void>) => void
}

/** A claim that this process holds. */
export interface HeldClaim {
  readonly subject: EventSubject
  readonly token: string
  readonly fence: number
  readonly fingerprint: string
  readonly policy: Policy
  /** When the claim was asked for, by the monotonic clock: the lease lasts at least `leaseMs` from then. */
  readonly claimedAt: number
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
export function createExecution(claim: HeldClaim, context: ExecutionContext): LiveExecution {
  return new HeldExecution(claim, context)
}

// A class, since every protected request makes one: a dozen functions that close over it would be a dozen objects.
class HeldExecution implements LiveExecution {
  readonly isProtected = true
  readonly fence: number
  readonly #claim: HeldClaim
  readonly #context: ExecutionContext
  readonly #renewEveryMs: number
  readonly #runsUntil: number
  #leaseUntil: number
  #state: 'running' | 'ending' | 'ended' = 'running'
  #isLost = false
  #controller: AbortController | undefined
  #abortReason: IdempotencyError | undefined
  #renewal: Deadline

  constructor(claim: HeldClaim, context: ExecutionContext) {
    const { fence, policy, claimedAt } = claim
    this.fence = fence
    this.#claim = claim
    this.#context = context
    this.#renewEveryMs = policy.leaseMs / 3
    this.#runsUntil = claimedAt + policy.maxRunMs
    this.#leaseUntil = claimedAt + policy.leaseMs
    this.#renewal = this.#after(Math.min(this.#renewEveryMs, policy.maxRunMs))
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

  async complete(outcome: Outcome, ttlMs = this.#claim.policy.ttlMs): Promise<Answer> {
    if (this.#state !== 'running') return OWN
    this.#state = 'ending'
    let attempt: Kept
    try {
      attempt = await this.#keep(outcome, ttlMs)
    } catch (error) {
      this.#emit({ type: 'save-failed', operation: this.#claim.subject, error })
      this.#context.background(this.#saveLater(outcome, ttlMs))
      return OWN
    }
    if (attempt.held) {
      this.#kept(attempt.outcome, false)
      return OWN
    }
    this.#lose()
    try {
      return await this.#answerOfTheHolder()
    } finally {
      this.#end()
    }
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

  #after(delayMs: number): Deadline {
    return deadlines.after(delayMs, () => this.#tick())
  }

  #tick(): void {
    if (performance.now() < this.#runsUntil) {
      this.#context.background(this.#renew())
      return
    }
    const { subject, fence } = this.#claim
    this.#emit({ type: 'max-run', operation: subject, fence })
    this.#abort(new MaxRunExceededError(subject.key))
  }

  async #renew(): Promise<void> {
    const { subject, token, policy } = this.#claim
    const { store, call } = this.#context
    const askedAt = performance.now()
    let held: boolean
    try {
      held = await call('renew', () => store.renew(subject.id, token, policy.leaseMs), this.#renewEveryMs)
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
      this.#lose()
      return
    }
    this.#leaseUntil = askedAt + policy.leaseMs
    this.#renewal = this.#after(Math.min(this.#renewEveryMs, this.#runsUntil - performance.now()))
  }

  #keep(outcome: Outcome, ttlMs: number): Promise<Kept> {
    const { subject, token } = this.#claim
    const { store, call } = this.#context
    const complete = (kept: Outcome): Promise<Kept> =>
      call('complete', () => store.complete(subject.id, token, kept, ttlMs)).then((held) => ({
        held,
        outcome: kept,
      }))
    return complete(outcome).catch((error: unknown) => {
      if (!(error instanceof StoreFullError) || outcome.body === null) throw error
      // That the operation ended matters more than its body: without it a retry would find it unknown.
      this.#emit({ type: 'body-not-kept', operation: subject, reason: error.message })
      return complete({ ...outcome, body: null })
    })
  }

  #kept(outcome: Outcome, late: boolean): void {
    this.#emit({
      type: 'completed',
      operation: this.#claim.subject,
      result: outcome.result,
      tombstone: outcome.body === null,
      runMs: performance.now() - this.#claim.claimedAt,
      late,
    })
    this.#end()
  }

  async #answerOfTheHolder(): Promise<Answer> {
    const { subject, fence, fingerprint } = this.#claim
    const { store, call } = this.#context
    this.#emit({ type: 'outcome-lost', operation: subject, fence })
    const record = await call('find', () => store.find(subject.id))
    if (record?.status === 'completed' && record.fingerprint === fingerprint)
      return { whose: 'other', outcome: record.outcome }
    if (record === undefined) return OWN
    throw record.status === 'running'
      ? new KeyInProgressError(subject.key)
      : new OutcomeUnknownError(subject.key)
  }

  #saveLater(outcome: Outcome, ttlMs: number): Promise<void> {
    const { subject, fence } = this.#claim
    return this.#insist(
      async () => {
        const saved = await this.#keep(outcome, ttlMs)
        if (saved.held) return this.#kept(saved.outcome, true)
        this.#lose()
        this.#emit({ type: 'outcome-lost', operation: subject, fence })
        this.#end()
      },
      (error) => this.#emit({ type: 'save-abandoned', operation: subject, error }),
    )
  }

  async #giveBack(): Promise<void> {
    const { subject, token, claimedAt } = this.#claim
    const { store, call } = this.#context
    const held = await call('release', () => store.release(subject.id, token))
    // While the lease lasts nobody can have taken over: then it was released before, and only the answer was lost.
    if (held || this.leaseLeftMs() > 0)
      this.#emit({ type: 'released', operation: subject, runMs: performance.now() - claimedAt })
    else this.#lose()
    this.#end()
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
    const { subject, fence } = this.#claim
    this.#emit({ type: 'claim-lost', operation: subject, fence })
    this.#abort(new ClaimLostError(subject.key))
  }

  #abort(reason: IdempotencyError): void {
    if (this.#abortReason !== undefined) return
    this.#abortReason = reason
    this.#controller?.abort(reason)
  }

  #end(): void {
    if (this.#state === 'ended') return
    this.#state = 'ended'
    this.#renewal.cancel()
    this.#context.onEnd()
  }

  #emit(event: IdempotencyEvent): void {
    this.#context.events.emit(event)
  }
}

interface Kept {
  readonly held: boolean
  readonly outcome: Outcome
}

/** An execution without a claim: it runs, keeps nothing and never loses anything. */
export function createUnprotectedExecution(): Execution {
  const controller = new AbortController()
  return {
    fence: 0,
    isProtected: false,
    signal: controller.signal,
    complete: async () => OWN,
    release: async () => {},
  }
}

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
