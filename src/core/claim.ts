import { isPromise, type MaybePromise } from '../contract/maybe-promise.js'
import type { ClaimResult, IdempotencyStore } from '../contract/store.js'
import type { Events } from './events.js'
import { type ClaimIntent, type LiveExecution, pause, retryDelayMs } from './execution.js'
import type { StoreCalls } from './store-calls.js'
import { newToken } from './token.js'
import type { Upkeep } from './upkeep.js'

/** What a claim needs of the engine. */
export interface ClaimContext {
  readonly store: IdempotencyStore
  readonly call: StoreCalls
  readonly events: Events
  readonly upkeep: Upkeep
}

/**
 * A claim that the store is asked for. One that gets no answer in time may still be granted later, to nobody: whoever asked
 * abandons it then.
 */
// One object from the claim to its end, since every protected request makes one: it stands for what this process has in
// flight, and for what its execution holds.
export class ClaimAttempt {
  readonly intent: ClaimIntent
  readonly token = newToken()
  readonly answer: MaybePromise<ClaimResult>
  /** Who runs under it, once it was granted. */
  execution: LiveExecution | undefined
  readonly #context: ClaimContext
  /** What the store itself will say, however late. */
  #late: MaybePromise<ClaimResult> | undefined

  constructor(intent: ClaimIntent, context: ClaimContext) {
    this.intent = intent
    this.#context = context
    this.answer = context.call('claim', () => this.#ask())
  }

  #ask(): MaybePromise<ClaimResult> {
    const { subject, fingerprint, policy, takeOver } = this.intent
    this.#late = this.#context.store.claim({
      id: subject.id,
      token: this.token,
      fingerprint,
      leaseMs: policy.leaseMs,
      // An unresolved claim must be remembered for at least as long as it may still run.
      ttlMs: Math.max(policy.ttlMs, policy.maxRunMs + policy.leaseMs),
      takeOver,
      mayBeLost: policy.atomic,
      meta: { key: subject.key, route: subject.route, scope: subject.scope, firstSeenAt: Date.now() },
    })
    return this.#late
  }

  /** Gives it back in the background, so that the key is not stuck for a lease and then unknown although nothing ran. */
  abandon(error: unknown): void {
    const { events, upkeep } = this.#context
    events.emit({ type: 'claim-abandoned', operation: this.intent.subject, error })
    if (this.#late !== undefined && isPromise(this.#late)) upkeep.background(this.#giveBack(this.#late))
  }

  async #giveBack(claim: Promise<ClaimResult>): Promise<void> {
    const { subject, policy } = this.intent
    const { store, call, events } = this.#context
    let fate = 'open' as 'open' | 'granted' | 'refused' | 'failed'
    claim.then(
      (result) => {
        fate = result.status === 'acquired' ? 'granted' : 'refused'
      },
      () => {
        fate = 'failed'
      },
    )
    const givesUpAt = performance.now() + policy.maxRunMs
    let misses = 0
    for (let attempt = 0; performance.now() < givesUpAt; attempt += 1) {
      await pause(retryDelayMs(attempt))
      if (fate === 'refused') return
      const asked = fate
      try {
        if (await call('release', () => store.release(subject.id, this.token))) return
        if (asked === 'granted') return
        // While the claim is open a `false` proves nothing: the claim may be on its way. After it has failed, one proves
        // little: a server that was held up may come to the release first. Two are enough, since the second release
        // was sent to a server that answers again.
        if (asked === 'failed') misses += 1
        if (misses === 2) return
      } catch (error) {
        events.emit({ type: 'release-failed', operation: subject, error })
      }
    }
  }
}
