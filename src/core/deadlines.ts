/** A scheduled call that can be called off. */
export interface Deadline {
  cancel(): void
}

/** Calls functions later, from one timer, however many are waiting. */
export interface Deadlines {
  /** Calls `due` once, `delayMs` from now or a little later, unless it is cancelled before. */
  after(delayMs: number, due: () => void): Deadline
}

interface Entry extends Deadline {
  readonly at: number
  readonly due: () => void
}

// Entries of one delay come due in the order they were added, so each delay is a queue and only its head matters.
// A `Set` keeps that order and lets an entry leave from the middle in constant time.
const queues = new Map<number, Set<Entry>>()
let timer: NodeJS.Timeout | undefined
let timerAt = Number.POSITIVE_INFINITY

/**
 * The deadlines of this process. Adding and cancelling cost a set operation each, where a timer of its own for every
 * request and store call would cost an object and two list operations of Node's. The timer never keeps a process alive.
 */
export const deadlines: Deadlines = { after }

function after(delayMs: number, due: () => void): Deadline {
  const delay = Math.max(1, Math.ceil(delayMs))
  let queue = queues.get(delay)
  if (queue === undefined) {
    queue = new Set()
    queues.set(delay, queue)
  }
  const home = queue
  const entry: Entry = {
    at: performance.now() + delay,
    due,
    cancel: () => {
      home.delete(entry)
    },
  }
  home.add(entry)
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
  const dueNow: Entry[] = []
  let next = Number.POSITIVE_INFINITY
  for (const [delay, queue] of queues) {
    for (const entry of queue) {
      if (entry.at > now) {
        next = Math.min(next, entry.at)
        break
      }
      queue.delete(entry)
      dueNow.push(entry)
    }
    if (queue.size === 0) queues.delete(delay)
  }
  if (next !== Number.POSITIVE_INFINITY) arm(next)
  for (const entry of dueNow) entry.due()
}
