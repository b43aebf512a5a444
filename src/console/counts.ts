import type { IdempotencyEvent } from '../core/events.js'

/** What became of requests, as it is counted. */
export const KINDS = ['run', 'replay', 'in-progress', 'mismatch', 'unknown', 'refused'] as const

/** What became of one request. */
export type Kind = (typeof KINDS)[number]

/** How many requests ended how. */
export type Counts = Readonly<Record<Kind, number>>

/** What was counted. */
export interface Counted {
  /** Since counting began. */
  readonly total: Counts
  /** One for each minute, the oldest first. The last one is not over yet. */
  readonly minutes: readonly Counts[]
}

/** Counts what an engine reports. */
export interface Counter {
  /** In epoch milliseconds, by this process's clock. */
  readonly since: number
  count(event: IdempotencyEvent): void
  read(): Counted
}

/** For how many minutes counts are told apart. Older ones are only in the total. */
export const MINUTES = 60

/**
 * Makes a counter that takes the same room whatever it counts. `now` gives milliseconds of a clock that does not jump.
 */
export function createCounter(now: () => number = () => performance.now()): Counter {
  const total = none()
  const ring = Array.from({ length: MINUTES }, none)
  let current = minuteOf(now())

  /** Empties the minutes in which nothing was counted. */
  function turn(): void {
    const minute = minuteOf(now())
    for (let left = Math.min(minute - current, MINUTES); left > 0; left -= 1)
      ring[(minute - left + 1) % MINUTES] = none()
    current = Math.max(current, minute)
  }

  return {
    since: Date.now(),
    count(event) {
      const kind = kindOf(event)
      if (kind === undefined) return
      turn()
      total[kind] += 1
      const counts = ring[current % MINUTES]
      if (counts !== undefined) counts[kind] += 1
    },
    read() {
      turn()
      const oldest = (current + 1) % MINUTES
      const minutes = [...ring.slice(oldest), ...ring.slice(0, oldest)]
      return { total: { ...total }, minutes: minutes.map((counts) => ({ ...counts })) }
    },
  }
}

/** How many there are of all kinds. */
export function sumOf(counts: Counts): number {
  return KINDS.reduce((sum, kind) => sum + counts[kind], 0)
}

function minuteOf(ms: number): number {
  return Math.floor(ms / 60_000)
}

function none(): Record<Kind, number> {
  return { run: 0, replay: 0, 'in-progress': 0, mismatch: 0, unknown: 0, refused: 0 }
}

function kindOf(event: IdempotencyEvent): Kind | undefined {
  switch (event.type) {
    // A take-over runs, and so does what the store did not protect.
    case 'claimed':
    case 'unprotected':
      return 'run'
    case 'replayed':
      return 'replay'
    case 'in-progress':
    case 'mismatch':
    case 'unknown':
    case 'refused':
      return event.type
    default:
      return undefined
  }
}
