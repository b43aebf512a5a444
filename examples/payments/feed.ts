import { PassThrough, type Readable } from 'node:stream'
import type { DemoEvent, TimedEvent } from './demo-events.js'

/** How many events are remembered for pages that come later, or come back. */
const REMEMBERED = 400
/** A page that reads no more is let go when so much waits for it. It comes back by itself. */
const MOST_WAITING_BYTES = 256 * 1024

/** What the bank tells its pages, by Server-Sent Events. */
export interface Feed {
  tell(event: DemoEvent): void
  /** The events after the one that is named, as far as they are remembered, and then those to come. */
  follow(lastEventId: number): Readable
}

/** Makes a feed that nobody follows yet. */
export function createFeed(): Feed {
  const remembered: { readonly id: number; readonly text: string }[] = []
  const followers = new Set<PassThrough>()
  // Larger than those of the process before, so that a page that comes back to a new bank misses nothing.
  let lastId = Date.now()

  return {
    tell(event) {
      const timed: TimedEvent = { ...event, at: Date.now() }
      const id = ++lastId
      const text = `id: ${id}\ndata: ${JSON.stringify(timed)}\n\n`
      remembered.push({ id, text })
      if (remembered.length > REMEMBERED) remembered.shift()
      for (const follower of followers) {
        follower.write(text)
        if (follower.writableLength > MOST_WAITING_BYTES) follower.destroy()
      }
    },

    follow(lastEventId) {
      const follower = new PassThrough()
      followers.add(follower)
      follower.once('close', () => followers.delete(follower))
      const missed = remembered.filter(({ id }) => id > lastEventId).map(({ text }) => text)
      follower.write(`retry: 500\n\n${missed.join('')}`)
      return follower
    },
  }
}
