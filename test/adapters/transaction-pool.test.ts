import { randomUUID } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import { Pool } from 'pg'
import { afterEach, beforeEach, expect, inject, it } from 'vitest'
import { postgresStore } from '../../src/stores/postgres.js'
import { aKey, anApp, type TestApp } from '../support/fastify-app.js'
import { gate } from '../support/gate.js'
import { describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')

describeWith(['postgres'], 'transactions that hold every connection of the pool', () => {
  let pool: Pool
  let other: Pool
  let table: string
  const apps: FastifyInstance[] = []

  beforeEach(async () => {
    pool = new Pool({ connectionString: postgresUrl, max: 2 })
    other = new Pool({ connectionString: postgresUrl, max: 2 })
    table = `effects_${randomUUID().slice(0, 8)}`
    await postgresStore(other).migrate()
    await other.query(`create table ${table} (n text)`)
  })
  afterEach(async () => {
    await Promise.all(apps.splice(0).map((app) => app.close()))
    await other.query(`drop table ${table}`)
    await pool.end()
    await other.end()
  })

  /** A server whose handlers have their effect, say so, and wait before they commit. */
  async function aServer(given: Pool, hold: (key: string) => Promise<void>): Promise<TestApp> {
    const server = await anApp(
      (app) => {
        app.post('/', { config: { idempotency: { atomic: true } } }, async ({ idempotency }) =>
          idempotency.transaction(async (tx) => {
            const key = idempotency.key ?? ''
            await tx.query(`insert into ${table} values ($1)`, [key])
            await hold(key)
            return { by: idempotency.fence }
          }),
        )
      },
      { store: postgresStore(given), lease: '600ms' },
    )
    apps.push(server.app)
    return server
  }

  const effects = async (key: string): Promise<number> =>
    (await other.query(`select from ${table} where n = $1`, [key])).rowCount ?? 0

  it('leave none for a claim: 503 within storeTimeout, nothing runs, and a retry does', async () => {
    const { opened, open } = gate()
    const keys = [aKey(), aKey()]
    let holding = 0
    const { send } = await aServer(pool, async () => {
      holding += 1
      await opened
    })
    const held = keys.map((key) => send('/', { key }))
    await expect.poll(() => holding, { timeout: 20_000 }).toBe(2)
    const late = aKey()
    expect(await send('/', { key: late })).toMatchObject({
      status: 503,
      code: 'IDEMPOTENCY_STORE_UNAVAILABLE',
    })
    open()
    for (const answer of await Promise.all(held)) expect(answer.status).toBe(200)
    await expect.poll(() => send('/', { key: late }), { timeout: 20_000 }).toMatchObject({ status: 200 })
    for (const key of [...keys, late]) expect(await effects(key)).toBe(1)
  })

  it('leave none for a renewal: another server may take over, and then the first one takes back what it did', async () => {
    const { opened, open } = gate()
    const key = aKey()
    let holding = 0
    const first = await aServer(pool, async () => {
      holding += 1
      await opened
    })
    const second = await aServer(other, async () => {})
    const held = first.send('/', { key })
    const filling = first.send('/', { key: aKey() })
    await expect.poll(() => holding, { timeout: 20_000 }).toBe(2)
    await expect
      .poll(() => second.send('/', { key }), { timeout: 20_000, interval: 100 })
      .toMatchObject({ status: 200, bytes: Buffer.from('{"by":2}') })
    open()
    expect(await held).toMatchObject({ status: 200, bytes: Buffer.from('{"by":2}') })
    await filling
    expect(await effects(key)).toBe(1)
  })
})
