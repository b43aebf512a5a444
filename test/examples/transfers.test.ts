import { randomUUID } from 'node:crypto'
import { PGlite } from '@electric-sql/pglite'
import { PrismaPg } from '@prisma/adapter-pg'
import { drizzle as drizzleOnPool, type NodePgDatabase } from 'drizzle-orm/node-postgres'
import { drizzle as drizzleOnPostgresJs } from 'drizzle-orm/postgres-js'
import Fastify, { type FastifyInstance } from 'fastify'
import knex from 'knex'
import { Kysely, PostgresDialect } from 'kysely'
import { Client, Pool } from 'pg'
import postgres from 'postgres'
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest'
import { addOrders } from '../../examples/transfers/charge.js'
import { addTransfers as addDrizzle } from '../../examples/transfers/drizzle.js'
import { addTransfers as addDrizzleTransaction } from '../../examples/transfers/drizzle-transaction.js'
import { addTransfers as addKnex } from '../../examples/transfers/knex.js'
import { addTransfers as addKysely, type Tables } from '../../examples/transfers/kysely.js'
import { addTransfers as addPGlite } from '../../examples/transfers/pglite.js'
import { addTransfers as addPool } from '../../examples/transfers/pool.js'
import { addTransfers as addPostgresJs } from '../../examples/transfers/postgres-js.js'
import { PrismaClient } from '../../examples/transfers/prisma/client/client.js'
import { addTransfers as addPrisma } from '../../examples/transfers/prisma.js'
import { caller } from '../../examples/transfers/transfer.js'
import idempotency, { type RequestIdempotency } from '../../src/adapters/fastify.js'
import { type PostgresStore, pglite, postgresJs, postgresStore } from '../../src/stores/postgres.js'
import { aClaim } from '../../src/testing/store-fixtures.js'
import { type Answered, aKey, send } from '../support/fastify-app.js'
import { describeWith } from '../support/services.js'

/** An example with its database. */
interface Bank {
  readonly store: PostgresStore
  addTransfers(app: FastifyInstance): void
  /** Runs a statement outside of every transaction. */
  query(text: string, values?: unknown[]): Promise<readonly Record<string, unknown>[]>
  close(): Promise<void>
}

const TABLES = `
create table accounts (id text primary key, balance int not null check (balance >= 0));
create table transfers (id serial primary key, from_account text not null, to_account text not null, amount int not null);
`

const { postgresUrl } = inject('services')
/** Who sends everything here: what nobody sends is refused. */
const ALICE = { 'x-account': 'alice' }

/** A database that nobody else uses. */
async function aDatabase(): Promise<{ readonly url: string; readonly pool: Pool; drop(): Promise<void> }> {
  const name = `transfers_${randomUUID().slice(0, 8)}`
  const asAdmin = async (text: string): Promise<void> => {
    const admin = new Client({ connectionString: postgresUrl })
    await admin.connect()
    await admin.query(text)
    await admin.end()
  }
  await asAdmin(`create database ${name}`)
  const url = Object.assign(new URL(postgresUrl), { pathname: `/${name}` }).href
  const pool = new Pool({ connectionString: url })
  pool.on('error', () => {})
  await pool.query(TABLES)
  return {
    url,
    pool,
    async drop() {
      await pool.end()
      await asAdmin(`drop database ${name} with (force)`)
    },
  }
}

/** A bank whose store has a Pool of its own, beside whatever client its example has. */
async function aBank(
  open: (url: string) => {
    addTransfers(app: FastifyInstance): void
    close(): Promise<unknown>
    readonly store?: PostgresStore
  },
): Promise<Bank> {
  const { url, pool, drop } = await aDatabase()
  const { addTransfers, close, store = postgresStore(pool) } = open(url)
  await store.migrate()
  return {
    store,
    addTransfers,
    query: async (text, values) => (await pool.query(text, values)).rows,
    async close() {
      await close()
      await drop()
    },
  }
}

