import { isIdempotencyError, StoreUnavailableError } from '../contract/errors.js'
import { deadlines } from './deadlines.js'
import type { Events, StoreStep } from './events.js'

/**
 * Calls the store: in time, reported, and with one kind of failure. Resolves with what `call` resolves with.
 *
 * @throws {StoreUnavailableError} when it fails or takes longer than `timeoutMs`. The step may still happen later.
 */
export type StoreCalls = <T>(step: StoreStep, call: () => Promise<T>, timeoutMs?: number) => Promise<T>

/** How late a deadline may come without anything being wrong: a busy process is late by some milliseconds. */
const STALL_MS = 100

/**
 * Makes the one way through which the engine reaches its store.
 *
 * Time in which this process did not run is not held against the store. A process that was stopped finds its deadlines
 * passed before it has read an answer that came meanwhile, or has sent the call at all. So the time is given in two
 * halves, and a half that ended late is given again: after a stall, the store has at least one half.
 */
export function createStoreCalls(options: {
  readonly events: Pick<Events, 'emit'>
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
      const halfMs = timeoutMs / 2
      let halvesLeft = 2
      let dueAt = startedAt + halfMs
      let deadline = deadlines.after(halfMs, onDue)
      function onDue(): void {
        const now = performance.now()
        if (now - dueAt <= STALL_MS) halvesLeft -= 1
        if (halvesLeft > 0) {
          dueAt = now + halfMs
          deadline = deadlines.after(halfMs, onDue)
          return
        }
        const error = new StoreUnavailableError(`The store did not answer "${step}" within ${timeoutMs} ms`)
        if (settle(error)) reject(error)
      }
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
