import { PGlite, type Transaction } from '@electric-sql/pglite'
import { Pool, type PoolClient } from 'pg'
import postgres, { type Sql, type TransactionSql } from 'postgres'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import { pglite, postgresJs, postgresStore } from '../../src/stores/postgres.js'
import { storeContract } from '../../src/testing/store-contract.js'
import { aClaim, anOutcome, HOUR } from '../../src/testing/store-fixtures.js'
import { transactionContract } from '../../src/testing/transaction-contract.js'
import { freePort } from '../support/free-port.js'
import { gate } from '../support/gate.js'
import { startPgBouncer } from '../support/pgbouncer.js'
import { describeWith } from '../support/services.js'
import { checkStoreModel } from '../support/store-model.js'
import {
  aClaimed,
  aCompletion,
  EFFECTS,
  type TransactionSubject,
  transact,
  transactionCases,
} from '../support/transaction-cases.js'

const { postgresUrl, available } = inject('services')
let pool: Pool
beforeAll(async () => {
  if (!available.includes('postgres')) return
  pool = new Pool({ connectionString: postgresUrl, max: 10 })
  await postgresStore(pool).migrate()
  await pool.query(EFFECTS)
})
afterAll(async () => {
  await pool?.end()
})

const outside: TransactionSubject['outside'] = async (text) => (await pool.query(text)).rows

/** A client of postgres.js that says nothing. */
function aSql(options: postgres.Options<Record<string, postgres.PostgresType>> = {}): Sql {
  return postgres(postgresUrl, { max: 4, onnotice: () => {}, ...options }) as Sql
}

/** What postgres.js or the system says about a connection that is gone. */
const CONNECTION_ERROR = { code: expect.stringMatching(/^(CONNECTION_CLOSED|ECONNRESET|EPIPE|57P01)$/) }

/** How a client ends that has lost a connection: without a limit, it would wait for what was in flight there. */
const LOST = { timeout: 1 }

function within(client: unknown, text: string): Promise<readonly Record<string, unknown>[]> {
  return (client as TransactionSql).unsafe(text)
}

const PLAIN = { value: undefined, completion: undefined }

describeWith(['postgres'], 'postgresStore with a pg Pool', () => {
  it.each(transactionCases)('$name', async ({ run }) => {
    await run({
      store: postgresStore(pool),
      within: async (client, text) => (await (client as PoolClient).query(text)).rows,
      outside,
    })
  })
})

describe('postgresStore with pglite(db)', () => {
  let db: PGlite
  beforeAll(async () => {
    db = await PGlite.create()
    await postgresStore(pglite(db)).migrate()
    await db.exec(EFFECTS)
  })
  afterAll(() => db.close())

  it.each([...storeContract, ...transactionContract])('$name', async ({ run }) => {
    await run(postgresStore(pglite(db)))
  })

  it('follows the model through any interleaving of clients', async () => {
    await checkStoreModel(() => postgresStore(pglite(db)), { numRuns: 20 })
  })

  it.each(transactionCases)('$name', async ({ run }) => {
    await run({
      store: postgresStore(pglite(db)),
      within: async (client, text) =>
        (await (client as Transaction).query<Record<string, unknown>>(text)).rows,
      outside: async (text) => (await db.query<Record<string, unknown>>(text)).rows,
    })
  })

  it('lets its steps wait for a transaction, and none of the transaction for them', async () => {
    const store = postgresStore(pglite(db))
    const claim = await aClaimed(store)
    const { opened, open } = gate()
    const order: string[] = []
    const transaction = transact(store, async (client) => {
      open()
      await (client as Transaction).query('select 1')
      order.push('worked')
      return { value: undefined, completion: aCompletion(claim) }
    })
    await opened
    const renewal = store
      .renew(claim.id, claim.token, HOUR)
      .then((isHeld) => order.push(`renewed: ${isHeld}`))
    await Promise.all([transaction, renewal])
    expect(order).toEqual(['worked', 'renewed: false'])
  })

  it('gives its only connection back when work that never ends is given up', async () => {
    const store = postgresStore(pglite(db))
    const controller = new AbortController()
    const { opened, open } = gate()
    let late: Transaction | undefined
    const running = transact(
      store,
      (client) => {
        late = client as Transaction
        open()
        return new Promise<never>(() => {})
      },
      { signal: controller.signal },
    )
    await opened
    controller.abort(new Error('given up'))
    await expect(running).rejects.toThrow('given up')
    expect(await store.find('nobody')).toBeUndefined()
    await expect(late?.query('select 1')).rejects.toThrow(/has ended/)
  })

  it('does not take a transaction that the application rolled back for one that was committed', async () => {
    const running = transact(postgresStore(pglite(db)), async (client) => {
      await (client as Transaction).rollback()
      return PLAIN
    })
    await expect(running).rejects.toThrow(/closed/)
  })

  it('reads its rows as ever, whatever the database was told about types', async () => {
    const usual = { ...db.parsers }
    const odd = () => 'odd'
    Object.assign(db.parsers, { 17: odd, 21: odd, 25: odd, 701: odd })
    await db.exec(`set bytea_output = 'escape'`)
    await checkRows(postgresStore(pglite(db)))
    await db.exec('reset bytea_output')
    Object.assign(db.parsers, usual)
  })

  it('refuses what is no database', () => {
    expect(() => pglite({} as never)).toThrow(/PGlite/)
    expect(() => pglite(undefined as never)).toThrow(/PGlite/)
  })
})

