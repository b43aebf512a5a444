import { randomUUID } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { PGlite } from '@electric-sql/pglite'
import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import { Redis } from 'ioredis'
import { Client, Pool } from 'pg'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import { createStockKeeper, type OrderEvent, STOCK_TABLES } from '../../examples/recipes/inventory.js'
import { addOrders, ORDER_TABLES } from '../../examples/recipes/orders.js'
import { addCodes } from '../../examples/recipes/otp.js'
import { addPayments, type Charge, NoAnswer, type Provider } from '../../examples/recipes/payments.js'
import { addSeats, addWebhooks, TICKET_TABLES } from '../../examples/recipes/tickets.js'
import { addWallets, WALLET_TABLES } from '../../examples/recipes/wallets.js'
import idempotency, { type FastifyIdempotencyOptions } from '../../src/adapters/fastify.js'
import { pglite, postgresStore } from '../../src/stores/postgres.js'
import { redisStore } from '../../src/stores/redis.js'
import { docBlocks } from '../support/doc-blocks.js'
import { aKey, send } from '../support/fastify-app.js'
import { describeWith } from '../support/services.js'

const { postgresUrl, redisUrl } = inject('services')
const SECRET = 'a secret of the tests'
const account = (request: FastifyRequest): string => String(request.headers['x-account'] ?? 'alice')
const times = <T>(count: number, make: (index: number) => T): T[] =>
  Array.from({ length: count }, (_, index) => make(index))

/** An application with the plugin. */
async function anApp(options: Partial<FastifyIdempotencyOptions>): Promise<FastifyInstance> {
  const app = Fastify()
  await app.register(idempotency, { scope: account, secret: SECRET, sweep: false, ...options })
  return app
}

/** A database that nobody else uses, for the tests of one group. */
function aDatabase(tables: string): {
  readonly pool: () => Pool
  rows(text: string): Promise<Record<string, unknown>[]>
} {
  const name = `recipes_${randomUUID().slice(0, 8)}`
  let pool: Pool
  const asAdmin = async (text: string): Promise<void> => {
    const admin = new Client({ connectionString: postgresUrl })
    await admin.connect()
    await admin.query(text)
    await admin.end()
  }
  beforeAll(async () => {
    await asAdmin(`create database ${name}`)
    pool = new Pool({ connectionString: Object.assign(new URL(postgresUrl), { pathname: `/${name}` }).href })
    await pool.query(tables)
    await postgresStore(pool).migrate()
  })
  afterAll(async () => {
    await pool.end()
    await asAdmin(`drop database ${name} with (force)`)
  })
  return {
    pool: () => pool,
    rows: async (text) => (await pool.query(text)).rows,
  }
}

it('the recipes are what docs/recipes.md shows', () => {
  const folder = new URL('../../examples/recipes/', import.meta.url)
  const files = readdirSync(folder).map((name) => readFileSync(new URL(name, folder), 'utf8'))
  const blocks = docBlocks('docs/recipes.md').filter(({ language }) => language === 'ts')
  for (const { text } of blocks) expect(files.some((file) => file.includes(text)) ? '' : text).toBe('')
  expect(blocks.length).toBeGreaterThanOrEqual(files.length)
})

/** A provider that knows calls by their keys, counts charges, and can be told to fail after it has charged. */
function aProvider() {
  const byKey = new Map<string, Charge & { readonly reference: string }>()
  let trouble: 'none' | 'loses its answer' | 'never answers' = 'none'
  const provider: Provider = {
    async charge({ amount, reference }, { idempotencyKey }) {
      const charge = byKey.get(idempotencyKey) ?? { id: `ch-${byKey.size + 1}`, amount, reference }
      byKey.set(idempotencyKey, charge)
      if (trouble === 'loses its answer') throw new NoAnswer('no answer')
      if (trouble === 'never answers') await new Promise(() => {})
      return { id: charge.id, amount: charge.amount }
    },
    async find(reference) {
      const found = [...byKey.values()].find((charge) => charge.reference === reference)
      return found && { id: found.id, amount: found.amount }
    },
  }
  return {
    ...provider,
    charges: () => byKey.size,
    now(next: typeof trouble) {
      trouble = next
    },
  }
}

