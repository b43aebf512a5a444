import { randomUUID } from 'node:crypto'
import { Redis } from 'ioredis'
import { Client, Pool } from 'pg'
import { expect, inject, it, onTestFinished } from 'vitest'
import { postgresStore } from '../../src/stores/postgres.js'
import { redisStore } from '../../src/stores/redis.js'
import { aKey, anApp } from '../support/fastify-app.js'
import { startRedisServer } from '../support/redis-server.js'
import { describeWith } from '../support/services.js'

// What docs/operations.md says of lost and restored servers, where no other test does.

const { postgresUrl } = inject('services')

async function asAdmin(statement: string): Promise<void> {
  const admin = new Client({ connectionString: postgresUrl })
  await admin.connect()
  await admin.query(statement)
  await admin.end()
}

/** An application on a database of that name. It pays into a table of it, in one transaction with the answer. */
async function aBank(database: string) {
  const pool = new Pool({
    connectionString: Object.assign(new URL(postgresUrl), { pathname: `/${database}` }).href,
  })
  pool.on('error', () => {})
  const store = postgresStore(pool)
  await store.migrate()
  await pool.query('create table if not exists payments (id serial)')
  let mailed = 0
  const { app, send } = await anApp(
    (bank) => {
      bank.post('/payments', { config: { idempotency: { atomic: true } } }, (request) =>
        request.idempotency.transaction(async (tx) => {
          const { rows } = await tx.query('insert into payments default values returning id')
          return { id: rows[0].id }
        }),
      )
      bank.post('/mails', { config: { idempotency: { lease: '1s' } } }, async ({ headers }) => {
        mailed += 1
        if (headers['x-dies'] === 'yes') await new Promise(() => {})
        return { mailed }
      })
    },
    { store, sweep: false },
  )
  return {
    send,
    mailed: () => mailed,
    payments: async () => (await pool.query('select count(*)::int as count from payments')).rows[0].count,
    async close() {
      await app.close()
      await pool.end()
    },
  }
}

describeWith(['postgres'], 'a database that was restored from a backup', () => {
  it('has forgotten what came after it: effects of its own are made again, others a second time', async () => {
    const [name, backup] = [`bank_${randomUUID().slice(0, 8)}`, `backup_${randomUUID().slice(0, 8)}`]
    await asAdmin(`create database ${name}`)
    let bank = await aBank(name)
    const [before, after, mail] = [aKey(), aKey(), aKey()]
    await bank.send('/payments', { key: before })
    await bank.close()
    await asAdmin(`create database ${backup} template ${name}`)
    bank = await aBank(name)
    await bank.send('/payments', { key: after })
    await bank.send('/mails', { key: mail })
    expect(await bank.payments()).toBe(2)
    await bank.close()

    const restored = await aBank(backup)
    expect(await restored.payments()).toBe(1)
    expect(await restored.send('/payments', { key: before })).toMatchObject({ status: 200, isReplay: true })
    expect(await restored.send('/payments', { key: after })).toMatchObject({ status: 200, isReplay: false })
    expect(await restored.payments()).toBe(2)
    await restored.send('/mails', { key: mail })
    expect([bank.mailed(), restored.mailed()]).toEqual([1, 1])
    await restored.close()
    for (const database of [name, backup]) await asAdmin(`drop database ${database} with (force)`)
  })

  it('says of what ran at its time that nobody knows', async () => {
    const [name, backup] = [`bank_${randomUUID().slice(0, 8)}`, `backup_${randomUUID().slice(0, 8)}`]
    await asAdmin(`create database ${name}`)
    const bank = await aBank(name)
    const key = aKey()
    void bank.send('/mails', { key, headers: { 'x-dies': 'yes' } })
    await expect.poll(() => bank.mailed()).toBe(1)
    // A template must have no connection, and the handler must not end.
    await asAdmin(`alter database ${name} allow_connections false`)
    await asAdmin(`select pg_terminate_backend(pid) from pg_stat_activity where datname = '${name}'`)
    await asAdmin(`create database ${backup} template ${name}`)
    const restored = await aBank(backup)
    await expect
      .poll(async () => (await restored.send('/mails', { key })).code, { timeout: 10_000, interval: 100 })
      .toBe('IDEMPOTENCY_OUTCOME_UNKNOWN')
    expect(restored.mailed()).toBe(0)
    await restored.close()
    await bank.close()
    for (const database of [name, backup]) await asAdmin(`drop database ${database} with (force)`)
  })
})

describeWith(['redis'], 'a Redis that is full and must not evict', () => {
  it('lets nothing run, and forgets nothing', async () => {
    const server = await startRedisServer({
      args: ['--maxmemory-policy', 'noeviction'],
    })
    onTestFinished(() => server.stop())
    const client = new Redis(server.url)
    onTestFinished(() => client.disconnect())
    let runs = 0
    const { send } = await anApp(
      (app) => {
        app.post('/payments', () => ({ runs: ++runs }))
      },
      { store: redisStore(client), replayCache: false },
    )
    const [known, unknown] = [aKey(), aKey()]
    await send('/payments', { key: known })
    // Whatever it holds is too much now.
    await client.config('SET', 'maxmemory', '1')
    expect(await send('/payments', { key: unknown })).toMatchObject({ status: 503 })
    expect(await send('/payments', { key: known })).toMatchObject({ status: 200, isReplay: true })
    expect(runs).toBe(1)
  })
})