describeWith(['postgres'], 'postgresStore with postgresJs(sql)', () => {
  describe.each([{ prepare: false }, { prepare: true }])('%o', (options) => {
    let sql: Sql
    beforeAll(() => {
      sql = aSql()
    })
    afterAll(() => sql.end())

    it.each([...storeContract, ...transactionContract])('$name', async ({ run }) => {
      await run(postgresStore(postgresJs(sql), options))
    })

    it('follows the model through any interleaving of clients', async () => {
      await checkStoreModel(() => postgresStore(postgresJs(sql), options), { numRuns: 20 })
    })

    it.each(transactionCases)('$name', async ({ run }) => {
      await run({ store: postgresStore(postgresJs(sql), options), within, outside })
    })
  })

  it.each([
    { name: 'names in camel case', transform: postgres.camel },
    { name: 'names in Pascal case', transform: postgres.pascal },
    { name: 'no nulls', transform: { value: { from: (value: unknown) => value ?? undefined } } },
  ])('reads its rows as ever, whatever the client makes of rows: $name', async ({ transform }) => {
    const odd = { to: 0, from: [17, 21, 25, 701], parse: () => 'odd' } as never
    const sql = aSql({
      transform,
      types: { odd, bigint: postgres.BigInt },
      connection: { bytea_output: 'escape' },
    })
    await checkRows(postgresStore(postgresJs(sql)))
    await checkRows(postgresStore(postgresJs(sql), { prepare: true }))
    await sql.end()
  })

  it('prints no notices when it migrates a second time', async () => {
    const notices: unknown[] = []
    const sql = aSql({ onnotice: (notice) => notices.push(notice) })
    const store = postgresStore(postgresJs(sql), { table: 'migrated_twice' })
    await store.migrate()
    await store.migrate()
    expect(notices).toEqual([])
    await sql.end()
  })

  it('says so when it cannot begin', async () => {
    const sql = aSql({ port: await freePort(), host: '127.0.0.1', connect_timeout: 5 })
    const running = transact(postgresStore(postgresJs(sql)), async () => PLAIN)
    await expect(running).rejects.toMatchObject({ code: 'ECONNREFUSED' })
    await sql.end(LOST)
  })

  it('refuses a client that makes something else of whole rows, and what is no client', () => {
    const sql = aSql({ transform: { row: (row) => row } })
    expect(() => postgresJs(sql)).toThrow(/transform\.row/)
    expect(() => postgresJs({} as never)).toThrow(/postgres/)
    expect(() => postgresJs(undefined as never)).toThrow(/postgres/)
  })
})

describeWith(
  ['postgres', 'pgbouncer'],
  'postgresStore behind PgBouncer in transaction mode, with postgresJs(sql)',
  () => {
    let bouncer: Awaited<ReturnType<typeof startPgBouncer>>
    let sql: Sql
    beforeAll(async () => {
      bouncer = await startPgBouncer(postgresUrl)
      sql = postgres(bouncer.url, { max: 8, onnotice: () => {} })
    })
    afterAll(async () => {
      await sql.end()
      await bouncer.stop()
    })

    it.each([...storeContract, ...transactionContract])('$name', async ({ run }) => {
      await run(postgresStore(postgresJs(sql)))
    })

    it.each(transactionCases)('$name', async ({ run }) => {
      await run({ store: postgresStore(postgresJs(sql)), within, outside })
    })
  },
)

