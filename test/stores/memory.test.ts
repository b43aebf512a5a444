import { describe, expect, it } from 'vitest'
import { memoryStore } from '../../src/stores/memory.js'
import { storeContract } from '../../src/testing/store-contract.js'
import { aClaim, anOutcome, HOUR, until } from '../../src/testing/store-fixtures.js'
import { checkStoreModel } from '../support/store-model.js'

describe('memoryStore', () => {
  it.each(storeContract)('$name', async ({ run }) => {
    await run(memoryStore())
  })

  it('follows the model through any interleaving of clients', async () => {
    await checkStoreModel(memoryStore, { numRuns: 150 })
  })

  it('refuses a new claim rather than forget a live record', async () => {
    const store = memoryStore({ maxEntries: 2 })
    const [running, completed] = [aClaim(), aClaim()]
    await store.claim(running)
    await store.claim(completed)
    await store.complete(completed.id, completed.token, anOutcome(), HOUR)
    await expect(store.claim(aClaim())).rejects.toMatchObject({ code: 'IDEMPOTENCY_STORE_FULL' })
    expect((await store.find(running.id))?.status).toBe('running')
    expect((await store.find(completed.id))?.status).toBe('completed')
  })

  it('still answers a retry when it is full', async () => {
    const store = memoryStore({ maxEntries: 1 })
    const claim = aClaim()
    await store.claim(claim)
    await store.complete(claim.id, claim.token, anOutcome(), HOUR)
    expect((await store.claim(aClaim({ id: claim.id }))).status).toBe('completed')
  })

  it('has room again once a record has expired', async () => {
    const store = memoryStore({ maxEntries: 1 })
    const claim = aClaim()
    await store.claim(claim)
    await store.complete(claim.id, claim.token, anOutcome(), 5)
    await expect
      .poll(async () => Promise.resolve(store.claim(aClaim())).catch(() => undefined))
      .toMatchObject({ fence: 1 })
  })

  it('keeps a tombstone when a body does not fit, and refuses the body', async () => {
    const store = memoryStore({ maxBytes: 2000 })
    const claim = aClaim()
    await store.claim(claim)
    const outcome = anOutcome({ body: new Uint8Array(4000) })
    await expect(store.complete(claim.id, claim.token, outcome, HOUR)).rejects.toMatchObject({
      code: 'IDEMPOTENCY_STORE_FULL',
    })
    expect(await store.complete(claim.id, claim.token, { ...outcome, body: null }, HOUR)).toBe(true)
  })

  it('counts the bytes of what it keeps, and gives them back', async () => {
    const store = memoryStore({ maxBytes: 3000 })
    for (let round = 0; round < 20; round += 1) {
      const claim = aClaim()
      await store.claim(claim)
      await store.complete(claim.id, claim.token, anOutcome({ body: new Uint8Array(1000) }), 1)
      await until(store, claim.id, (record) => record === undefined)
    }
  })

  it('lets no lease end early, not by a part of a millisecond', async () => {
    const store = memoryStore()
    let looks = 0
    for (let round = 0; round < 50; round += 1) {
      const claim = aClaim({ leaseMs: 3 })
      const endsAt = performance.now() + claim.leaseMs
      await store.claim(claim)
      while (performance.now() < endsAt - 0.1);
      const found = store.claim(aClaim({ id: claim.id }))
      // What was seen after its end, on a busy machine, shows nothing.
      if (performance.now() >= endsAt) continue
      looks += 1
      expect(found).toMatchObject({ status: 'running' })
    }
    expect(looks).toBeGreaterThan(10)
  })

  it.each([{ maxEntries: 0 }, { maxEntries: 1.5 }, { maxBytes: -1 }, { maxBytes: Number.NaN }])(
    'refuses the limits %o',
    (limits) => {
      expect(() => memoryStore(limits)).toThrow(/must be a whole number above zero/)
    },
  )
})
