import { randomBytes, randomUUID } from 'node:crypto'
import { Client, Pool } from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, expect, inject, it } from 'vitest'
import { memoryStore } from '../../src/stores/memory.js'
import { type PostgresPool, type PostgresQuery, postgresStore } from '../../src/stores/postgres.js'
import { tableNames } from '../../src/stores/postgres-names.js'
import { sweepStatement } from '../../src/stores/postgres-statements.js'
import { sealedStore } from '../../src/stores/sealed.js'
import { tieredStore } from '../../src/stores/tiered.js'
import { storeContract } from '../../src/testing/store-contract.js'
import { aClaim, anId, anOutcome, HOUR, lapsed, times, until } from '../../src/testing/store-fixtures.js'
import { transactionContract } from '../../src/testing/transaction-contract.js'
import { startPgBouncer } from '../support/pgbouncer.js'
import { describeWith } from '../support/services.js'
import { checkStoreModel } from '../support/store-model.js'
import { everyStep } from '../support/store-steps.js'

const { postgresUrl, available } = inject('services')
let pool: Pool
beforeAll(async () => {
  if (!available.includes('postgres')) return
  pool = new Pool({ connectionString: postgresUrl, max: 10 })
  await postgresStore(pool).migrate()
})
afterAll(async () => {
  await pool?.end()
})

/** A table that no other test uses. */
function aTable(): string {
  return `t_${randomUUID().slice(0, 8)}`
}

/** A client as a store takes one: its statements become a part of what the connection is in the middle of. */
function within(connection: Client): PostgresPool {
  return { query: (query) => connection.query(query) }
}

describeWith(['postgres'], 'postgresStore', () => {
  it.each(storeContract)('$name', async ({ run }) => {
    await run(postgresStore(pool))
  })

  it.each(transactionContract)('$name', async ({ run }) => {
    await run(postgresStore(pool))
  })

  it('follows the model through any interleaving of clients', async () => {
    await checkStoreModel(() => postgresStore(pool), { numRuns: 40 })
  })

  it('makes one round trip a step', async () => {
    let sent = 0
    const store = postgresStore({
      query(query: PostgresQuery) {
        sent += 1
        return pool.query(query)
      },
    })
    const steps = everyStep(store)
    for (const step of steps) {
      sent = 0
      await step()
      expect(sent).toBe(1)
    }
  })

  it('writes nothing to answer a retry', async () => {
    const store = postgresStore(pool)
    const claim = aClaim()
    await store.claim(claim)
    const other = await lapsed(store)
    await store.complete(claim.id, claim.token, anOutcome(), HOUR)
    const versions = async () =>
      (
        await pool.query('select id, xmin, xmax, ctid from oncekey_records where id = any($1) order by id', [
          [claim.id, other.id],
        ])
      ).rows
    const before = await versions()
    await store.claim(aClaim({ id: claim.id }))
    await store.claim(aClaim({ id: other.id }))
    expect(await versions()).toEqual(before)
    expect(before).toHaveLength(2)
  })

  it('leaves no statement prepared on a connection', async () => {
    const single = new Pool({ connectionString: postgresUrl, max: 1 })
    await postgresStore(single).claim(aClaim())
    expect((await single.query('select * from pg_prepared_statements')).rows).toEqual([])
    await single.end()
  })

  it('works in a schema and a table of any name', async () => {
    await pool.query(`create schema if not exists "odd ""schema'"`)
    const store = postgresStore(pool, { schema: `odd "schema'`, table: `records "of' ü` })
    await store.migrate()
    expect(await store.check?.()).toEqual([expect.stringContaining('fsync')])
    const claim = aClaim()
    expect(await store.claim(claim)).toEqual({ status: 'acquired', fence: 1 })
    expect(await postgresStore(pool).find(claim.id)).toBeUndefined()
  })

  it.each([{ table: '' }, { table: 'x'.repeat(57) }, { schema: 'a\0b' }, { table: 7 as never }])(
    'refuses the name %o',
    (options) => {
      expect(() => postgresStore(pool, options)).toThrow(/must be a name/)
    },
  )

  it('refuses a client without a query method', () => {
    expect(() => postgresStore({} as never)).toThrow(/pg Pool/)
  })

  it('refuses to read a record in a format that it does not know', async () => {
    const store = postgresStore(pool)
    const claim = await lapsed(store)
    await pool.query('update oncekey_records set format = 9 where id = $1', [claim.id])
    const unfit = { code: 'IDEMPOTENCY_STORE_UNFIT' }
    await expect(store.claim(aClaim({ id: claim.id, takeOver: true }))).rejects.toMatchObject(unfit)
    await expect(store.find(claim.id)).rejects.toMatchObject(unfit)
  })
})

