import { isIdempotencyError, StoreUnavailableError } from '../contract/errors.js'
import { deadlines } from './deadlines.js'
import type { Events, StoreStep } from './events.js'

/**
 * Calls the store: in time, reported, and with one kind of failure. Resolves with what `call` resolves with.
 *
 * @throws {StoreUnavailableError} when it fails or takes longer than `timeoutMs`. The step may still happen later.
 */
export type StoreCalls = <T>(step: StoreStep, call: () => Promise<T>, timeoutMs?: number) => Promise<T>

/** Makes the one way through which the engine reaches its store. */
export function createStoreCalls(options: {
  readonly events: Events
  readonly storeTimeoutMs: number
}): StoreCalls {
  const { events, storeTimeoutMs } = options
  return (step, call, timeoutMs = storeTimeoutMs) =>
    new Promise((resolve, reject) => {
      const startedAt = performance.now()
      let settled = false
      const settle = (error?: unknown): boolean => {
        if (settled) return false
        settled = true
        deadline.cancel()
        const durationMs = performance.now() - startedAt
        events.emit(
          error === undefined
            ? { type: 'store-call', step, durationMs }
            : { type: 'store-call', step, durationMs, error },
        )
        return true
      }
      const deadline = deadlines.after(timeoutMs, () => {
        const error = new StoreUnavailableError(`The store did not answer "${step}" within ${timeoutMs} ms`)
        if (settle(error)) reject(error)
      })
      const failed = (cause: unknown): void => {
        const error = isIdempotencyError(cause)
          ? cause
          : new StoreUnavailableError(`The store failed at "${step}"`, { cause })
        if (settle(error)) reject(error)
      }
      try {
        call().then((value) => {
          if (settle()) resolve(value)
        }, failed)
      } catch (error) {
        // A store that throws before it returns a promise has failed like any other.
        failed(error)
      }
    })
}
