import { LRUCache } from 'lru-cache'
import type { Duration } from '../contract/duration.js'
import type { Outcome } from '../contract/store.js'

/** How much this process remembers of completed outcomes, so that a storm of retries costs no round trip. */
export interface ReplayCacheOptions {
  /** @default 10_000 */
  readonly entries?: number
  /** Bytes of heads, bodies and names (scope and key), and of short bodies as text. @default 33_554_432 (32 MiB) */
  readonly bytes?: number
  /** The longest that an outcome is answered after somebody removed it from the store. @default '1m' */
  readonly maxAge?: Duration
}

/** Limits of a replay cache, checked. */
export interface ReplayCacheLimits {
  readonly entries: number
  readonly bytes: number
  readonly maxAgeMs: number
}

/** A completed outcome, as this process saw it. */
export interface CachedOutcome {
  /** The record's name in the store. */
  readonly id: string
  readonly fingerprint: string
  readonly outcome: Outcome
  /** How old the outcome was when it was put here, and when that was by this process's monotonic clock. */
  readonly ageMs: number
  readonly cachedAt: number
}

/**
 * Completed outcomes, by what tells one operation of an engine from another. They never change until their ttl, so a copy
 * is as good as the store's.
 */
export interface ReplayCache {
  /** @param now the monotonic clock. */
  get(name: string, now: number): CachedOutcome | undefined
  set(name: string, entry: CachedOutcome, ttlLeftMs: number): void
}

/** An outcome, and when it is no longer answered. The cache of lru-cache would keep time by a timer for every look. */
interface Entry {
  readonly cached: CachedOutcome
  readonly until: number
  /** When it was last put behind all others, as the one to be forgotten last. */
  usedAt: number
}

/** How often an entry is put behind the others. A storm of retries need not move it at each of them. */
const MOVE_EVERY_MS = 1000

const ENTRY_OVERHEAD_BYTES = 256
const SHORT_BYTES = 4096

/** Makes a bounded cache of completed outcomes. */
export function createReplayCache(limits: ReplayCacheLimits): ReplayCache {
  const cache = new LRUCache<string, Entry>({
    max: limits.entries,
    maxSize: limits.bytes,
    maxEntrySize: limits.bytes,
    sizeCalculation: ({ cached: { outcome } }, name) => {
      const body = outcome.body?.byteLength ?? 0
      // The headers and the text of a short body are remembered beside what they were made of.
      return ENTRY_OVERHEAD_BYTES + name.length + 2 * outcome.head.length + body + Math.min(body, SHORT_BYTES)
    },
  })
  return {
    get(name, now) {
      const found = cache.peek(name)
      if (found === undefined) return undefined
      if (now >= found.until) {
        cache.delete(name)
        return undefined
      }
      if (now - found.usedAt >= MOVE_EVERY_MS) {
        cache.get(name)
        found.usedAt = now
      }
      return found.cached
    },
    set(name, entry, ttlLeftMs) {
      if (ttlLeftMs < 1) return
      const until = entry.cachedAt + Math.min(limits.maxAgeMs, ttlLeftMs)
      cache.set(name, { cached: withOwnBody(entry), until, usedAt: entry.cachedAt })
    },
  }
}

/**
 * A body from a store is often a piece of everything that a socket read at once, and would keep all of it: a hundred times
 * as much as is counted here.
 */
function withOwnBody(entry: CachedOutcome): CachedOutcome {
  const { body } = entry.outcome
  if (body === null || body.byteLength === 0 || body.buffer.byteLength <= 2 * body.byteLength) return entry
  const own = Buffer.allocUnsafeSlow(body.byteLength)
  own.set(body)
  return { ...entry, outcome: { ...entry.outcome, body: own } }
}