describeWith(['postgres'], 'postgresStore, by a clock that goes on while it looks', () => {
  it('either takes a claim over or says that it is running', async () => {
    const schema = `clock_${randomUUID().slice(0, 8)}`
    await pool.query(`
      create schema ${schema};
      create sequence ${schema}.looks;
      create function ${schema}.clock_timestamp() returns timestamptz language sql volatile as
        $$ select pg_catalog.clock_timestamp() + nextval('${schema}.looks') * interval '1 second' $$;
    `)
    const options = `-c search_path=${schema},public,pg_catalog`
    const ticking = new Pool({ connectionString: postgresUrl, max: 1, options })
    const store = postgresStore(ticking)
    await store.migrate()
    for (let leaseMs = 10_000; leaseMs < 40_000; leaseMs += 1000) {
      const { id } = aClaim()
      await store.claim(aClaim({ id, leaseMs }))
      const statuses: string[] = []
      while (statuses.at(-1) !== 'acquired' && statuses.length < 20)
        statuses.push((await store.claim(aClaim({ id, takeOver: true }))).status)
      expect(statuses).toEqual([...statuses.slice(0, -1).map(() => 'running'), 'acquired'])
    }
    await ticking.end()
  })
})

describeWith(['postgres'], 'postgresStore in a database whose transactions are serializable', () => {
  it.each(storeContract)('$name', async ({ run }) => {
    const strict = new Pool({
      connectionString: postgresUrl,
      max: 10,
      options: '-c default_transaction_isolation=serializable',
    })
    try {
      await run(postgresStore(strict))
    } finally {
      await strict.end()
    }
  })
})

describeWith(['postgres'], 'postgresStore with prepared statements', () => {
  it.each([...storeContract, ...transactionContract])('$name', async ({ run }) => {
    await run(postgresStore(pool, { prepare: true }))
  })

  it('claims in one statement whatever it finds, and makes the record that the function makes', async () => {
    const statements: string[] = []
    const store = postgresStore(
      {
        query(query: PostgresQuery) {
          statements.push(query.text)
          return pool.query(query)
        },
      },
      { prepare: true },
    )
    // A claim is remembered for its lease at least, however short its ttl.
    const claim = { ...aClaim({ ttlMs: 1 }), leaseMs: HOUR }
    const like = { ...claim, id: anId(), token: randomUUID() }
    expect(await store.claim(claim)).toEqual({ status: 'acquired', fence: 1 })
    expect(await store.claim(aClaim({ id: claim.id }))).toMatchObject({ status: 'running' })
    const repeated = aClaim()
    for (const _ of times(2, () => {}))
      expect(await store.claim(repeated)).toEqual({ status: 'acquired', fence: 1 })
    expect(statements).toHaveLength(4)
    await postgresStore(pool).claim(like)
    const { rows } = await pool.query(
      `select to_jsonb(r) - '{id,token,created_at,lease_until,expires_at,expiry_bucket}'::text[] as kept,
         round(extract(epoch from lease_until - created_at))::int as lease,
         round(extract(epoch from expires_at - created_at))::int as remembered,
         expiry_bucket - floor(extract(epoch from expires_at) / 10)::int as off
       from oncekey_records r where id = any($1)`,
      [[claim.id, like.id]],
    )
    expect(rows[0]).toEqual(rows[1])
    expect(rows[0]).toMatchObject({ lease: HOUR / 1000, remembered: HOUR / 1000, off: 0 })
    await store.claim(aClaim({ mayBeLost: true }))
    expect(statements.at(-1)).not.toContain('insert')
  })

  it('plans a statement once a connection', async () => {
    const single = new Pool({ connectionString: postgresUrl, max: 1 })
    const store = postgresStore(single, { prepare: true })
    for (let claim = 0; claim < 3; claim += 1) await store.claim(aClaim())
    const { rows } = await single.query('select count(*)::int as prepared from pg_prepared_statements')
    expect(rows).toEqual([{ prepared: 1 }])
    await single.end()
  })
})

