/** Lets a number of callers in at a time, in the order in which they came. */
export interface Turns {
  /**
   * Waits for a turn, and gives the function that ends it.
   *
   * @throws the reason of `signal`, when it aborts first.
   */
  take(signal?: AbortSignal): Promise<() => void>
}

/** Makes turns for `count` at a time. */
export function createTurns(count: number): Turns {
  let free = count
  const waiting = new Set<() => void>()

  function end(): void {
    const [next] = waiting
    if (next === undefined) free += 1
    else {
      waiting.delete(next)
      next()
    }
  }

  return {
    async take(signal) {
      signal?.throwIfAborted()
      if (free > 0) free -= 1
      else
        await new Promise<void>((resolve, reject) => {
          const onAbort = (): void => {
            waiting.delete(onTurn)
            reject(signal?.reason)
          }
          const onTurn = (): void => {
            signal?.removeEventListener('abort', onAbort)
            resolve()
          }
          signal?.addEventListener('abort', onAbort, { once: true })
          waiting.add(onTurn)
        })
      return end
    },
  }
}
