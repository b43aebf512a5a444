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
import type { EventSubject, Events } from './events.js'
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
  /** Called once, when the claim is no longer held. `kept` is the outcome that the store has now, if it has ours. */
  readonly onEnd: (kept: { readonly outcome: Outcome; readonly ttlMs: number } | undefined) => void
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
  const { subject, token, fence, policy, claimedAt } = claim
  const { store, call, events, background } = context
  const { id } = subject
  const renewEveryMs = policy.leaseMs / 3
  const runsUntil = claimedAt + policy.maxRunMs

  let leaseUntil = claimedAt + policy.leaseMs
  let state: 'running' | 'ending' | 'ended' = 'running'
  let lost = false
  let controller: AbortController | undefined
  let abortReason: IdempotencyError | undefined
  let renewal: Deadline = deadlines.after(Math.min(renewEveryMs, policy.maxRunMs), tick)

  function tick(): void {
    const now = performance.now()
    if (now >= runsUntil) {
      events.emit({ type: 'max-run', operation: subject, fence })
      abort(new MaxRunExceededError(subject.key))
      return
    }
    background(renew())
  }

  async function renew(): Promise<void> {
    const askedAt = performance.now()
    let held: boolean
    try {
      held = await call('renew', () => store.renew(id, token, policy.leaseMs), renewEveryMs)
    } catch (error) {
      if (state === 'ended') return
      events.emit({ type: 'renewal-failed', operation: subject, error })
      if (performance.now() >= leaseUntil) lose()
      // Soon again, and not at once: a store that refuses connections answers in no time.
      renewal = deadlines.after(Math.min(renewEveryMs / 4, 1000), tick)
      return
    }
    if (state === 'ended') return
    if (!held) {
      lose()
      return
    }
    leaseUntil = askedAt + policy.leaseMs
    renewal = deadlines.after(Math.min(renewEveryMs, runsUntil - performance.now()), tick)
  }

  function lose(): void {
    if (lost) return
    lost = true
    events.emit({ type: 'claim-lost', operation: subject, fence })
    abort(new ClaimLostError(subject.key))
  }

  function abort(reason: IdempotencyError): void {
    if (abortReason !== undefined) return
    abortReason = reason
    controller?.abort(reason)
  }

  function end(kept?: { readonly outcome: Outcome; readonly ttlMs: number }): void {
    if (state === 'ended') return
    state = 'ended'
    renewal.cancel()
    context.onEnd(kept)
  }

  function keep(
    outcome: Outcome,
    ttlMs: number,
  ): Promise<{ readonly held: boolean; readonly outcome: Outcome }> {
    return call('complete', () => store.complete(id, token, outcome, ttlMs)).then(
      (held) => ({ held, outcome }),
      async (error: unknown) => {
        if (!(error instanceof StoreFullError) || outcome.body === null) throw error
        // That the operation ended matters more than its body: without it a retry would find it unknown.
        const tombstone: Outcome = { ...outcome, body: null }
        events.emit({ type: 'body-not-kept', operation: subject, reason: error.message })
        return {
          held: await call('complete', () => store.complete(id, token, tombstone, ttlMs)),
          outcome: tombstone,
        }
      },
    )
  }

  function kept(outcome: Outcome, ttlMs: number, late: boolean): void {
    events.emit({
      type: 'completed',
      operation: subject,
      result: outcome.result,
      tombstone: outcome.body === null,
      runMs: performance.now() - claimedAt,
      late,
    })
    end({ outcome, ttlMs })
  }

  async function complete(outcome: Outcome, ttlMs = policy.ttlMs): Promise<Answer> {
    if (state !== 'running') return OWN
    state = 'ending'
    let attempt: Awaited<ReturnType<typeof keep>>
    try {
      attempt = await keep(outcome, ttlMs)
    } catch (error) {
      events.emit({ type: 'save-failed', operation: subject, error })
      background(saveLater(outcome, ttlMs))
      return OWN
    }
    if (attempt.held) {
      kept(attempt.outcome, ttlMs, false)
      return OWN
    }
    lose()
    try {
      return await answerOfTheHolder()
    } finally {
      end()
    }
  }

  async function answerOfTheHolder(): Promise<Answer> {
    events.emit({ type: 'outcome-lost', operation: subject, fence })
    const record = await call('find', () => store.find(id))
    if (record?.status === 'completed' && record.fingerprint === claim.fingerprint)
      return { whose: 'other', outcome: record.outcome }
    if (record === undefined) return OWN
    throw record.status === 'running'
      ? new KeyInProgressError(subject.key)
      : new OutcomeUnknownError(subject.key)
  }

  function saveLater(outcome: Outcome, ttlMs: number): Promise<void> {
    return insist(
      async () => {
        const saved = await keep(outcome, ttlMs)
        if (saved.held) return kept(saved.outcome, ttlMs, true)
        lose()
        events.emit({ type: 'outcome-lost', operation: subject, fence })
        end()
      },
      (error) => events.emit({ type: 'save-abandoned', operation: subject, error }),
    )
  }

  async function release(): Promise<void> {
    if (state !== 'running') return
    state = 'ending'
    const giveBack = async (): Promise<void> => {
      released(await call('release', () => store.release(id, token)))
    }
    const failed = (error: unknown): void =>
      events.emit({ type: 'release-failed', operation: subject, error })
    try {
      await giveBack()
    } catch (error) {
      failed(error)
      background(insist(giveBack, failed))
    }
  }

  /** Tries a last step of this claim again and again, until `maxRun`. */
  async function insist(step: () => Promise<void>, onGivenUp: (error: unknown) => void): Promise<void> {
    // A run that ended close to `maxRun` still gets one lease for its last step.
    const givesUpAt = Math.max(runsUntil, performance.now() + policy.leaseMs)
    for (let attempt = 0; ; attempt += 1) {
      await pause(retryDelayMs(attempt))
      try {
        return await step()
      } catch (error) {
        if (performance.now() < givesUpAt) continue
        onGivenUp(error)
        return end()
      }
    }
  }

  function released(held: boolean): void {
    if (held) events.emit({ type: 'released', operation: subject, runMs: performance.now() - claimedAt })
    else lose()
    end()
  }

  return {
    fence,
    isProtected: true,
    get signal() {
      if (controller === undefined) {
        controller = new AbortController()
        if (abortReason !== undefined) controller.abort(abortReason)
      }
      return controller.signal
    },
    leaseLeftMs: () => (lost ? 0 : leaseUntil - performance.now()),
    complete,
    release,
  }
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