describeWith(['postgres'], 'transactions of stores around postgresStore', () => {
  it.each(transactionContract)('sealedStore $name', async ({ run }) => {
    await run(sealedStore(postgresStore(pool), { keys: [randomBytes(32)] }))
  })

  it.each(transactionContract)('tieredStore $name', async ({ run }) => {
    await run(tieredStore({ durable: postgresStore(pool), replays: memoryStore() }))
  })

  it('seal what they keep, with and without a transaction of their own', async () => {
    const inner = postgresStore(pool)
    const store = sealedStore(inner, { keys: [randomBytes(32)] })
    const claims = [aClaim(), aClaim()] as const
    for (const claim of claims) await store.claim(claim)
    const [own, given] = claims
    const completion = { id: own.id, token: own.token, outcome: anOutcome({ head: 'secret' }), ttlMs: HOUR }
    const settings = { isolation: undefined, lockTimeoutMs: undefined, attempts: 1 }
    const { signal } = new AbortController()
    await store.transaction?.(async () => ({ value: 1, completion }), { ...settings, signal })
    const client = await pool.connect()
    await client.query('begin')
    const execute = (text: string, values: unknown[]) => client.query(text, values)
    await store.completeIn?.(execute, given.id, given.token, anOutcome({ head: 'secret' }), HOUR)
    await client.query('commit')
    client.release()
    for (const { id } of claims) {
      expect(JSON.stringify(await inner.find(id))).not.toContain('secret')
      expect(await store.find(id)).toMatchObject({ outcome: { head: 'secret' } })
    }
  })
})

describeWith(['postgres'], 'a claim that may be lost', () => {
  it('commits without waiting for the disk, and leaves the connection as it was', async () => {
    const single = new Pool({ connectionString: postgresUrl, max: 1 })
    const settings: string[] = []
    const store = postgresStore({
      async query(query: string | PostgresQuery) {
        // In one transaction with the claim, to see what its commit would have done.
        await single.query('begin')
        const result = await single.query(query)
        const { rows } = await single.query('show synchronous_commit')
        settings.push(rows[0].synchronous_commit)
        await single.query('commit')
        return result
      },
    })
    await store.claim(aClaim({ mayBeLost: true }))
    await store.claim(aClaim({ mayBeLost: false }))
    expect(settings).toEqual(['off', 'on'])
    expect((await single.query('show synchronous_commit')).rows).toEqual([{ synchronous_commit: 'on' }])
    await single.end()
  })
})

