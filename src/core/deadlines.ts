/** A scheduled call that can be called off. */
export interface Deadline {
  cancel(): void
}

/** Calls functions later, from one timer, however many are waiting. */
export interface Deadlines {
  /**
   * Calls `due` once, `delayMs` from now or a little later, unless it is cancelled before.
   *
   * @param now the monotonic clock, from a caller that has just read it: on some machines that is the dearest part.
   */
  after(delayMs: number, due: () => void, now?: number): Deadline
}

/**
 * An entry of a ring. Linked by hand, because a `Set` that is added to and deleted from at the rate of requests leaves
 * a trail of outgrown tables, each of which keeps what was in it from being collected.
 */
class Entry implements Deadline {
  readonly at: number
  due: (() => void) | undefined
  previous: Entry = this
  next: Entry = this

  constructor(at: number, due?: () => void) {
    this.at = at
    this.due = due
  }

  append(entry: Entry): void {
    entry.previous = this.previous
    entry.next = this
    this.previous.next = entry
    this.previous = entry
  }

  cancel(): void {
    this.previous.next = this.next
    this.next.previous = this.previous
    this.previous = this
    this.next = this
    this.due = undefined
  }
}

// Entries of one delay come due in the order they were added, so each delay is a ring and only its first entry matters.
const rings = new Map<number, Entry>()
let timer: NodeJS.Timeout | undefined
let timerAt = Number.POSITIVE_INFINITY

/**
 * The deadlines of this process. Adding and cancelling cost a few assignments, where a timer of its own for every
 * request and store call would cost an object and two list operations of Node's. The timer never keeps a process alive.
 */
export const deadlines: Deadlines = { after }

function after(delayMs: number, due: () => void, now = performance.now()): Deadline {
  const delay = Math.max(1, Math.ceil(delayMs))
  let ring = rings.get(delay)
  if (ring === undefined) {
    ring = new Entry(Number.POSITIVE_INFINITY)
    rings.set(delay, ring)
  }
  const entry = new Entry(now + delay, due)
  ring.append(entry)
  if (entry.at < timerAt) arm(entry.at)
  return entry
}

function arm(at: number): void {
  clearTimeout(timer)
  timerAt = at
  timer = setTimeout(fire, Math.max(1, Math.ceil(at - performance.now())))
  timer.unref()
}

function fire(): void {
  const now = performance.now()
  timerAt = Number.POSITIVE_INFINITY
  const dueNow: (() => void)[] = []
  let nextAt = Number.POSITIVE_INFINITY
  for (const [delay, ring] of rings) {
    while (ring.next.at <= now) {
      const { due } = ring.next
      ring.next.cancel()
      if (due !== undefined) dueNow.push(due)
    }
    nextAt = Math.min(nextAt, ring.next.at)
    if (ring.next === ring) rings.delete(delay)
  }
  if (nextAt !== Number.POSITIVE_INFINITY) arm(nextAt)
  for (const due of dueNow) due()
}
