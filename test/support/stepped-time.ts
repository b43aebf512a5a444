/** A clock that stands still until somebody sets it forward, with the timers that were set by it. */
export interface SteppedClock {
  nowMs: number
  readonly timers: Set<SteppedTimer>
}

/** A timer of a stepped clock, in the shape of Node's. */
export interface SteppedTimer {
  readonly atMs: number
  readonly due: () => void
  readonly clock: SteppedClock
  ref(): SteppedTimer
  unref(): SteppedTimer
}

let current: SteppedClock | undefined

/** Makes a clock. */
export function steppedClock(nowMs: number): SteppedClock {
  return { nowMs, timers: new Set() }
}

/** Runs `work`, which must not wait for anything, by another clock. */
export function byClock<T>(clock: SteppedClock, work: () => T): T {
  const before = current
  current = clock
  try {
    return work()
  } finally {
    current = before
  }
}

/**
 * Runs `work` by a clock, with everything that follows from it until there is nothing to do but wait: the event loop
 * comes to its next phase only after the last promise has called the last `then`.
 */
export async function turn(clock: SteppedClock, work: () => void): Promise<void> {
  current = clock
  try {
    work()
    await new Promise((resolve) => setImmediate(resolve))
  } finally {
    current = undefined
  }
}

/** The timer that comes due next, if there is one. */
export function nextTimer(clock: SteppedClock): SteppedTimer | undefined {
  let next: SteppedTimer | undefined
  for (const timer of clock.timers) if (next === undefined || timer.atMs < next.atMs) next = timer
  return next
}

/** Lets the next timer fire, which must be due, and everything follow from it. */
export async function fireNext(clock: SteppedClock): Promise<void> {
  const timer = nextTimer(clock)
  if (timer === undefined) return
  clock.timers.delete(timer)
  await turn(clock, timer.due)
}

/**
 * Ends what goes by clocks that are no longer needed: lets their timers fire until none is left. In turns, long after the
 * last one, which ends whatever gives up in the end, and each at its own time, since one that fires late is not held
 * against the store.
 *
 * @returns a time that is later than all of theirs.
 */
export async function runOut(clocks: readonly SteppedClock[], leave: () => void): Promise<number> {
  const late = steppedClock(Math.max(...clocks.map(({ nowMs }) => nowMs)) + LONG_MS)
  const left = (): SteppedTimer[] => [late, ...clocks].flatMap((clock) => [...clock.timers])
  const fire = (timers: readonly SteppedTimer[]): Promise<void> =>
    turn(late, () => {
      for (const timer of timers) {
        timer.clock.timers.delete(timer)
        timer.due()
      }
    })
  await turn(late, leave)
  for (let round = 0; round < MOST_ROUNDS; round += 1) {
    if (left().length === 0) return late.nowMs
    late.nowMs += LONG_MS
    await fire(left())
    for (let step = 0; step < ON_TIME && left().length > 0; step += 1) {
      late.nowMs = Math.max(late.nowMs, Math.min(...left().map(({ atMs }) => atMs)))
      await fire(left().filter(({ atMs }) => atMs <= late.nowMs))
    }
  }
  throw new Error('Timers are set again and again, although nobody needs them')
}

const MOST_ROUNDS = 20

/** How many timers in a row fire at their own time. */
const ON_TIME = 4

/** Longer than any timer is set for. */
const LONG_MS = 1e9

/**
 * While `work` runs, `setTimeout`, `clearTimeout` and `performance.now` go by the clock in whose `turn` they are called,
 * and are real outside of one. Chance always falls in the middle.
 */
export async function inSteppedTime<T>(work: () => Promise<T>): Promise<T> {
  const real = { setTimeout, clearTimeout, random: Math.random, stackTraceLimit: Error.stackTraceLimit }
  const now = performance.now.bind(performance)
  Object.defineProperty(performance, 'now', { configurable: true, value: () => current?.nowMs ?? now() })
  globalThis.setTimeout = ((due: (...rest: unknown[]) => void, delayMs = 0, ...rest: unknown[]) =>
    current === undefined
      ? real.setTimeout(() => due(...rest), delayMs)
      : timerOf(current, () => due(...rest), delayMs)) as never
  globalThis.clearTimeout = ((timer: unknown) => {
    if (isStepped(timer)) timer.clock.timers.delete(timer)
    else real.clearTimeout(timer as NodeJS.Timeout | undefined)
  }) as never
  Math.random = () => 0.5
  Error.stackTraceLimit = 0
  try {
    return await work()
  } finally {
    Reflect.deleteProperty(performance, 'now')
    Object.assign(globalThis, { setTimeout: real.setTimeout, clearTimeout: real.clearTimeout })
    Math.random = real.random
    Error.stackTraceLimit = real.stackTraceLimit
  }
}

function timerOf(clock: SteppedClock, due: () => void, delayMs: number): SteppedTimer {
  const timer: SteppedTimer = {
    atMs: clock.nowMs + Math.max(1, delayMs),
    due,
    clock,
    ref: () => timer,
    unref: () => timer,
  }
  clock.timers.add(timer)
  return timer
}

function isStepped(timer: unknown): timer is SteppedTimer {
  return typeof timer === 'object' && timer !== null && 'clock' in timer
}