describeWith(['postgres'], 'postgresStore beside a transaction that holds the row', () => {
  let holder: Client
  beforeEach(async () => {
    holder = new Client({ connectionString: postgresUrl })
    await holder.connect()
    await holder.query('begin')
  })
  afterEach(() => holder.end())

  it('asks again after a conflict in a database whose transactions are serializable', async () => {
    const options = '-c default_transaction_isolation=serializable'
    const strict = new Pool({ connectionString: postgresUrl, max: 1, options })
    const claim = aClaim()
    await postgresStore(within(holder)).claim(claim)
    const { rows } = await strict.query('select pg_backend_pid() as pid')
    const second = postgresStore(strict).claim(aClaim({ id: claim.id }))
    await expect
      .poll(() =>
        pool.query(`select from pg_stat_activity where pid = $1 and wait_event_type = 'Lock'`, [rows[0].pid]),
      )
      .toMatchObject({ rowCount: 1 })
    await holder.query('commit')
    expect(await second).toMatchObject({ status: 'running' })
    await strict.end()
  })

  it('neither waits for it when it sweeps, nor removes what it claims anew', async () => {
    const store = postgresStore(pool)
    const claim = aClaim()
    await store.claim(claim)
    await store.complete(claim.id, claim.token, anOutcome(), 1)
    await until(store, claim.id, (record) => record === undefined)
    expect(await postgresStore(within(holder)).claim(aClaim({ id: claim.id }))).toEqual({
      status: 'acquired',
      fence: 1,
    })
    await store.sweep?.()
    await holder.query('commit')
    expect(await store.find(claim.id)).toMatchObject({ status: 'running' })
  })
})

describeWith(['postgres', 'pgbouncer'], 'postgresStore behind PgBouncer in transaction mode', () => {
  it.each([...storeContract, ...transactionContract])('$name', async ({ run }) => {
    await run(postgresStore(bounced))
  })

  let bouncer: Awaited<ReturnType<typeof startPgBouncer>>
  let bounced: Pool
  beforeAll(async () => {
    bouncer = await startPgBouncer(postgresUrl)
    bounced = new Pool({ connectionString: bouncer.url, max: 8 })
  })
  afterAll(async () => {
    await bounced.end()
    await bouncer.stop()
  })
})

describeWith(['postgres'], 'postgresStore migrations', () => {
  it('run once when many processes run them', async () => {
    const table = aTable()
    const pools = times(8, () => new Pool({ connectionString: postgresUrl, max: 1 }))
    await Promise.all(pools.map((each) => postgresStore(each, { table }).migrate()))
    await Promise.all(pools.map((each) => each.end()))
    const { rows } = await pool.query(
      'select version from oncekey_migrations where records = $1 order by 1',
      [table],
    )
    expect(rows).toEqual([{ version: 1 }, { version: 2 }])
  })

  it('run in a database whose transactions are serializable', async () => {
    const table = aTable()
    const options = '-c default_transaction_isolation=serializable'
    const strict = new Pool({ connectionString: postgresUrl, max: 4, options })
    await Promise.all(times(4, () => postgresStore(strict, { table }).migrate()))
    await strict.end()
    expect(await postgresStore(pool, { table }).check?.()).toHaveLength(1)
  })

  it('can be printed and run by somebody else', async () => {
    const store = postgresStore(pool, { table: aTable() })
    await pool.query(store.migrationSql())
    expect(await store.claim(aClaim())).toEqual({ status: 'acquired', fence: 1 })
  })
})

describeWith(['postgres'], 'postgresStore at start', () => {
  const unfit = (message: RegExp) => ({
    code: 'IDEMPOTENCY_STORE_UNFIT',
    message: expect.stringMatching(message),
  })

  it('refuses a database without its table', async () => {
    await expect(postgresStore(pool, { table: aTable() }).check?.()).rejects.toMatchObject(
      unfit(/no table .* run store\.migrate\(\)/),
    )
  })

  it('refuses an unlogged table', async () => {
    const table = aTable()
    const store = postgresStore(pool, { table })
    await store.migrate()
    await pool.query(`alter table ${table} set unlogged`)
    await expect(store.check?.()).rejects.toMatchObject(unfit(/unlogged/))
  })

  it('refuses a table of an earlier migration', async () => {
    const table = aTable()
    const store = postgresStore(pool, { table })
    await store.migrate()
    await pool.query('delete from oncekey_migrations where records = $1', [table])
    await expect(store.check?.()).rejects.toMatchObject(unfit(/at migration 0/))
  })

  it('warns when a crash can lose commits', async () => {
    const options = '-c synchronous_commit=off'
    const careless = new Pool({ connectionString: postgresUrl, max: 1, options })
    expect(await postgresStore(careless).check?.()).toEqual([
      expect.stringContaining('fsync'),
      expect.stringContaining('synchronous_commit'),
    ])
    await careless.end()
  })
})