describeWith(['postgres'], 'postgresStore with postgresJs(sql), when a connection is lost', () => {
  it.each([
    { when: 'while a statement runs', statement: 'select pg_sleep(60)' },
    { when: 'between two statements', statement: undefined },
  ])('runs nothing of its transaction outside of it: $when', async ({ statement }) => {
    const sql = aSql({ max: 1 })
    const store = postgresStore(postgresJs(sql))
    const claim = await aClaimed(store)
    const { id } = claim
    let refused = 0
    const note = (error: unknown): void => {
      expect(error).toMatchObject(CONNECTION_ERROR)
      refused += 1
    }
    const running = transact(store, async (given) => {
      const client = given as TransactionSql
      await client`insert into effects values (${id})`
      const madeBefore = client`insert into effects values (${`${id}2`})`
      const [{ pid }] = await client<[{ pid: number }]>`select pg_backend_pid() as pid`
      const gone = terminate(pid)
      if (statement !== undefined) await client.unsafe(statement).catch(note)
      if (statement !== undefined) await client`insert into effects values (${`${id}3`})`.catch(note)
      await gone
      // Whatever uses the client now gets a connection in the place of the lost one.
      await expect.poll(() => sql`select 1 as one`.catch(() => [])).toEqual([{ one: 1 }])
      await madeBefore.catch(note)
      const senders: readonly (() => PromiseLike<unknown>)[] = [
        () => client`insert into effects values (${`${id}4`})`,
        () => client.unsafe('insert into effects values ($1)', [`${id}5`]),
        () => client.savepoint((inner) => inner`insert into effects values (${`${id}6`})`),
      ]
      for (const send of senders) await Promise.resolve().then(send).catch(note)
      return { value: undefined, completion: aCompletion(claim) }
    })
    await expect(running).rejects.toMatchObject(CONNECTION_ERROR)
    expect(refused).toBe(statement === undefined ? 4 : 6)
    expect(await outside(`select from effects where n like '${id}%'`)).toEqual([])
    expect(await store.find(id)).toMatchObject({ status: 'running' })
    await sql.end(LOST)
  })

  it('hands on what its work failed with', async () => {
    const sql = aSql()
    const running = transact(postgresStore(postgresJs(sql)), async (given) => {
      const client = given as TransactionSql
      const [{ pid }] = await client<[{ pid: number }]>`select pg_backend_pid() as pid`
      await terminate(pid)
      throw new Error('of the work')
    })
    await expect(running).rejects.toThrow('of the work')
    await sql.end(LOST)
  })

  it('tells whoever waits for an answer, and does not commit for work that ignores it', async () => {
    // More than once, since a connection goes in more than one way.
    for (let round = 0; round < 10; round += 1) {
      const sql = aSql()
      const running = transact(postgresStore(postgresJs(sql)), async (given) => {
        const client = given as TransactionSql
        const [{ pid }] = await client<[{ pid: number }]>`select pg_backend_pid() as pid`
        const gone = terminate(pid)
        const told = await Promise.allSettled([
          client`select pg_sleep(60)`,
          client`select ${1}::int`,
          client`select ${2}::int`,
        ])
        expect(told.map(({ status }) => status)).toEqual(['rejected', 'rejected', 'rejected'])
        await gone
        return PLAIN
      })
      await expect(running).rejects.toMatchObject(CONNECTION_ERROR)
      await sql.end(LOST)
    }
  })

  it.each([
    { what: 'a connection in its place', isReplaced: true },
    { what: 'no connection', isReplaced: false },
  ])('runs nothing outside of it from within a savepoint, with $what', async ({ isReplaced }) => {
    const sql = aSql({ max: 1 })
    const store = postgresStore(postgresJs(sql))
    const { id } = aClaim()
    const running = transact(store, async (given) => {
      const client = given as TransactionSql
      await client.savepoint(async (inner) => {
        const [{ pid }] = await inner<[{ pid: number }]>`select pg_backend_pid() as pid`
        await terminate(pid)
        if (isReplaced) await expect.poll(() => sql`select 1 as one`.catch(() => [])).toEqual([{ one: 1 }])
        await inner`insert into effects values (${id})`
      })
      return PLAIN
    })
    await expect(running).rejects.toMatchObject(CONNECTION_ERROR)
    expect(await outside(`select from effects where n = '${id}'`)).toEqual([])
    await sql.end(LOST)
  })
})

