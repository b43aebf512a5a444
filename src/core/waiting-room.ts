import { type Deadline, deadlines } from './deadlines.js'

/** How to wait for a record. */
export interface WaitOptions {
  /** The longest wait, in milliseconds. */
  readonly maxMs: number
  /** How often the waiter has looked already, so that the next look comes later; `undefined` when no look is needed. */
  readonly looks: number | undefined
}

/** Where concurrent duplicates wait. All that wait for one id share one promise, one timer and one watch. */
export interface WaitingRoom {
  /** How many wait now, over all ids. */
  readonly size: number
  /** Resolves when the record of `id` may have changed, and at the latest after `maxMs`. */
  wait(id: string, options: WaitOptions): Promise<void>
  /** Lets everybody who waits for `id` look again. */
  wake(id: string): void
}

interface Room {
  readonly woken: Promise<void>
  readonly open: () => void
  waiters: number
  /** Ends the watch, where there is one. */
  watch: AbortController | undefined
  wakesAt: number
  deadline: Deadline | undefined
}

const FIRST_POLL_MS = 20
const LONGEST_POLL_MS = 1000

/**
 * Makes a waiting room. Records are looked at again and again, ever less often; `watch` is the store's, where it has
 * one, and makes that sooner.
 */
export function createWaitingRoom(
  watch: ((id: string, signal: AbortSignal) => Promise<void>) | undefined,
): WaitingRoom {
  const rooms = new Map<string, Room>()
  let size = 0

  function wake(id: string): void {
    const room = rooms.get(id)
    if (room === undefined) return
    rooms.delete(id)
    size -= room.waiters
    room.deadline?.cancel()
    room.watch?.abort()
    room.open()
  }

  function enter(id: string, looks: number | undefined): Room {
    const existing = rooms.get(id)
    if (existing !== undefined) return existing
    let open = (): void => {}
    const woken = new Promise<void>((resolve) => {
      open = resolve
    })
    const room: Room = {
      woken,
      open,
      waiters: 0,
      watch: undefined,
      wakesAt: Number.POSITIVE_INFINITY,
      deadline: undefined,
    }
    rooms.set(id, room)
    if (looks === undefined) return room
    // A change between the last look and the start of a watch wakes nobody: looking again finds it.
    schedule(id, room, pollDelayMs(looks))
    if (watch === undefined) return room
    room.watch = new AbortController()
    watch(id, room.watch.signal).then(
      () => {
        if (rooms.get(id) === room) wake(id)
      },
      // A watch that fails is only a missing hint.
      () => {},
    )
    return room
  }

  function schedule(id: string, room: Room, delayMs: number): void {
    const at = performance.now() + delayMs
    if (at >= room.wakesAt || rooms.get(id) !== room) return
    room.wakesAt = at
    room.deadline?.cancel()
    room.deadline = deadlines.after(delayMs, () => wake(id))
  }

  return {
    get size() {
      return size
    },
    wake,
    wait(id, { maxMs, looks }) {
      const room = enter(id, looks)
      room.waiters += 1
      size += 1
      schedule(id, room, maxMs)
      return room.woken
    },
  }
}

function pollDelayMs(looks: number): number {
  const longest = Math.min(LONGEST_POLL_MS, FIRST_POLL_MS * 2 ** Math.min(looks, 10))
  // Half fixed, half random: processes that wait for one id should not ask the store in step.
  return longest / 2 + Math.random() * (longest / 2)
}