describeWith(['postgres'], 'a record in Postgres', () => {
  it('is completed without a new entry in any index', async () => {
    const table = aTable()
    const store = postgresStore(pool, { table })
    await store.migrate()
    const claims = times(50, () => aClaim())
    for (const claim of claims) {
      await store.claim(claim)
      await store.complete(claim.id, claim.token, anOutcome(), HOUR)
    }
    const hot = async (): Promise<number> => {
      const { rows } = await pool.query(
        `select n_tup_upd::int as all, n_tup_hot_upd::int as hot from pg_stat_user_tables where relname = $1`,
        [table],
      )
      return rows[0]?.all === claims.length ? rows[0].hot : 0
    }
    // Statistics come a little late. An expiry that moves on to the next ten seconds costs an entry.
    await expect.poll(hot, { timeout: 20_000 }).toBeGreaterThan(claims.length * 0.8)
  })
})

describeWith(['postgres'], 'postgresStore sweep', () => {
  /** A table of its own, with so many records that have expired. */
  async function withExpired(count: number) {
    const table = aTable()
    const store = postgresStore(pool, { table })
    await store.migrate()
    await pool.query(`
      insert into ${table} (id, scope, key, route, first_seen_at, fingerprint, status, fence, lease_until, expires_at, expiry_bucket)
      select 'gone ' || n, '', '', '', 0, '', 'running', 1, now(), now(), floor(extract(epoch from now()) / 10)
      from generate_series(1, ${count}) n
    `)
    return { table, store }
  }

  it('removes everything that has expired, over several batches and processes', async () => {
    const { table, store } = await withExpired(2500)
    const live = aClaim()
    await store.claim(live)
    const removed = await Promise.all(times(3, () => store.sweep?.()))
    expect(removed.reduce<number>((sum, count) => sum + (count ?? 0), 0)).toBe(2500)
    expect((await pool.query(`select id from ${table}`)).rows).toEqual([{ id: live.id }])
  })

  it('rests between its batches', async () => {
    const { table, store } = await withExpired(20_000)
    const swept = store.sweep?.()
    const resting = `select count(*)::int as count from pg_stat_activity where wait_event = 'PgSleep' and query like '%${table}%'`
    await expect
      .poll(async () => (await pool.query(resting)).rows[0].count, { interval: 1, timeout: 5000 })
      .toBe(1)
    expect(await swept).toBe(20_000)
  })

  it('finds what has expired by its index', async () => {
    const table = aTable()
    const store = postgresStore(pool, { table })
    await store.migrate()
    await pool.query(`
      insert into ${table} (id, scope, key, route, first_seen_at, fingerprint, status, fence, lease_until, expires_at, expiry_bucket)
      select n::text, '', '', '', 0, '', 'running', 1, now(), now() + interval '1 day', floor(extract(epoch from now()) / 10) + 8640
      from generate_series(1, 5000) n
    `)
    await pool.query(`analyze ${table}`)
    const { rows } = await pool.query(
      `explain ${sweepStatement(tableNames({ table }).table).replace('$1', `'sweep'`)}`,
    )
    expect(JSON.stringify(rows)).toContain(`${table}_expiry`)
  })

  it('reclaims a record that has expired before anybody swept', async () => {
    const store = postgresStore(pool)
    const claim = aClaim()
    await store.claim(claim)
    await store.complete(claim.id, claim.token, anOutcome(), 10)
    await until(store, claim.id, (record) => record === undefined)
    await Promise.all(times(20, () => store.claim(aClaim({ id: claim.id }))))
    expect(await store.find(claim.id)).toMatchObject({ status: 'running', fence: 1 })
  })
})
