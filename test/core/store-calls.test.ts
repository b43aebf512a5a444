import { readFile } from 'node:fs/promises'
import { describe, expect, it } from 'vitest'
import { createEvents } from '../../src/core/events.js'
import { createStoreCalls } from '../../src/core/store-calls.js'

const TIMEOUT_MS = 400

/** What a stopped process sees: time passes, and nothing is run or read meanwhile. */
function stall(forMs: number): void {
  const until = performance.now() + forMs
  while (performance.now() < until);
}

describe('calls of the store', () => {
  const call = createStoreCalls({ events: createEvents(), storeTimeoutMs: TIMEOUT_MS })
  const answers = () => readFile(new URL(import.meta.url))
  const never = () => new Promise<never>(() => {})

  it('are not failed for time in which this process did not run', async () => {
    const asked = call('find', answers)
    // The answer comes while nobody reads it, and every deadline passes.
    stall(TIMEOUT_MS * 2)
    expect((await asked).length).toBeGreaterThan(0)
  })

  it('have time to leave after a stall in which they could not', async () => {
    const asked = call('find', async () => {
      await new Promise((resolve) => setImmediate(resolve))
      stall(TIMEOUT_MS * 2)
      return answers()
    })
    expect((await asked).length).toBeGreaterThan(0)
  })

  it('fail when there is no answer in time, after a stall as well', async () => {
    const startedAt = performance.now()
    await expect(call('find', never)).rejects.toMatchObject({ code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
    expect(performance.now() - startedAt).toBeGreaterThanOrEqual(TIMEOUT_MS)
    const asked = call('find', never)
    stall(TIMEOUT_MS * 2)
    await expect(asked).rejects.toMatchObject({ code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
  })
})