describeWith(['redis'], 'the recipe for payments by a provider', () => {
  const redis = new Redis(redisUrl, { lazyConnect: true })
  afterAll(() => redis.disconnect())
  const appOf = async (provider: Provider, options: Partial<FastifyIdempotencyOptions> = {}) => {
    const app = await anApp({ store: redisStore(redis), namespace: randomUUID(), ...options })
    addPayments(app, provider, account)
    return app
  }

  it('charges once when the answer of the provider is lost, and answers the retry', async () => {
    const provider = aProvider()
    const app = await appOf(provider)
    const key = aKey()
    provider.now('loses its answer')
    expect(await send(app, '/payments', { key })).toMatchObject({ status: 503 })
    provider.now('none')
    const answers = await Promise.all(times(5, () => send(app, '/payments', { key })))
    expect(answers.map(({ status }) => status).filter((status) => status !== 201 && status !== 409)).toEqual(
      [],
    )
    expect(await send(app, '/payments', { key })).toMatchObject({ status: 201, isReplay: true })
    expect(provider.charges()).toBe(1)
    await app.close()
  })

  it('finds out what a run that never ended has charged', async () => {
    const provider = aProvider()
    const app = await appOf(provider, { lease: '1s', maxRun: '1s' })
    const key = aKey()
    provider.now('never answers')
    void send(app, '/payments', { key })
    await expect.poll(() => provider.charges(), { timeout: 5000 }).toBe(1)
    provider.now('none')
    await expect
      .poll(async () => (await send(app, '/payments', { key })).status, { timeout: 10_000, interval: 100 })
      .toBe(201)
    expect(JSON.parse((await send(app, '/payments', { key })).bytes.toString())).toEqual({
      id: 'ch-1',
      amount: 5,
    })
    expect(provider.charges()).toBe(1)
    await app.close()
  })
})

describeWith(['postgres'], 'the recipe for orders', () => {
  const { pool, rows } = aDatabase(
    `${ORDER_TABLES} insert into prices values ('lamp', 1500), ('desk', 20000)`,
  )

  it('places one order with one event for many clicks at once, and all get its answer', async () => {
    const app = await anApp({ store: postgresStore(pool()) })
    addOrders(app)
    const given = { key: aKey(), payload: { lines: [{ item: 'lamp', count: 2 }] } }
    const answers = await Promise.all(times(10, () => send(app, '/orders', given)))
    for (const answer of answers) {
      expect(answer).toMatchObject({ status: 201 })
      expect(JSON.parse(answer.bytes.toString())).toMatchObject({ cents: 3000 })
    }
    expect(await rows('select cents from orders')).toEqual([{ cents: 3000 }])
    expect(await rows('select topic from outbox')).toEqual([{ topic: 'orders.placed' }])
    await app.close()
  })

  it('refuses an unknown item for good, and leaves nothing of it', async () => {
    const app = await anApp({ store: postgresStore(pool()) })
    addOrders(app)
    const given = {
      key: aKey(),
      payload: {
        lines: [
          { item: 'desk', count: 1 },
          { item: 'moon', count: 1 },
        ],
      },
    }
    expect(await send(app, '/orders', given)).toMatchObject({ status: 422, isReplay: false })
    expect(await send(app, '/orders', given)).toMatchObject({ status: 422, isReplay: true })
    expect(await rows('select 1 from orders where cents >= 20000')).toEqual([])
    await app.close()
  })
})

