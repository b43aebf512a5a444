import { z } from 'zod'
import { type Duration, durationMs } from '../contract/duration.js'
import { OptionsError } from '../contract/errors.js'

/**
 * Checks `options` against `schema`.
 *
 * @throws {OptionsError} naming the option, its value and what would be right.
 */
export function parseOptions<T>(schema: z.ZodType<T>, options: unknown, where: string): T {
  const parsed = schema.safeParse(options)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  if (issue === undefined) throw new OptionsError(`${where}: the options are invalid`)
  if (issue.code === 'unrecognized_keys') {
    const names = issue.keys.map((name) => `"${name}"`).join(', ')
    throw new OptionsError(`${where}: there is no option ${names}`)
  }
  const path = issue.path.map(String)
  const name = path.length > 0 ? `option "${path.join('.')}"` : 'the options object'
  const value = valueAt(options, issue.path)
  // A secret that is too short is still one: errors go to logs.
  const got = path[0] === 'secret' && value !== undefined ? `a ${typeof value}` : shown(value)
  throw new OptionsError(`${where}: ${name} ${issue.message}; got ${got}`)
}

/** A `Duration` between two bounds, as milliseconds. */
export function duration(bounds: {
  readonly min: Duration
  readonly max?: Duration
}): z.ZodType<number, unknown> {
  const max = bounds.max ?? '3650d'
  const minMs = durationMs(bounds.min) ?? 0
  const maxMs = durationMs(max) ?? 0
  return z.unknown().transform((value, context) => {
    const ms = durationMs(value)
    if (ms !== undefined && ms >= minMs && ms <= maxMs) return ms
    context.addIssue(
      `must be a duration such as '30s', '24h' or a number of milliseconds, from ${bounds.min} to ${max}`,
    )
    return z.NEVER
  })
}

/** A function, whatever it takes. */
export function fn<F>(described: string): z.ZodType<F, unknown> {
  return z.custom<F>((value) => typeof value === 'function', `must be ${described}`)
}

/** A whole number between two bounds. */
export function wholeNumber(min: number, max = Number.MAX_SAFE_INTEGER): z.ZodType<number, unknown> {
  return z.custom<number>(
    (value) => Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max,
    `must be a whole number of at least ${min}`,
  )
}

function valueAt(options: unknown, path: readonly PropertyKey[]): unknown {
  let value = options
  for (const step of path) value = (value as Record<PropertyKey, unknown> | undefined)?.[step]
  return value
}

function shown(value: unknown): string {
  if (value === undefined) return 'nothing'
  if (typeof value === 'function') return 'a function'
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'an array' : 'an object'
  return typeof value === 'string' ? `"${value}"` : String(value)
}
