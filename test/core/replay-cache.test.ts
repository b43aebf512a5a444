import { describe, expect, it } from 'vitest'
import { createReplayCache } from '../../src/core/replay-cache.js'
import { anId, anOutcome, HOUR } from '../../src/testing/store-fixtures.js'

describe('the replay cache', () => {
  it('does not keep what a store has read beside a body', () => {
    const cache = createReplayCache({ entries: 10, bytes: 1_000_000, maxAgeMs: HOUR })
    const read = Buffer.alloc(64 * 1024, 'x')
    const bodies = [read.subarray(100, 300), read.subarray(0, 0), read, null]
    for (const [index, body] of bodies.entries()) {
      const name = String(index)
      const outcome = anOutcome({ body })
      cache.set(name, { id: anId(), fingerprint: 'f', outcome, ageMs: 0, cachedAt: 0 }, HOUR)
      const kept = cache.get(name)?.outcome
      expect(kept).toEqual(outcome)
    }
    expect(cache.get('0')?.outcome.body?.buffer.byteLength).toBe(200)
    expect(cache.get('2')?.outcome.body).toBe(read)
  })
})
