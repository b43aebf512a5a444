import { durationMs } from '../contract/duration.js'
import { UsageError } from './command.js'

/**
 * A length of time from the command line, in milliseconds.
 *
 * @throws {UsageError} naming the option when it is none.
 */
export function durationFlag(name: string, given: string | undefined): number | undefined {
  if (given === undefined) return undefined
  const ms = durationMs(given)
  if (ms === undefined)
    throw new UsageError(`--${name} is a length of time such as 30s, 10m, 24h or 7d; got "${given}"`)
  return ms
}