describeWith(['redis'], 'the recipe for codes by text message', () => {
  const redis = new Redis(redisUrl, { lazyConnect: true })
  afterAll(() => redis.disconnect())

  /** A service for messages that knows a repeated one by its key. It loses the answers that it is told to. */
  function someMessages() {
    const sent = new Map<string, string>()
    let losesNext = false
    return {
      sent,
      loseNext() {
        losesNext = true
      },
      async send(_phone: string, text: string, { idempotencyKey }: { readonly idempotencyKey: string }) {
        if (!sent.has(idempotencyKey)) sent.set(idempotencyKey, text)
        if (!losesNext) return
        losesNext = false
        await new Promise(() => {})
      },
    }
  }

  it('sends one code for a key, which is good once, and keeps it in no answer', async () => {
    const messages = someMessages()
    const app = await anApp({ store: redisStore(redis), namespace: randomUUID() })
    addCodes(app, redis, messages)
    const phone = randomUUID()
    const given = { key: aKey(), payload: { phone } }
    const answers = await Promise.all(times(5, () => send(app, '/codes', given)))
    expect(answers.map(({ status }) => status)).toEqual([202, 202, 202, 202, 202])
    expect([...messages.sent.values()]).toHaveLength(1)
    const code = /\d{6}/.exec([...messages.sent.values()][0] ?? '')?.[0] ?? ''
    for (const { bytes, headers } of answers)
      expect(bytes.toString() + JSON.stringify(headers)).not.toContain(code)
    const check = () => send(app, '/codes/check', { key: aKey(), payload: { phone, code } })
    expect((await Promise.all(times(5, check))).map(({ status }) => status).sort()).toEqual([
      204, 403, 403, 403, 403,
    ])

    await send(app, '/codes', { ...given, key: aKey() })
    expect([...messages.sent.values()]).toHaveLength(2)
    await app.close()
  })

  /** A run that has sent its code and will never answer. */
  async function aLostRun() {
    const messages = someMessages()
    const app = await anApp({ store: redisStore(redis), namespace: randomUUID(), lease: '1s', maxRun: '1s' })
    addCodes(app, redis, messages)
    const phone = randomUUID()
    const given = { key: aKey(), payload: { phone } }
    messages.loseNext()
    void send(app, '/codes', given)
    await expect.poll(() => messages.sent.size, { timeout: 5000 }).toBe(1)
    const code = () => /\d{6}/.exec([...messages.sent.values()][0] ?? '')?.[0]
    return {
      app,
      messages,
      check: () => send(app, '/codes/check', { payload: { phone, code: code() } }),
      retried: () =>
        expect
          .poll(async () => (await send(app, '/codes', given)).status, { timeout: 15_000, interval: 100 })
          .toBe(202),
    }
  }

  it('sends the same code when a run dies after it has sent it', async () => {
    const { app, messages, check, retried } = await aLostRun()
    await retried()
    expect(messages.sent.size).toBe(1)
    expect(await check()).toMatchObject({ status: 204 })
    await app.close()
  })

  it('leaves a code spent that was spent before its run was repeated', async () => {
    const { app, check, retried } = await aLostRun()
    expect(await check()).toMatchObject({ status: 204 })
    await retried()
    expect(await check()).toMatchObject({ status: 403 })
    await app.close()
  })
})

describe('the recipe for tickets', () => {
  let db: PGlite
  let app: FastifyInstance
  beforeAll(async () => {
    db = new PGlite()
    await db.exec(`${TICKET_TABLES} insert into seats (seat) values ('A1'), ('A2'), ('A3')`)
    const store = postgresStore(pglite(db))
    await store.migrate()
    app = Fastify()
    await app.register((shop) => addSeats(shop, store))
    await app.register((hooks) =>
      addWebhooks(hooks, store, ({ headers }) => (headers as { signature?: string }).signature === 'genuine'),
    )
  })
  afterAll(async () => {
    await app.close()
    await db.close()
  })
  const seats = async () => (await db.query('select * from seats order by seat')).rows

  it('gives a seat to one of many, and to that one again', async () => {
    const buyers = times(5, (index) => ({ key: aKey(), headers: { 'x-account': `buyer-${index}` } }))
    const first = await Promise.all(buyers.map((buyer) => send(app, '/seats/A1', buyer)))
    expect(first.map(({ status }) => status).sort()).toEqual([201, 409, 409, 409, 409])
    const again = await Promise.all(buyers.map((buyer) => send(app, '/seats/A1', buyer)))
    expect(again.map(({ status, isReplay }) => [status, isReplay])).toEqual(
      first.map(({ status }) => [status, true]),
    )
  })

  it('takes each event of the provider once, whatever the number of its attempt', async () => {
    await send(app, '/seats/A2', { key: aKey(), headers: { 'x-account': 'ada' } })
    const event = { id: randomUUID(), attempt: 1, data: { seat: 'A2', status: 'failed' } }
    const hook = (payload: object, signature = 'genuine') =>
      send(app, '/webhooks/payments', { payload, headers: { signature } })
    expect(await hook(event, 'forged')).toMatchObject({ status: 401 })
    expect(await hook(event)).toMatchObject({ status: 200, isReplay: false })
    // The seat is free, and somebody else takes it. A late delivery of the old event must not take it away.
    await send(app, '/seats/A2', { key: aKey(), headers: { 'x-account': 'bob' } })
    expect(await hook({ ...event, attempt: 2 })).toMatchObject({ status: 200, isReplay: true })
    expect(await seats()).toContainEqual({ seat: 'A2', holder: 'bob', is_paid: false })
    expect(await hook({ ...event, data: { seat: 'A1', status: 'paid' } })).toMatchObject({ status: 422 })
  })
})

