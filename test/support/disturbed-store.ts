import type { IdempotencyStore } from '../../src/contract/store.js'

/** The steps that can be disturbed. */
type Step = 'claim' | 'renew' | 'complete' | 'release' | 'find' | 'settle'

/** A real store behind a line that can fail, stall, and lose answers. */
export interface DisturbedStore {
  readonly store: IdempotencyStore
  /** How often each step was asked for. */
  readonly calls: Record<Step, number>
  /** From now on the step is disturbed: it fails, never gets through, or gets through and its answer is lost. */
  disturb(step: Step, how: 'fails' | 'stalls' | 'loses-answer'): void
  heal(): void
}

/** Puts a line that can be disturbed between an engine and a store. The store behind it is real. */
export function disturbed(inner: IdempotencyStore): DisturbedStore {
  const disturbances = new Map<Step, 'fails' | 'stalls' | 'loses-answer'>()
  const calls: Record<Step, number> = { claim: 0, renew: 0, complete: 0, release: 0, find: 0, settle: 0 }

  async function through<T>(step: Step, call: () => Promise<T>): Promise<T> {
    calls[step] += 1
    const how = disturbances.get(step)
    if (how === 'fails') throw new Error(`the line is down at ${step}`)
    if (how === 'stalls') return new Promise(() => {})
    const answer = await call()
    return how === 'loses-answer' ? new Promise(() => {}) : answer
  }

  return {
    calls,
    disturb: (step, how) => disturbances.set(step, how),
    heal: () => disturbances.clear(),
    store: {
      claim: (request) => through('claim', async () => inner.claim(request)),
      renew: (...args) => through('renew', () => inner.renew(...args)),
      complete: (...args) => through('complete', async () => inner.complete(...args)),
      release: (...args) => through('release', () => inner.release(...args)),
      find: (id) => through('find', () => inner.find(id)),
      settle: (...args) => through('settle', () => inner.settle(...args)),
    },
  }
}
