import { randomUUID } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'
import { createIdempotency, type IdempotencyStore, isIdempotencyError } from '../../src/index.js'

/** What came of one operation. */
export interface Answered {
  readonly key: string
  /** The first answer that its caller got. */
  readonly answer: number
  readonly answeredAt: number
}

/** Operations that are tried again until they have an answer, and what each of them did. */
export interface RetriedOperations {
  /** Operations with an answer, in the order of their answers. */
  readonly answered: readonly Answered[]
  /** What refused an attempt, by code, and how often. */
  readonly refusals: ReadonlyMap<string, number>
  /** The longest that one attempt took, in milliseconds. */
  readonly longestAttemptMs: number
  effectsOf(key: string): number
  /** Does so many new operations, at once. */
  perform(count: number): Promise<void>
  /** Does new operations, so many at a time, until it is told to stop. @returns how to. */
  start(concurrency: number): () => Promise<void>
  /** Tries every answered operation again. @returns their answers now, in the order of `answered`. */
  retryAll(): Promise<number[]>
  close(): Promise<void>
}

const WORK_MS = 5
const RETRIES_AT_ONCE = 32

/** Makes clients of one store. Each operation is an effect that can be counted, and answers with how many there were. */
export function retriedOperations(
  store: IdempotencyStore,
  options: { readonly storeTimeoutMs: number },
): RetriedOperations {
  const effects = new Map<string, number>()
  const answered: Answered[] = []
  const refusals = new Map<string, number>()
  let longestAttemptMs = 0
  // No replay cache: what the store has forgotten must show.
  const idempotency = createIdempotency({ store, storeTimeout: options.storeTimeoutMs, replayCache: false })

  async function perform(count: number): Promise<void> {
    await Promise.all(Array.from({ length: count }, performOne))
  }

  async function performOne(): Promise<void> {
    const key = randomUUID()
    const answer = await untilAnswered(key)
    answered.push({ key, answer, answeredAt: performance.now() })
  }

  async function untilAnswered(key: string): Promise<number> {
    for (;;) {
      const startedAt = performance.now()
      try {
        return await attempt(key)
      } catch (error) {
        if (!isIdempotencyError(error) || !error.retryable) throw error
        refusals.set(error.code, (refusals.get(error.code) ?? 0) + 1)
      } finally {
        longestAttemptMs = Math.max(longestAttemptMs, performance.now() - startedAt)
      }
      await pause(25)
    }
  }

  function attempt(key: string): Promise<number> {
    return idempotency.run({ scope: 'shared', key }, async () => {
      const count = (effects.get(key) ?? 0) + 1
      effects.set(key, count)
      // Work takes time. Whatever breaks meanwhile finds operations at every step.
      await pause(WORK_MS)
      return count
    })
  }

  async function retryAll(): Promise<number[]> {
    const answers: number[] = []
    const remaining = answered.entries()
    await Promise.all(
      Array.from({ length: RETRIES_AT_ONCE }, async () => {
        for (const [index, { key }] of remaining) answers[index] = await untilAnswered(key)
      }),
    )
    return answers
  }

  return {
    answered,
    refusals,
    get longestAttemptMs() {
      return longestAttemptMs
    },
    effectsOf: (key) => effects.get(key) ?? 0,
    perform,
    start(concurrency) {
      let isStopped = false
      const workers = Array.from({ length: concurrency }, async () => {
        while (!isStopped) await performOne()
      })
      return async () => {
        isStopped = true
        await Promise.all(workers)
      }
    },
    retryAll,
    close: () => idempotency.close(),
  }
}