describeWith(['postgres'], 'the recipe for wallets', () => {
  const { pool, rows } = aDatabase(`${WALLET_TABLES} insert into wallets values ('alice', 0), ('bob', 0)`)

  it('tops up once for a key, and spends no cent twice', async () => {
    const app = await anApp({ store: postgresStore(pool()), whenBusy: { wait: '10s' } })
    addWallets(app, account)
    const topUp = { key: aKey(), payload: { cents: 100 } }
    const toppedUp = await Promise.all(times(5, () => send(app, '/top-ups', topUp)))
    expect(toppedUp.map(({ status }) => status)).toEqual([200, 200, 200, 200, 200])
    expect(await rows("select cents from wallets where owner = 'alice'")).toEqual([{ cents: '100' }])

    const purchases = times(8, () => ({ key: aKey(), payload: { cents: 60 } }))
    const first = await Promise.all(purchases.flatMap((one) => times(3, () => send(app, '/purchases', one))))
    const again = await Promise.all(purchases.map((one) => send(app, '/purchases', one)))
    expect(first.filter(({ status }) => status === 200)).toHaveLength(3)
    expect(again.map(({ status }) => status).sort()).toEqual([200, ...times(7, () => 402)])
    expect(await rows("select cents from entries where owner = 'alice' order by id")).toEqual([
      { cents: '100' },
      { cents: '-60' },
    ])
    expect(await rows("select cents from wallets where owner = 'alice'")).toEqual([{ cents: '40' }])
    await app.close()
  })
})

describeWith(['postgres'], 'the recipe for inventory', () => {
  const { pool, rows } = aDatabase(`${STOCK_TABLES} insert into stock values ('lamp', 10), ('desk', 1)`)
  const free = async (item: string) => (await rows(`select free from stock where item = '${item}'`))[0]?.free
  const anEvent = (given: Partial<OrderEvent>): OrderEvent => ({
    id: randomUUID(),
    type: 'placed',
    order: randomUUID(),
    item: 'lamp',
    count: 2,
    ...given,
  })

  it('reserves and releases once, in whatever order and however often events come', async () => {
    const keeper = createStockKeeper(postgresStore(pool()))
    const placed = anEvent({})
    const cancelled = anEvent({ type: 'cancelled', order: placed.order })
    await Promise.all(times(3, () => keeper.handle(placed)))
    expect(await free('lamp')).toBe(8)
    for (const event of [cancelled, placed, cancelled]) await keeper.handle(event)
    expect(await free('lamp')).toBe(10)

    const late = anEvent({})
    await keeper.handle(anEvent({ type: 'cancelled', order: late.order }))
    await keeper.handle(late)
    expect(await free('lamp')).toBe(10)
    await keeper.inbox.close()
  })

  it('gives up what is out of stock, and takes nothing for it', async () => {
    const keeper = createStockKeeper(postgresStore(pool()))
    expect(await keeper.handle(anEvent({ item: 'desk', count: 1 }))).toBe('processed')
    const tooMuch = anEvent({ item: 'desk', count: 1 })
    expect(await keeper.handle(tooMuch)).toBe('dead')
    expect(await rows(`select 1 from reservations where id = '${tooMuch.order}'`)).toEqual([])
    expect(await free('desk')).toBe(0)
    await keeper.inbox.close()
  })
})
