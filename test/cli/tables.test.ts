import { randomUUID } from 'node:crypto'
import { setTimeout } from 'node:timers/promises'
import { Pool } from 'pg'
import { afterAll, beforeAll, expect, inject, it } from 'vitest'
import { openPostgres } from '../../src/cli/open-postgres.js'
import { storeLocation } from '../../src/cli/store-location.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { aClaim } from '../../src/testing/store-fixtures.js'
import { hasTerminals, type ProgramRun, runOncekeyIn, typeAtTerminal } from '../support/oncekey-program.js'
import { describeWith } from '../support/services.js'

const { postgresUrl, redisUrl } = inject('services')

describeWith(['postgres'], 'oncekey migrate and sweep', () => {
  const schema = `tables_${randomUUID().slice(0, 8)}`
  const environment = { ONCEKEY_STORE: postgresUrl }
  const run = (...args: readonly string[]): Promise<ProgramRun> =>
    runOncekeyIn(environment, ...args, `--schema=${schema}`)
  let pool: Pool
  beforeAll(async () => {
    pool = new Pool({ connectionString: postgresUrl, max: 2 })
    await pool.query(`create schema ${schema}`)
  })
  afterAll(async () => {
    await pool.query(`drop schema ${schema} cascade`)
    await pool.end()
  })

  it('prints what the store would run, without a database', async () => {
    const { code, out, err } = await runOncekeyIn({}, 'migrate', '--print', '--schema=a', '--table=b')
    expect(out).toBe(postgresStore(pool, { schema: 'a', table: 'b' }).migrationSql())
    expect({ code, err }).toEqual({ code: 0, err: '' })
  })

  it('refuses a name that is none', async () => {
    expect(await runOncekeyIn({}, 'migrate', '--print', '--table=$')).toMatchObject({ code: 2, out: '' })
  })

  it('asks, makes the tables once, and writes that down', async () => {
    const unasked = await run('migrate', '--table=made')
    expect(unasked.err).toContain('There is no table')
    expect(unasked).toMatchObject({ code: 2, out: '' })
    if (hasTerminals) {
      const typed = `npx oncekey migrate --table=made --schema=${schema}`
      expect(await typeAtTerminal(environment, typed, 'n\n')).toMatchObject({ code: 1 })
    }
    const store = postgresStore(pool, { schema, table: 'made' })
    await expect(store.check?.()).rejects.toThrow('There is no table')

    const made = await run('migrate', '--table=made', '--yes', '--by=ada')
    expect(made).toMatchObject({ code: 0, out: 'The tables are up to date now.\n' })
    const line = made.err.split('\n').find((one) => one.startsWith('{'))
    expect(JSON.parse(line ?? '')).toMatchObject({ audit: 'oncekey', event: 'migrated', by: 'ada' })
    await store.check?.()
    const again = await run('migrate', '--table=made')
    expect(again).toEqual({ code: 0, out: 'The tables are up to date.\n', err: '' })
  })

  it('gives up counting what has expired, as it gives up reading', async () => {
    const store = postgresStore(pool, { schema, table: 'held' })
    await store.migrate()
    const location = storeLocation(postgresUrl)
    const { expired, close } = await openPostgres(location, { schema, table: 'held' }, 200)
    const holder = await pool.connect()
    try {
      await holder.query(`begin; lock table ${schema}.held in access exclusive mode`)
      // Without a limit it would wait for the lock, and the lock for this test.
      const counted = Promise.race([expired?.(), setTimeout(10_000, 'no limit', { ref: false })])
      await expect(counted).rejects.toThrow('timeout')
    } finally {
      await holder.query('rollback')
      holder.release()
      await close()
    }
  })

  it('counts what has expired, removes it, and writes that down', async () => {
    const store = postgresStore(pool, { schema, table: 'swept' })
    await store.migrate()
    for (let count = 0; count < 3; count += 1) await store.claim(aClaim({ leaseMs: 0, ttlMs: 0 }))
    const kept = aClaim()
    await store.claim(kept)
    await pool.query(`update ${schema}.swept set expiry_bucket = 0 where expires_at < clock_timestamp()`)
    expect((await run('stats', '--table=swept')).out).toMatch(/^expired +3, waiting for a sweep$/m)

    expect(await run('sweep', '--table=swept')).toMatchObject({ code: 2, out: '' })
    const swept = await run('sweep', '--table=swept', '--yes')
    expect(swept).toMatchObject({ code: 0, out: '3 expired records removed.\n' })
    const line = swept.err.split('\n').find((one) => one.startsWith('{'))
    expect(JSON.parse(line ?? '')).toMatchObject({ event: 'swept', removed: 3 })
    expect(await store.find(kept.id)).toBeDefined()
    const again = await run('sweep', '--table=swept', '--yes', '--json')
    expect(JSON.parse(again.out)).toEqual({ format: 1, removed: 0 })
  })
})

describeWith(['redis'], 'oncekey migrate and sweep on Redis', () => {
  it('say that there is nothing to do', async () => {
    const environment = { REDIS_URL: redisUrl }
    expect(await runOncekeyIn(environment, 'migrate')).toEqual({
      ...{ code: 0, err: '' },
      out: 'Redis has no tables: there is nothing to do.\n',
    })
    expect(await runOncekeyIn(environment, 'sweep')).toEqual({
      ...{ code: 0, err: '' },
      out: 'Redis removes what has expired by itself.\n',
    })
  })
})
