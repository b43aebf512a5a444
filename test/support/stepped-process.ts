import { type SteppedClock, steppedClock } from './stepped-time.js'

/** A process that does nothing by itself: whatever it comes to waits until it is told to take the step. */
export interface SteppedProcess {
  readonly name: string
  readonly clock: SteppedClock
  readonly parked: readonly ParkedStep[]
  readonly state: 'stepped' | 'free' | 'crashed' | 'gone'
  /** Goes up whenever something happens in it, so that a step that did nothing can be told. */
  readonly doings: number
  /** Waits for the step to be taken. A free process takes it at once, a crashed one never. */
  park(step: ComingStep): ParkedStep | undefined
  /** Takes a step, or loses it, where it can be lost. */
  take(step: ParkedStep, how?: 'take' | 'lose'): void
  /** Takes a step away that nobody waits for any more. */
  withdraw(step: ParkedStep): void
  /** Notes that something happened. */
  stir(): void
  /** From now on it takes each step at once. */
  free(): void
  /** Nothing that it waits for ever happens. */
  crash(): void
  /** It is no longer needed: what is left of it may come to its end, and reaches nobody. */
  leave(): void
}

/** A step that a process has come to. */
export interface ComingStep {
  readonly what: string
  /** Beside the process itself. */
  readonly touches: readonly string[]
  /** Whether it can be taken although its own process has the record locked. */
  readonly holdsRow?: boolean
  readonly take: () => void
  /** The step is lost on its way: what happens then, in place of it. */
  readonly lose?: (() => void) | undefined
  /** What happens to who waits for it, when the process is gone. */
  readonly abandon?: () => void
  /** Numbers steps that come from outside on their own, since they may come before or after those of the process. */
  readonly series?: string
}

/** A step that waits to be taken. */
export interface ParkedStep extends ComingStep {
  /** The same in every schedule in which this process did the same before. */
  readonly id: string
}

/** Makes a process that has not begun. */
export function steppedProcess(name: string, nowMs: number): SteppedProcess {
  const clock = steppedClock(nowMs)
  const counts = new Map<string, number>()
  let parked: ParkedStep[] = []
  let never: readonly ParkedStep[] = []
  let state: SteppedProcess['state'] = 'stepped'
  let doings = 0

  function withdraw(step: ParkedStep): void {
    parked = parked.filter((other) => other !== step)
  }

  return {
    name,
    clock,
    get parked() {
      return parked
    },
    get state() {
      return state
    },
    get doings() {
      return doings
    },
    park(step) {
      doings += 1
      if (state === 'free') step.take()
      if (state !== 'stepped') return undefined
      const { series = 'step' } = step
      const count = (counts.get(series) ?? 0) + 1
      counts.set(series, count)
      const waiting = { ...step, id: `${name} ${series} ${count}` }
      parked = [...parked, waiting]
      return waiting
    },
    take(step, how = 'take') {
      doings += 1
      withdraw(step)
      step[how]?.()
    },
    withdraw,
    stir() {
      doings += 1
    },
    free() {
      if (state === 'stepped') state = 'free'
    },
    crash() {
      state = 'crashed'
      never = parked
      parked = []
    },
    leave() {
      state = 'gone'
      for (const { abandon } of [...never, ...parked]) abandon?.()
      parked = []
    },
  }
}
