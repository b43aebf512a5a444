import { type Duration, durationMs } from '../contract/duration.js'

/** How waits grow from one attempt to the next. */
export interface RetryDelayOptions {
  /**
   * The longest that the first retry waits; every further one may wait twice as long as the one before.
   *
   * @default '250ms'
   */
  readonly base?: Duration

  /**
   * What no wait is longer than, before anything that the server asks for.
   *
   * @default '10s'
   */
  readonly max?: Duration

  /**
   * Where chance comes from: a number from 0 up to, and without, 1.
   *
   * @default Math.random
   */
  readonly random?: () => number
}

/**
 * How long to wait before the next attempt, in milliseconds: exponential, capped, full jitter.
 *
 * @param attempt attempts made so far; the first retry passes `1`.
 * @throws {RangeError} when `attempt` is not a positive integer, or `base` or `max` not a duration.
 * @see https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
 */
export function retryDelayMs(attempt: number, options: RetryDelayOptions = {}): number {
  const { base = 250, max = 10_000, random = Math.random } = options
  const baseMs = durationMs(base)
  const maxMs = durationMs(max)
  if (!Number.isSafeInteger(attempt) || attempt < 1 || baseMs === undefined || maxMs === undefined)
    throw new RangeError(`No delay for attempt ${attempt}, ${base}, ${max}`)
  // Nothing, doubled beyond all numbers, is nothing.
  return Math.round(random() * Math.min(maxMs, baseMs * 2 ** (attempt - 1))) || 0
}
