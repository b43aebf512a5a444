import { randomUUID } from 'node:crypto'
import { createIdempotency } from 'oncekey'
import { postgresStore } from 'oncekey/postgres'
import { startFaultProxy } from 'oncekey/testing'
import { Pool } from 'pg'
import { expect, inject, it, vi } from 'vitest'
import { describeWith } from '../support/services.js'

describeWith(['postgres'], 'the example of docs/testing.md', () => {
  const url = inject('services').postgresUrl

  it('charges once, whatever becomes of the answer to the claim', async () => {
    const { hostname: host, port } = new URL(url)
    const proxy = await startFaultProxy({ target: { host, port: Number(port) } })
    const pool = new Pool({ connectionString: proxy.through(url) })
    const store = postgresStore(pool)
    await store.migrate()
    const { run } = createIdempotency({ store })

    const key = randomUUID()
    let charges = 0
    const charge = () =>
      run({ scope: 'acme', key, input: { amount: 500 } }, async () => {
        charges += 1
        return { charged: 500 }
      })

    const lost = proxy.arm({ kind: 'drop-answer', match: 'oncekey_records_claim' })
    await expect(charge()).rejects.toMatchObject({ code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
    expect(lost.timesFired).toBe(1)
    expect(charges).toBe(0)

    proxy.heal()
    // The claim that nobody heard of is given back in the background.
    expect(await vi.waitFor(charge, 10_000)).toEqual({ charged: 500 })
    expect(await charge()).toEqual({ charged: 500 })
    expect(charges).toBe(1)

    await proxy.stop()
    await pool.end()
  })
})