const quiet = { onnotice: () => {} }

const withSaveIn: readonly { readonly name: string; open(): Promise<Bank> }[] = [
  {
    name: 'Drizzle on pg',
    open: () =>
      aBank((url) => {
        const pool = new Pool({ connectionString: url })
        const db = drizzleOnPool(pool)
        return { addTransfers: (app) => addDrizzle(app, db), close: () => pool.end() }
      }),
  },
  {
    name: 'Drizzle on postgres.js',
    open: () =>
      aBank((url) => {
        const sql = postgres(url, quiet)
        // The same methods, under a type of its own for what a raw statement gives.
        const db = drizzleOnPostgresJs(sql) as unknown as NodePgDatabase
        return { addTransfers: (app) => addDrizzle(app, db), close: () => sql.end() }
      }),
  },
  {
    name: 'Kysely',
    open: () =>
      aBank((url) => {
        const db = new Kysely<Tables>({
          dialect: new PostgresDialect({ pool: new Pool({ connectionString: url }) }),
        })
        return { addTransfers: (app) => addKysely(app, db), close: () => db.destroy() }
      }),
  },
  {
    name: 'Knex',
    open: () =>
      aBank((url) => {
        const db = knex({ client: 'pg', connection: url })
        return { addTransfers: (app) => addKnex(app, db), close: () => db.destroy() }
      }),
  },
  {
    name: 'Prisma',
    open: () =>
      aBank((url) => {
        const prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: url }) })
        return { addTransfers: (app) => addPrisma(app, prisma), close: () => prisma.$disconnect() }
      }),
  },
]

const withTransaction: typeof withSaveIn = [
  { name: 'a pg Pool', open: () => aBank(() => ({ addTransfers: addPool, close: async () => {} })) },
  {
    name: 'Drizzle in transaction()',
    open: () => aBank(() => ({ addTransfers: addDrizzleTransaction, close: async () => {} })),
  },
  {
    name: 'postgres.js',
    open: () =>
      aBank((url) => {
        const sql = postgres(url, quiet)
        return {
          store: postgresStore(postgresJs(sql), { prepare: true }),
          addTransfers: addPostgresJs,
          close: () => sql.end(),
        }
      }),
  },
  {
    name: 'PGlite',
    async open() {
      const db = await PGlite.create()
      await db.exec(TABLES)
      const store = postgresStore(pglite(db))
      await store.migrate()
      return {
        store,
        addTransfers: addPGlite,
        query: async (text, values) => (await db.query<Record<string, unknown>>(text, values)).rows,
        close: () => db.close(),
      }
    },
  },
]

/** What happens in the middle of a handler. */
interface Disturbance {
  /** After the claim, and before its outcome is kept. */
  meanwhile?(key: string): Promise<void>
  /** After the effects, and before the outcome is kept. */
  beforeKeeping?(): void
  /** When the outcome is kept, and not yet committed. */
  afterKeeping?(): void
  /** What the handler was told in the place of a kept outcome. */
  onError?(error: unknown): void
}

function fail(): never {
  throw new Error('out of order')
}

/** Gets in between a handler and what it asks of `request.idempotency`. */
function disturb(given: RequestIdempotency, disturbance: () => Disturbance): void {
  const saveIn = given.saveIn.bind(given)
  const transaction = given.transaction.bind(given)
  const noted = <T>(promise: Promise<T>): Promise<T> =>
    promise.catch((error: unknown) => {
      disturbance().onError?.(error)
      throw error
    })
  const replaced: Pick<RequestIdempotency, 'saveIn' | 'transaction'> = {
    async saveIn(execute, response) {
      await disturbance().meanwhile?.(given.key ?? '')
      disturbance().beforeKeeping?.()
      await noted(saveIn(execute, response))
      disturbance().afterKeeping?.()
    },
    async transaction<T, TClient>(work: (tx: TClient) => Promise<T>): Promise<T> {
      await disturbance().meanwhile?.(given.key ?? '')
      const working = transaction<T, TClient>(async (tx) => {
        const value = await work(tx)
        disturbance().beforeKeeping?.()
        disturbance().afterKeeping?.()
        return value
      })
      return noted(working)
    },
  }
  Object.assign(given, replaced)
}

