/** Something that may happen next. */
export interface Step {
  /** The same in every schedule in which the same thing happens. */
  readonly id: string
  /**
   * What the step reads or changes, and what may enable it or stand in its way. Two steps that have nothing in common
   * lead to the same state, in whichever order they are taken.
   */
  readonly touches: readonly string[]
  /** Whether the schedule may come to its end without it. */
  readonly isOptional?: boolean
  take(): void | Promise<void>
}

/** What is explored: a state, and what may happen in it. The same steps must always lead to the same state. */
export interface World {
  /** What may happen next. Nothing, when the schedule is over. */
  steps(): readonly Step[]
  /** What happened so far, a line each. */
  readonly history: readonly string[]
  /** Checks the schedule that is over, or clears up one that is not gone on with. */
  end(how: 'over' | 'given up'): Promise<void>
}

/** How a world is explored. */
export interface ExploreOptions {
  /**
   * Whether schedules that only differ in the order of steps with nothing in common count as one.
   *
   * @default true
   */
  readonly reduced?: boolean
}

/** A schedule in which a promise is broken. Its message tells the history. */
export class BrokenPromiseError extends Error {
  override readonly name = 'BrokenPromiseError'
}

/** Steps may be named with this to have something in common with every other. */
export const EVERYTHING = 'everything'

interface Branch {
  /** What is tried here, one after the other. */
  readonly candidates: readonly Known[]
  /** Steps that lead from here only to schedules that were explored before. */
  readonly asleep: readonly Known[]
  chosen: number
}

type Known = Pick<Step, 'id' | 'touches'>

/**
 * Runs every schedule of a world to its end, depth first: each from the start, since what runs in it cannot be copied
 * or turned back.
 *
 * Of schedules that turn into each other when neighbours with nothing in common swap places, reduced exploration runs
 * one. It has two means. Where an actor's next steps touch nothing but the actor itself, only those are tried: nobody
 * can come between (a "persistent set"). And a step that was explored sleeps until something happens that has to do with
 * it (a "sleep set"). So every actor, and everything they share, still goes through all it can go through. What is left
 * out are states that only somebody who looks into two actors at once could tell from others: a check must not do that.
 *
 * @see Godefroid, Partial-Order Methods for the Verification of Concurrent Systems, 1996
 * @returns how many schedules were run to their end.
 * @throws {BrokenPromiseError} with the history of the first schedule that throws.
 */
export async function explore(
  start: () => World,
  { reduced = true }: ExploreOptions = {},
): Promise<{ readonly schedules: number }> {
  const branches: Branch[] = []
  let schedules = 0
  do {
    const world = start()
    try {
      await replay(world, branches)
      const isOver = await goOn(world, branches, reduced)
      if (isOver) schedules += 1
      await world.end(isOver ? 'over' : 'given up')
    } catch (error) {
      await world.end('given up').catch(() => {
        // The schedule has failed already, and that is what is to be told.
      })
      throw new BrokenPromiseError(told(error, world.history, schedules), { cause: error })
    }
  } while (turnBack(branches))
  return { schedules }
}

/** Takes the steps that lead to the last branch again. */
async function replay(world: World, branches: readonly Branch[]): Promise<void> {
  for (const branch of branches) {
    const chosen = chosenAt(branch)
    const step = world.steps().find(({ id }) => id === chosen.id)
    if (step === undefined) throw new Error(`The same steps led to another state: there is no "${chosen.id}"`)
    await step.take()
  }
}

/** Takes the first step at every new branch, to the end. @returns `false` where all that is left was explored before. */
async function goOn(world: World, branches: Branch[], reduced: boolean): Promise<boolean> {
  for (;;) {
    const steps = world.steps()
    if (steps.length === 0) return true
    const asleep = reduced ? stillAsleep(branches.at(-1)) : []
    const candidates = (reduced ? enough(steps) : steps).filter(
      ({ id }) => !asleep.some((other) => other.id === id),
    )
    const [first] = candidates
    if (first === undefined) return false
    branches.push({ candidates: candidates.map(known), asleep, chosen: 0 })
    await first.take()
  }
}

/** The steps of an actor that touch nothing else, one of which must come; all steps, where there is no such actor. */
function enough(steps: readonly Step[]): readonly Step[] {
  for (const { touches, isOptional } of steps) {
    const [actor] = touches
    if (isOptional || touches.length > 1 || actor === undefined) continue
    const own = steps.filter((step) => step.touches.includes(actor))
    if (own.every((step) => step.touches.length === 1)) return own
  }
  return steps
}

/** What sleeps after the step that was chosen at `branch`. */
function stillAsleep(branch: Branch | undefined): readonly Known[] {
  if (branch === undefined) return []
  const chosen = chosenAt(branch)
  const explored = branch.candidates.slice(0, branch.chosen)
  return [...branch.asleep, ...explored].filter((other) => !haveInCommon(other, chosen))
}

function haveInCommon(one: Known, other: Known): boolean {
  if (one.touches.includes(EVERYTHING) || other.touches.includes(EVERYTHING)) return true
  return one.touches.some((what) => other.touches.includes(what))
}

/** Goes back to the last branch where something is left to try. @returns `false` when all is explored. */
function turnBack(branches: Branch[]): boolean {
  for (;;) {
    const branch = branches.at(-1)
    if (branch === undefined) return false
    branch.chosen += 1
    if (branch.chosen < branch.candidates.length) return true
    branches.pop()
  }
}

function chosenAt({ candidates, chosen }: Branch): Known {
  const step = candidates[chosen]
  if (step === undefined) throw new Error('A branch has nothing left to try')
  return step
}

function known({ id, touches }: Step): Known {
  return { id, touches }
}

function told(error: unknown, history: readonly string[], before: number): string {
  const what = error instanceof Error ? error.message : String(error)
  const lines = history.map((line, index) => `  ${String(index + 1).padStart(3)}. ${line}`)
  return `${what}\nafter ${before} schedules without a breach, in this one:\n${lines.join('\n')}`
}
