import { StoreUnfitError } from '../contract/errors.js'
import type { IdempotencyStore } from '../contract/store.js'
import type { Events } from './events.js'
import { pause } from './execution.js'
import type { StoreCalls } from './store-calls.js'

/** What goes on beside the operations: the store's check, sweeping, and work that outlives its answer. */
export interface Upkeep {
  /** Whether the store has passed its check. */
  readonly isReady: boolean
  /** Checks the store, unless it has passed already. */
  check(): Promise<void>
  /** Keeps track of work that goes on in the background. It must not reject. */
  background(work: Promise<void>): void
  /** Ends sweeping, and waits a while for background work. */
  close(): Promise<void>
}

/** Makes the upkeep of one engine. Sweeping begins once the store has passed its check. */
export function createUpkeep(context: {
  readonly store: IdempotencyStore
  readonly call: StoreCalls
  readonly events: Pick<Events, 'emit'>
  readonly sweepMs: number | false
  readonly storeTimeoutMs: number
}): Upkeep {
  const { store, call, events, sweepMs, storeTimeoutMs } = context
  const underway = new Set<Promise<void>>()
  let isReady = false
  let isClosed = false
  let checking: Promise<void> | undefined
  let sweeper: NodeJS.Timeout | undefined

  function check(): Promise<void> {
    if (isReady) return Promise.resolve()
    checking ??= runCheck()
    return checking
  }

  async function runCheck(): Promise<void> {
    try {
      const warnings =
        store.check === undefined ? [] : await call('check', () => store.check?.() ?? Promise.resolve([]))
      for (const message of warnings) events.emit({ type: 'store-warning', message })
      isReady = true
      scheduleSweep()
    } catch (error) {
      // An unfit store stays unfit until somebody mends it and starts again. One that is away is asked again.
      if (!(error instanceof StoreUnfitError)) checking = undefined
      throw error
    }
  }

  function scheduleSweep(): void {
    if (sweepMs === false || store.sweep === undefined || isClosed) return
    // Jitter keeps the processes of one deployment from sweeping in step.
    sweeper = setTimeout(sweep, sweepMs * (0.5 + Math.random()))
    sweeper.unref()
  }

  async function sweep(): Promise<void> {
    const startedAt = performance.now()
    try {
      // Sweeping takes as long as there is to remove: it is not held to the time of a step.
      const removed = (await store.sweep?.()) ?? 0
      events.emit({ type: 'store-call', step: 'sweep', durationMs: performance.now() - startedAt })
      events.emit({ type: 'swept', removed })
    } catch (error) {
      events.emit({ type: 'store-call', step: 'sweep', durationMs: performance.now() - startedAt, error })
      events.emit({ type: 'store-warning', message: 'Expired records could not be removed', error })
    }
    scheduleSweep()
  }

  return {
    get isReady() {
      return isReady
    },
    check,
    background(work) {
      underway.add(work)
      work.finally(() => underway.delete(work))
    },
    async close() {
      isClosed = true
      clearTimeout(sweeper)
      const grace = pause(storeTimeoutMs)
      while (underway.size > 0) {
        const isOver = await Promise.race([Promise.all(underway).then(() => false), grace.then(() => true)])
        if (isOver) {
          const message = `Closed while ${underway.size} steps at the store were still being tried`
          events.emit({ type: 'store-warning', message })
          return
        }
      }
    },
  }
}