describeWith(['postgres'], 'a transaction of postgresJs(sql)', () => {
  let sql: Sql
  beforeAll(() => {
    sql = aSql()
  })
  afterAll(() => sql.end())

  it('gives everything that the sql of postgres.js can do, savepoints among it', async () => {
    const { id } = aClaim()
    const result = await transact(postgresStore(postgresJs(sql)), async (given) => {
      const client = given as TransactionSql
      const row = { n: id, late: 2 }
      await client`insert into ${client('effects')} ${client(row)}`
      const failing = client.savepoint(async (inner) => {
        await inner`update effects set late = 4 where n = ${id}`
        await inner`select 1 / 0`
      })
      await expect(failing).rejects.toMatchObject({ code: '22012' })
      const [, late] = await client.savepoint('named', (inner) => [
        inner`select 1`,
        inner`update effects set late = late + 10 where n = ${id} returning late`,
      ])
      return { value: [...late], completion: undefined }
    })
    expect(result).toEqual({ committed: true, value: [{ late: 12 }] })
    expect(await outside(`select late from effects where n = '${id}'`)).toEqual([{ late: 12 }])
  })

  it('refuses statements after its end', async () => {
    const { id } = aClaim()
    const late: { client?: TransactionSql; query?: PromiseLike<unknown> } = {}
    await transact(postgresStore(postgresJs(sql)), async (client) => {
      late.client = client as TransactionSql
      late.query = late.client`insert into effects values (${id})`
      return PLAIN
    })
    await expect(late.client?.unsafe(`insert into effects values ('${id}')`)).rejects.toThrow(/has ended/)
    await expect(late.client?.savepoint((inner) => inner`select 1`)).rejects.toThrow(/has ended/)
    await expect(late.query).rejects.toThrow(/has ended/)
    expect(await outside(`select from effects where n = '${id}'`)).toEqual([])
  })

  it('gives its connection back when work that never ends is given up', async () => {
    const single = aSql({ max: 1 })
    const store = postgresStore(postgresJs(single))
    const controller = new AbortController()
    const { opened, open } = gate()
    let late: TransactionSql | undefined
    const { signal } = controller
    const running = transact(
      store,
      (client) => {
        late = client as TransactionSql
        open()
        return new Promise<never>(() => {})
      },
      { signal },
    )
    const waiting = transact(store, async () => PLAIN, { signal })
    waiting.catch(() => {})
    await opened
    controller.abort(new Error('given up'))
    for (const each of [running, waiting]) await expect(each).rejects.toThrow('given up')
    expect(await store.find('nobody')).toBeUndefined()
    await expect(late?.unsafe('select 1')).rejects.toThrow('given up')
    await single.end()
  })

  it('leaves a connection for claims and renewals, however many there are', async () => {
    const narrow = aSql({ max: 2 })
    const store = postgresStore(postgresJs(narrow))
    const { opened, open } = gate()
    let running = 0
    const held = Array.from({ length: 3 }, () =>
      transact(store, async () => {
        running += 1
        await opened
        return PLAIN
      }),
    )
    await expect.poll(() => running, { timeout: 20_000 }).toBeGreaterThan(0)
    await aClaimed(store)
    open()
    await Promise.all(held)
    await narrow.end()
  })

  it('is never begun behind other statements, as long as nobody else uses the client', async () => {
    const narrow = aSql({ max: 2, ...pipeline(1) })
    const driver = postgresJs(narrow)
    const store = postgresStore(driver, { prepare: true })
    const { id, token } = await aClaimed(store)
    // Steps of one store would share a statement, and a connection.
    const stores = [store, postgresStore(driver, { prepare: true })]
    const renewals = () => Promise.all(stores.map((one) => one.renew(id, token, HOUR)))
    // What is prepared on its connection is sent in one go, and the next statement behind it.
    await renewals()
    const holder = await pool.connect()
    await holder.query('begin')
    await holder.query('select from oncekey_records where id = $1 for update', [id])
    const steps = renewals()
    const waiting = `select from pg_stat_activity where wait_event_type = 'Lock' and query like '%oncekey_records_renew%'`
    await expect.poll(() => outside(waiting), { timeout: 20_000 }).toHaveLength(2)
    const running = transact(store, async () => PLAIN)
    running.catch(() => {})
    await holder.query('commit')
    holder.release()
    expect(await steps).toEqual([true, true])
    expect(await running).toEqual({ committed: true, value: undefined })
    await narrow.end()
  })

  it('ends all use of the client when postgres.js began it behind the statements of others', async () => {
    const shared = aSql({ max: 2, ...pipeline(1) })
    const store = postgresStore(postgresJs(shared))
    await Promise.all(['one', 'two'].map((which) => shared.unsafe(`select 1 as ${which}`)))
    const others = ['one', 'two'].map((which) => shared.unsafe(`select pg_sleep(2) as ${which}`).execute())
    await expect
      .poll(() =>
        outside(
          `select from pg_stat_activity where state = 'active' and query like '%pg_sleep(2) as %' and pid <> pg_backend_pid()`,
        ),
      )
      .toHaveLength(2)
    const running = transact(store, async () => PLAIN)
    await expect(running).rejects.toMatchObject({ code: 'UNSAFE_TRANSACTION' })
    await expect(store.find('nobody')).rejects.toThrow(/client of its own/)
    await expect(transact(store, async () => PLAIN)).rejects.toThrow(/client of its own/)
    await Promise.all(others)
    await shared.end({ timeout: 0 })
  })
})

