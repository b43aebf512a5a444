const UNITS = [
  ['d', 86_400_000],
  ['h', 3_600_000],
  ['m', 60_000],
  ['s', 1000],
] as const

/** A length of time for people: its two largest units, such as `3h 12m`. */
export function lengthText(milliseconds: number): string {
  const first = UNITS.findIndex(([, ms]) => milliseconds >= ms)
  if (first === -1) return `${Math.max(0, Math.round(milliseconds))}ms`
  let left = milliseconds
  const parts: string[] = []
  for (const [unit, ms] of UNITS.slice(first, first + 2)) {
    const count = Math.floor(left / ms)
    left -= count * ms
    if (count > 0) parts.push(`${count}${unit}`)
  }
  return parts.join(' ')
}

/** A point in time in ISO 8601, or `null` where a record holds none that there is. */
export function isoTime(epochMs: number): string | null {
  const time = new Date(epochMs)
  return Number.isNaN(time.getTime()) ? null : time.toISOString()
}
