import { OutcomeUnknownError } from '../contract/errors.js'
import type { ClaimResult, IdempotencyStore } from '../contract/store.js'
import { deadlines } from './deadlines.js'
import type { KeyDerivation } from './derived-keys.js'
import type { Operation } from './engine.js'
import type { EventSubject, Events } from './events.js'
import type { StoreCalls } from './store-calls.js'

/** What to do after the application was asked: look again (an outcome may be kept now), run again, or refuse. */
export type ReconcilerAnswer = 'look-again' | 'rerun' | 'reject'

/** Asks the application how an unknown operation ended. Callers of one id share one question. */
export type Reconciler = (
  subject: EventSubject,
  operation: Operation,
  found: Extract<ClaimResult, { status: 'unknown' }>,
) => Promise<ReconcilerAnswer>

/** Makes the reconciler of one engine. */
export function createReconciler(context: {
  readonly store: IdempotencyStore
  readonly call: StoreCalls
  readonly events: Events
  readonly deriveKey: KeyDerivation
}): Reconciler {
  const { store, call, events } = context
  const asking = new Map<string, Promise<ReconcilerAnswer>>()

  return (subject, operation, found) => {
    const current = asking.get(subject.id)
    if (current !== undefined) return current
    const answer = ask(subject, operation, found).finally(() => asking.delete(subject.id))
    asking.set(subject.id, answer)
    return answer
  }

  async function ask(...[subject, operation, found]: Parameters<Reconciler>): Promise<ReconcilerAnswer> {
    const { policy, key, scope } = operation
    if (typeof policy.onUnknown !== 'function') return policy.onUnknown
    const { fence, meta } = found
    const { firstSeenAt } = meta
    const controller = new AbortController()
    const deadline = deadlines.after(policy.maxRunMs, () =>
      controller.abort(new Error(`onUnknown did not answer within ${policy.maxRunMs} ms`)),
    )
    let answer: Awaited<ReturnType<typeof policy.onUnknown>>
    try {
      const { signal } = controller
      const tooLate = new Promise<never>((_, reject) => {
        signal.addEventListener('abort', () => reject(signal.reason))
      })
      const deriveKey = (label: string): string => context.deriveKey(subject.id, label)
      const asked = policy.onUnknown({ key, scope, fence, meta, deriveKey, signal })
      answer = await Promise.race([asked, tooLate])
    } catch (error) {
      events.emit({ type: 'reconcile-failed', operation: subject, error, fence, firstSeenAt })
      // The application could not tell: to the client the outcome is as unknown as before.
      throw new OutcomeUnknownError(key, { cause: error })
    } finally {
      deadline.cancel()
    }
    const kind = typeof answer === 'string' ? answer : 'outcome'
    events.emit({ type: 'reconciled', operation: subject, answer: kind, fence, firstSeenAt })
    if (typeof answer === 'string') return answer
    const { outcome } = answer
    // `false` means that somebody else ended it meanwhile: the next look finds what they kept.
    await call('settle', () => store.settle(subject.id, outcome, policy.ttlMs))
    return 'look-again'
  }
}