describeWith(['postgres'], 'a commit without an answer', () => {
  beforeAll(async () => {
    // The server closes the connection in the middle of the commit, as it does when it is shut down.
    await pool.query(`
      create table if not exists dying (n text);
      create or replace function end_connection() returns trigger language plpgsql as $body$
      begin perform pg_terminate_backend(pg_backend_pid()); return null; end $body$;
      drop trigger if exists dying_late on dying;
      create constraint trigger dying_late after insert on dying
        deferrable initially deferred for each row execute function end_connection();
    `)
  })

  it('of a pg Pool is undecided', async () => {
    const running = transact(postgresStore(pool), async (client) => {
      await (client as PoolClient).query(`insert into dying values ('')`)
      return PLAIN
    })
    await expect(running).rejects.toMatchObject({ code: 'IDEMPOTENCY_COMMIT_UNDECIDED' })
  })

  it('of postgres.js is undecided', async () => {
    const sql = aSql()
    const running = transact(postgresStore(postgresJs(sql)), async (client) => {
      await within(client, `insert into dying values ('')`)
      return PLAIN
    })
    await expect(running).rejects.toMatchObject({ code: 'IDEMPOTENCY_COMMIT_UNDECIDED' })
    await sql.end(LOST)
  })
})

/** How many statements postgres.js sends on a connection before the first is answered. Its types do not know of it. */
function pipeline(max: number): object {
  return { max_pipeline: max }
}

/** Ends a connection from the side of the server, and waits until it is gone. */
async function terminate(pid: number): Promise<void> {
  await pool.query('select pg_terminate_backend($1)', [pid])
  await expect
    .poll(() => pool.query('select from pg_stat_activity where pid = $1', [pid]), { timeout: 20_000 })
    .toMatchObject({ rowCount: 0 })
}

/** Writes a record with every kind of value, and reads it back. */
async function checkRows(store: ReturnType<typeof postgresStore>): Promise<void> {
  const bytes = Buffer.from(Array.from({ length: 512 }, (_, index) => index % 256))
  const head = `{"ü":'"\\\\'}`
  const claim = aClaim()
  expect(await store.claim(claim)).toEqual({ status: 'acquired', fence: 1 })
  expect(await store.find(claim.id)).toMatchObject({ status: 'running', fence: 1, meta: claim.meta })
  await store.complete(claim.id, claim.token, anOutcome({ head, body: bytes }), HOUR)
  const found = await store.claim(aClaim({ id: claim.id }))
  expect(found).toMatchObject({ status: 'completed', outcome: { head }, ageMs: expect.any(Number) })
  expect(found.status === 'completed' && Buffer.from(found.outcome.body ?? []).equals(bytes)).toBe(true)
  const other = aClaim()
  await store.claim(other)
  await store.complete(other.id, other.token, anOutcome({ body: null }), HOUR)
  expect(await store.find(other.id)).toMatchObject({ outcome: { body: null } })
}