/** Takes a claim over that its holder still works on, as another server would after a long stall of the first. */
async function takeOver({ store, query }: Bank, key: string): Promise<void> {
  await query(`update oncekey_records set lease_until = now() - interval '1 second' where key = $1`, [key])
  const [record] = await query('select id, fingerprint from oncekey_records where key = $1', [key])
  const taken = await store.claim(
    aClaim({ id: String(record?.id), fingerprint: String(record?.fingerprint), takeOver: true }),
  )
  expect(taken).toEqual({ status: 'acquired', fence: 2 })
}

describeWith(['postgres'], 'examples/transfers', () => {
  describe.each([...withSaveIn, ...withTransaction])('$name', ({ open }) => {
    let bank: Bank
    let disturbance: Disturbance
    beforeAll(async () => {
      bank = await open()
    })
    beforeEach(async () => {
      disturbance = {}
      await bank.query('delete from transfers')
      await bank.query('delete from accounts')
      await bank.query(`insert into accounts values ('alice', 100), ('bob', 100)`)
    })
    afterAll(() => bank.close())

    async function aServer(): Promise<FastifyInstance> {
      const app = Fastify()
      await app.register(idempotency, { store: bank.store, scope: caller, replayCache: false })
      app.addHook('preHandler', async (request) => {
        disturb(request.idempotency, () => disturbance)
      })
      bank.addTransfers(app)
      return app
    }

    async function transfer(app: FastifyInstance, key: string, amount = 30): Promise<Answered> {
      return send(app, '/transfers', { key, headers: ALICE, payload: { from: 'alice', to: 'bob', amount } })
    }

    async function state(): Promise<{ readonly transfers: number; readonly balances: unknown }> {
      const made = await bank.query('select 1 as one from transfers')
      const accounts = await bank.query('select balance from accounts order by id')
      return { transfers: made.length, balances: accounts.map(({ balance }) => balance) }
    }

    const UNTOUCHED = { transfers: 0, balances: [100, 100] }
    const MOVED = { transfers: 1, balances: [70, 130] }

    it('moves the money and keeps the answer, and a retry gets it as it was', async () => {
      const app = await aServer()
      const key = aKey()
      const first = await transfer(app, key)
      expect(first).toMatchObject({ status: 201, isReplay: false })
      expect(JSON.parse(first.bytes.toString())).toEqual({
        id: expect.any(Number),
        from: 'alice',
        to: 'bob',
        amount: 30,
      })
      for (const server of [app, await aServer()]) {
        const again = await transfer(server, key)
        expect(again).toMatchObject({ status: 201, isReplay: true })
        expect(again.bytes).toEqual(first.bytes)
        expect(again.headers['content-type']).toBe(first.headers['content-type'])
      }
      expect(await state()).toEqual(MOVED)
    })

    it('takes everything back when it fails at the end, and a retry runs it again', async () => {
      const app = await aServer()
      const key = aKey()
      disturbance = { afterKeeping: fail }
      expect((await transfer(app, key)).status).toBe(500)
      expect(await state()).toEqual(UNTOUCHED)
      disturbance = {}
      expect(await transfer(app, key)).toMatchObject({ status: 201, isReplay: false })
      expect(await state()).toEqual(MOVED)
    })

    it('takes everything back when it fails before anything is kept, and a retry runs it again', async () => {
      const app = await aServer()
      const key = aKey()
      disturbance = { beforeKeeping: fail }
      expect((await transfer(app, key)).status).toBe(500)
      expect(await state()).toEqual(UNTOUCHED)
      disturbance = {}
      expect(await transfer(app, key)).toMatchObject({ status: 201, isReplay: false })
      expect(await state()).toEqual(MOVED)
    })

    it('keeps a refusal as the answer, and moves nothing', async () => {
      const app = await aServer()
      const key = aKey()
      const refused = await transfer(app, key, 1000)
      expect(refused).toMatchObject({ status: 402, isReplay: false })
      const again = await transfer(app, key, 1000)
      expect(again).toMatchObject({ status: 402, isReplay: true })
      expect(again.bytes).toEqual(refused.bytes)
      expect(await state()).toEqual(UNTOUCHED)
    })

    it('moves the money once for many requests at once, on two servers', async () => {
      const servers = [await aServer(), await aServer()]
      const key = aKey()
      const answers = await Promise.all(
        Array.from({ length: 10 }, (_, index) => transfer(servers[index % 2] as FastifyInstance, key)),
      )
      expect(answers.filter(({ status, isReplay }) => status === 201 && !isReplay)).toHaveLength(1)
      expect(answers.every(({ status }) => status === 201 || status === 409)).toBe(true)
      expect(await state()).toEqual(MOVED)
    })

    it('takes everything back when its claim was taken over meanwhile', async () => {
      const app = await aServer()
      const key = aKey()
      const told: unknown[] = []
      disturbance = { meanwhile: () => takeOver(bank, key), onError: (error) => told.push(error) }
      const answered = await transfer(app, key)
      expect(answered).toMatchObject({ status: 409, code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
      expect(told).toMatchObject([{ code: 'IDEMPOTENCY_CLAIM_LOST' }])
      expect(await state()).toEqual(UNTOUCHED)
    })
  })

  describe.each(withSaveIn)('$name', ({ open }) => {
    it('keeps nothing when saveIn gets what runs statements outside of the transaction', async () => {
      const bank = await open()
      await bank.query(`insert into accounts values ('alice', 100), ('bob', 100)`)
      const app = Fastify()
      await app.register(idempotency, { store: bank.store, scope: caller })
      app.addHook('preHandler', async ({ idempotency: given }) => {
        const saveIn = given.saveIn.bind(given)
        Object.assign(given, {
          saveIn: (_execute: unknown, response: never) =>
            saveIn((text, values) => bank.query(text, values), response),
        })
      })
      bank.addTransfers(app)
      const key = aKey()
      const sent = () =>
        send(app, '/transfers', { key, headers: ALICE, payload: { from: 'alice', to: 'bob', amount: 1 } })
      expect(await sent()).toMatchObject({ status: 500 })
      expect(await bank.query('select 1 from transfers')).toEqual([])
      expect(await bank.query(`select 1 from oncekey_records`)).toEqual([])
      await bank.close()
    })
  })

  it('makes a call that cannot be rolled back with the same key in every run', async () => {
    const { pool, drop } = await aDatabase()
    const store = postgresStore(pool)
    await store.migrate()
    const app = Fastify()
    await app.register(idempotency, { store, scope: caller, secret: 'sixteen bytes at least' })
    const keys: string[] = []
    addOrders(app, {
      async charge(_order, { idempotencyKey }) {
        keys.push(idempotencyKey)
        return { id: `charge of ${idempotencyKey}` }
      },
    })
    const key = aKey()
    const order = () =>
      send(app, '/orders', { key, headers: ALICE, payload: { from: 'alice', to: 'bob', amount: 1 } })
    // There is no table yet: the call has been made, and its result cannot be committed.
    expect((await order()).status).toBe(500)
    await pool.query('create table orders (charge text not null)')
    expect(await order()).toMatchObject({ status: 201, isReplay: false })
    expect(await order()).toMatchObject({ status: 201, isReplay: true })
    expect(keys).toEqual([keys[0], keys[0]])
    const { rows } = await pool.query('select charge from orders')
    expect(rows).toEqual([{ charge: `charge of ${keys[0]}` }])
    await app.close()
    await drop()
  })
})
