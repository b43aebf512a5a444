import { isIdempotencyError, StoreUnavailableError } from '../contract/errors.js'
import { isPromise, type MaybePromise } from '../contract/maybe-promise.js'
import { type Deadline, deadlines } from './deadlines.js'
import type { Events, StoreStep } from './events.js'

/**
 * Calls the store: in time, reported, and with one kind of failure. Gives what `call` gives: at once where that is there
 * at once. It never throws: a failure is a rejected promise.
 *
 * It rejects with a `StoreUnavailableError` when the store fails or takes longer than `timeoutMs`. The step may still
 * happen later.
 */
export interface StoreCalls {
  <T>(step: StoreStep, call: () => Promise<T>, timeoutMs?: number): Promise<T>
  <T>(step: StoreStep, call: () => MaybePromise<T>, timeoutMs?: number): MaybePromise<T>
}

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
  readonly events: Pick<Events, 'emit' | 'isHeard'>
  readonly storeTimeoutMs: number
}): StoreCalls {
  const { events, storeTimeoutMs } = options

  function call<T>(step: StoreStep, ask: () => Promise<T>, timeoutMs?: number): Promise<T>
  function call<T>(step: StoreStep, ask: () => MaybePromise<T>, timeoutMs = storeTimeoutMs): MaybePromise<T> {
    const isHeard = events.isHeard('store-call')
    const askedAt = isHeard ? performance.now() : 0
    let answer: MaybePromise<T>
    try {
      answer = ask()
    } catch (cause) {
      // A store that throws before it returns a promise has failed like any other.
      answer = Promise.reject(cause)
    }
    if (isPromise(answer)) return answerIn(answer, { step, timeoutMs, events })
    if (isHeard) events.emit({ type: 'store-call', step, durationMs: performance.now() - askedAt })
    return answer
  }
  return call
}

interface CallSettings {
  readonly step: StoreStep
  readonly timeoutMs: number
  readonly events: Pick<Events, 'emit' | 'isHeard'>
}

function answerIn<T>(answer: Promise<T>, { step, timeoutMs, events }: CallSettings): Promise<T> {
  return new Promise((resolve, reject) => {
    const pending = new PendingCall(step, timeoutMs, events, reject)
    answer.then(
      (value) => {
        if (pending.settle()) resolve(value)
      },
      (error) => pending.fail(error),
    )
  })
}

// A class, since every request makes several.
class PendingCall {
  readonly #step: StoreStep
  readonly #timeoutMs: number
  readonly #events: Pick<Events, 'emit' | 'isHeard'>
  readonly #reject: (error: unknown) => void
  readonly #startedAt = performance.now()
  #isSettled = false
  #halvesLeft = 2
  #dueAt = 0
  #deadline: Deadline

  constructor(
    step: StoreStep,
    timeoutMs: number,
    events: Pick<Events, 'emit' | 'isHeard'>,
    reject: (error: unknown) => void,
  ) {
    this.#step = step
    this.#timeoutMs = timeoutMs
    this.#events = events
    this.#reject = reject
    this.#deadline = this.#waitHalf(this.#startedAt)
  }

  /** Whether this is the first that is heard of its end. */
  settle(error?: unknown): boolean {
    if (this.#isSettled) return false
    this.#isSettled = true
    this.#deadline.cancel()
    if (this.#events.isHeard('store-call')) {
      const ended = {
        type: 'store-call',
        step: this.#step,
        durationMs: performance.now() - this.#startedAt,
      } as const
      this.#events.emit(error === undefined ? ended : { ...ended, error })
    }
    return true
  }

  fail(cause: unknown): void {
    const error = isIdempotencyError(cause)
      ? cause
      : new StoreUnavailableError(`The store failed at "${this.#step}"`, { cause })
    if (this.settle(error)) this.#reject(error)
  }

  #waitHalf(now: number): Deadline {
    const halfMs = this.#timeoutMs / 2
    this.#dueAt = now + halfMs
    return deadlines.after(halfMs, () => this.#onDue(), now)
  }

  #onDue(): void {
    const now = performance.now()
    if (now - this.#dueAt <= STALL_MS) this.#halvesLeft -= 1
    if (this.#halvesLeft > 0) {
      this.#deadline = this.#waitHalf(now)
      return
    }
    this.fail(
      new StoreUnavailableError(`The store did not answer "${this.#step}" within ${this.#timeoutMs} ms`),
    )
  }
}
