import { describe, expect, it } from 'vitest'
import { type CachedOutcome, createReplayCache } from '../../src/core/replay-cache.js'
import { anId, anOutcome, HOUR } from '../../src/testing/store-fixtures.js'

const MINUTE = 60_000
const LIMITS = { entries: 3, bytes: 100_000, maxAgeMs: MINUTE }

function anEntry(cachedAt = 0, bytes = 2): CachedOutcome {
  return {
    id: anId(),
    fingerprint: 'f',
    outcome: anOutcome({ body: new Uint8Array(bytes) }),
    ageMs: 0,
    cachedAt,
  }
}

describe('the replay cache', () => {
  it('forgets what is older than its age, and what the store forgets before that', () => {
    const cache = createReplayCache(LIMITS)
    cache.set('long', anEntry(1000), HOUR)
    cache.set('short', anEntry(1000), 5000)
    cache.set('over', anEntry(1000), 0)
    expect(cache.get('over', 1000)).toBeUndefined()
    expect(cache.get('short', 5999)).toBeDefined()
    expect(cache.get('short', 6000)).toBeUndefined()
    // Being asked for does not make it younger: a settlement by an operator is seen in time.
    for (let now = 1000; now < 1000 + MINUTE; now += 500) expect(cache.get('long', now)).toBeDefined()
    expect(cache.get('long', 1000 + MINUTE)).toBeUndefined()
    // Nor does a clock that is asked again.
    expect(cache.get('long', 2000)).toBeUndefined()
  })

  it('has so many entries, and forgets the one that nobody asked for the longest', () => {
    const cache = createReplayCache(LIMITS)
    for (const name of ['one', 'two', 'three']) cache.set(name, anEntry(), HOUR)
    expect(cache.get('one', 5000)).toBeDefined()
    cache.set('four', anEntry(5000), HOUR)
    expect(cache.get('two', 5000)).toBeUndefined()
    for (const name of ['one', 'three', 'four']) expect(cache.get(name, 5000)).toBeDefined()
  })

  it('has so many bytes, and leaves out what alone is more', () => {
    const cache = createReplayCache(LIMITS)
    cache.set('small', anEntry(), HOUR)
    cache.set('too large', anEntry(0, LIMITS.bytes), HOUR)
    expect(cache.get('too large', 0)).toBeUndefined()
    expect(cache.get('small', 0)).toBeDefined()
    cache.set('large', anEntry(0, LIMITS.bytes / 2), HOUR)
    cache.set('another', anEntry(0, LIMITS.bytes / 2), HOUR)
    expect(cache.get('large', 0)).toBeUndefined()
    expect(cache.get('another', 0)).toBeDefined()
  })

  it('does not keep what a store has read beside a body', () => {
    const cache = createReplayCache({ entries: 10, bytes: 1_000_000, maxAgeMs: HOUR })
    const read = Buffer.alloc(64 * 1024, 'x')
    const bodies = [read.subarray(100, 300), read.subarray(0, 0), read, null]
    for (const [index, body] of bodies.entries()) {
      const name = String(index)
      const outcome = anOutcome({ body })
      cache.set(name, { ...anEntry(), outcome }, HOUR)
      expect(cache.get(name, 0)?.outcome).toEqual(outcome)
    }
    expect(cache.get('0', 0)?.outcome.body?.buffer.byteLength).toBe(200)
    expect(cache.get('2', 0)?.outcome.body).toBe(read)
  })
})
