/** In place of a result: the step goes in a statement of its own after all, for which no others wait. */
export const ALONE = Symbol('alone')

/** How the steps that come together are sent. */
export interface Batching<TStep, TResult> {
  /** Carries out one step in a statement of its own. */
  one(step: TStep): Promise<TResult>
  /**
   * Carries out several steps in one statement, and gives a result for each, in their order. When it rejects, none of
   * them was carried out, or carrying it out again changes nothing; nor does it for a step that is to go `ALONE`.
   */
  many(steps: readonly TStep[]): Promise<readonly (TResult | typeof ALONE)[]>
  /** Whether the rejection of `many` may be the fault of one step alone: then each is sent in a statement of its own. */
  isOnesFault(error: unknown): boolean
}

/** Carries out a step, together with others or alone. */
export type Batch<TStep, TResult> = (step: TStep) => Promise<TResult>

interface Waiting<TStep, TResult> {
  readonly step: TStep
  readonly resolve: (result: TResult) => void
  readonly reject: (error: unknown) => void
}

/** How many steps share a statement at most: all of them wait for the last one. */
const LARGEST_BATCH = 64

/**
 * How many statements of one kind are under way at most, and how many steps have to wait for another one to leave beside
 * the first: while the database flushes its log for one, it works on the other, and this process on what the last one gave.
 */
const MOST_UNDER_WAY = 2
const WORTH_ANOTHER = 16

/** How long steps wait for statements that are under way. One whose connection has died must not hold back all others. */
const PATIENCE_MS = 50

/**
 * Lets the steps that come up while a statement is under way travel together in the next one. What comes up in one turn of
 * the event loop leaves at its end; alone, a step is a statement as if there were no batches.
 */
export function createBatch<TStep, TResult>(batching: Batching<TStep, TResult>): Batch<TStep, TResult> {
  let waiting: Waiting<TStep, TResult>[] = []
  /** The statements that are waited for: each by its steps. */
  const underWay = new Set<readonly Waiting<TStep, TResult>[]>()
  let isDue = false
  let impatience: NodeJS.Timeout | undefined

  function proceed(): void {
    if (isDue || waiting.length === 0) return
    const isWorthAnother = underWay.size < MOST_UNDER_WAY && waiting.length >= WORTH_ANOTHER
    if (underWay.size > 0 && !isWorthAnother) {
      impatience ??= setTimeout(losePatience, PATIENCE_MS)
      return
    }
    isDue = true
    setImmediate(sendNext)
  }

  function losePatience(): void {
    underWay.clear()
    sendNext()
  }

  function sendNext(): void {
    clearTimeout(impatience)
    impatience = undefined
    isDue = false
    if (waiting.length === 0) return
    const together = waiting.slice(0, LARGEST_BATCH)
    waiting = waiting.slice(LARGEST_BATCH)
    underWay.add(together)
    send(together).then(() => {
      underWay.delete(together)
      proceed()
    })
    proceed()
  }

  async function send(together: readonly Waiting<TStep, TResult>[]): Promise<void> {
    const [first, ...others] = together
    if (first === undefined) return
    if (others.length === 0) return alone(first)
    try {
      const results = await batching.many(together.map(({ step }) => step))
      for (const [index, each] of together.entries()) {
        const result = results[index] as TResult | typeof ALONE
        if (result === ALONE) alone(each)
        else each.resolve(result)
      }
    } catch (error) {
      if (batching.isOnesFault(error)) await Promise.all(together.map(alone))
      else for (const { reject } of together) reject(error)
    }
  }

  function alone({ step, resolve, reject }: Waiting<TStep, TResult>): Promise<void> {
    return batching.one(step).then(resolve, reject)
  }

  return (step) =>
    new Promise((resolve, reject) => {
      waiting.push({ step, resolve, reject })
      proceed()
    })
}
