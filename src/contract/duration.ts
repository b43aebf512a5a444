/** A length of time: `'250ms'`, `'30s'`, `'5m'`, `'24h'`, `'7d'`, or a number of milliseconds. */
export type Duration = number | `${number}${'ms' | 's' | 'm' | 'h' | 'd'}`

const UNIT_MS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const
const PATTERN = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/

/** A duration in whole milliseconds, or `undefined` when it is not one. */
export function durationMs(duration: unknown): number | undefined {
  if (typeof duration === 'number')
    return Number.isFinite(duration) && duration >= 0 ? Math.round(duration) : undefined
  if (typeof duration !== 'string') return undefined
  const match = PATTERN.exec(duration)
  if (match === null) return undefined
  return Math.round(Number(match[1]) * UNIT_MS[match[2] as keyof typeof UNIT_MS])
}
