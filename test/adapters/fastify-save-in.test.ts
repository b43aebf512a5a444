import { randomUUID } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import { Pool, type PoolClient } from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, expect, inject, it } from 'vitest'
import type { FastifyIdempotencyOptions, RequestIdempotency } from '../../src/adapters/fastify.js'
import type { ExecuteStatement } from '../../src/contract/store.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { aKey, anApp, type TestApp } from '../support/fastify-app.js'
import { describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')

describeWith(['postgres'], 'request.idempotency.saveIn', () => {
  let pool: Pool
  let table: string
  const apps: FastifyInstance[] = []

  beforeAll(async () => {
    pool = new Pool({ connectionString: postgresUrl, max: 10 })
    await postgresStore(pool).migrate()
  })
  afterAll(() => pool.end())
  beforeEach(async () => {
    table = `effects_${randomUUID().slice(0, 8)}`
    await pool.query(`create table ${table} (n int)`)
  })
  afterEach(async () => {
    await Promise.all(apps.splice(0).map((app) => app.close()))
    await pool.query(`drop table ${table}`)
  })

  async function aBank(
    define: (app: FastifyInstance) => void,
    options: Partial<FastifyIdempotencyOptions> = {},
  ): Promise<TestApp> {
    const bank = await anApp(define, { store: postgresStore(pool), ...options })
    apps.push(bank.app)
    return bank
  }

  /** A transaction of the application, as it would write it itself. */
  async function inOwnTransaction<T>(work: (client: PoolClient) => Promise<T>): Promise<T> {
    const client = await pool.connect()
    try {
      await client.query('begin')
      const value = await work(client)
      await client.query('commit')
      return value
    } catch (error) {
      await client.query('rollback')
      throw error
    } finally {
      client.release()
    }
  }

  /** Has its effect, and keeps the response with it. */
  function saving(response: Parameters<RequestIdempotency['saveIn']>[1]) {
    return (given: RequestIdempotency): Promise<void> =>
      inOwnTransaction(async (client) => {
        await client.query(`insert into ${table} values (1)`)
        await given.saveIn((text, values) => client.query(text, values), response)
      })
  }

  const effects = async (): Promise<number> => (await pool.query(`select from ${table}`)).rowCount ?? 0

  it('keeps what the reply would send: by the response schema, and with the headers of the reply', async () => {
    const properties = { id: { type: 'integer' }, at: { type: 'string', format: 'date-time' } }
    const schema = { response: { 201: { type: 'object', properties } } }
    const body = { id: 7, at: new Date(0), secret: 'not for clients' }
    const { send } = await aBank((app) =>
      app.post('/', { schema }, async (request, reply) => {
        reply.header('location', '/transfers/7').header('set-cookie', 'one=two')
        await saving({ status: 201, headers: { 'X-Kind': 'transfer' }, body })(request.idempotency)
        return reply.code(201).send(body)
      }),
    )
    const key = aKey()
    const first = await send('/', { key })
    const again = await send('/', { key })
    for (const answer of [first, again]) {
      expect(answer.status).toBe(201)
      expect(answer.bytes.toString()).toBe('{"id":7,"at":"1970-01-01T00:00:00.000Z"}')
      expect(answer.headers).toMatchObject({
        location: '/transfers/7',
        'x-kind': 'transfer',
        'content-type': 'application/json; charset=utf-8',
      })
    }
    expect([first.isReplay, again.isReplay]).toEqual([false, true])
    expect(first.headers['set-cookie']).toBe('one=two')
    expect(again.headers).not.toHaveProperty('set-cookie')
    expect(await effects()).toBe(1)
  })

  it.each([
    { what: 'text', body: 'done', type: 'text/plain; charset=utf-8', bytes: Buffer.from('done') },
    {
      what: 'bytes',
      body: Buffer.from([0, 255]),
      type: 'application/octet-stream',
      bytes: Buffer.from([0, 255]),
    },
    { what: 'null', body: null, type: 'application/json; charset=utf-8', bytes: Buffer.from('null') },
    { what: 'nothing', body: undefined, type: undefined, bytes: Buffer.alloc(0) },
  ])('keeps $what', async ({ body, type, bytes }) => {
    const { send } = await aBank((app) =>
      app.post('/', async (request, reply) => {
        await saving({ status: 200, body })(request.idempotency)
        return reply.send('something else')
      }),
    )
    const key = aKey()
    for (const isReplay of [false, true]) {
      const answer = await send('/', { key })
      expect(answer).toMatchObject({ status: 200, isReplay })
      expect(answer.bytes).toEqual(bytes)
      expect(answer.headers['content-type']).toBe(type)
    }
  })

  it('keeps that an answer was too long to be kept', async () => {
    const body = 'x'.repeat(100)
    const { send } = await aBank(
      (app) =>
        app.post('/', async (request, reply) => {
          await saving({ status: 200, body })(request.idempotency)
          return reply.send(body)
        }),
      { maxBodyBytes: 99 },
    )
    const key = aKey()
    expect(await send('/', { key })).toMatchObject({ status: 200, bytes: Buffer.from(body) })
    expect(await send('/', { key })).toMatchObject({ status: 409, code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
    expect(await effects()).toBe(1)
  })

  it('answers with what was kept, though the handler fails afterwards', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async (request) => {
        await saving({ status: 201, body: { id: 1 } })(request.idempotency)
        throw new Error('after the commit')
      }),
    )
    const key = aKey()
    for (const isReplay of [false, true])
      expect(await send('/', { key })).toMatchObject({
        status: 201,
        isReplay,
        bytes: Buffer.from('{"id":1}'),
      })
  })

  it('lets a handler answer in its own words when its transaction rolled back', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async (request) => {
        const transaction = inOwnTransaction(async (client) => {
          await client.query(`insert into ${table} values (1)`)
          await request.idempotency.saveIn((text, values) => client.query(text, values), { status: 201 })
          throw new Error('rolled back')
        })
        return transaction.catch(() => ({ done: false }))
      }),
    )
    const key = aKey()
    for (const isReplay of [false, true])
      expect(await send('/', { key })).toMatchObject({
        status: 200,
        isReplay,
        bytes: Buffer.from('{"done":false}'),
      })
    expect(await effects()).toBe(0)
  })

  it.each([
    { what: 'the same answer', answer: { id: 1 } },
    { what: 'nothing', answer: undefined },
  ])(
    'is an error, and releases the key, when nothing was committed and the handler says $what',
    async ({ answer }) => {
      let commits = false
      const { send } = await aBank((app) =>
        app.post('/', async (request, reply) => {
          const client = await pool.connect()
          await client.query('begin')
          await client.query(`insert into ${table} values (1)`)
          const response = { status: 201, body: { id: 1 } }
          await request.idempotency.saveIn((text, values) => client.query(text, values), response)
          // Some clients take a commit for one that was a roll-back.
          await client.query(commits ? 'commit' : 'rollback')
          client.release()
          reply.code(201)
          return answer
        }),
      )
      const key = aKey()
      expect(await send('/', { key })).toMatchObject({ status: 500, code: 'IDEMPOTENCY_TRANSACTION_MISUSED' })
      expect(await effects()).toBe(0)
      commits = true
      expect(await send('/', { key })).toMatchObject({ status: 201, isReplay: false })
      expect(await effects()).toBe(1)
    },
  )

  it('keeps an outcome in a transaction that wrote nothing else', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async (request) => {
        await inOwnTransaction((client) =>
          request.idempotency.saveIn((text, values) => client.query(text, values), { status: 202 }),
        )
      }),
    )
    const key = aKey()
    for (const isReplay of [false, true])
      expect(await send('/', { key })).toMatchObject({ status: 202, isReplay })
  })

  it.each<{ readonly what: string; readonly execute: (client: PoolClient) => ExecuteStatement }>([
    { what: 'runs each statement for itself', execute: () => (text, values) => pool.query(text, values) },
    {
      what: 'gives no rows',
      execute: (client) =>
        (async (text: string, values: unknown[]) => {
          await client.query(text, values)
        }) as never,
    },
  ])('is an error with a function that $what, and everything rolls back', async ({ execute }) => {
    const { send } = await aBank((app) =>
      app.post('/', { config: { idempotency: { atomic: true } } }, async (request) =>
        inOwnTransaction(async (client) => {
          await client.query(`insert into ${table} values (1)`)
          await request.idempotency.saveIn(execute(client), { status: 201 })
        }),
      ),
    )
    const key = aKey()
    for (const isReplay of [false, false])
      expect(await send('/', { key })).toMatchObject({ status: 500, isReplay })
    expect(await effects()).toBe(0)
  })

  it('takes no failure, which no effect goes with', async () => {
    const { send } = await aBank((app) =>
      app.post('/', { config: { idempotency: { atomic: true } } }, async (request) =>
        saving({ status: 402 })(request.idempotency),
      ),
    )
    expect(await send('/', { key: aKey() })).toMatchObject({ status: 500 })
    expect(await effects()).toBe(0)
  })

  it('has no place within transaction()', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async ({ idempotency }) =>
        idempotency.transaction(async (tx) => {
          await tx.query(`insert into ${table} values (1)`)
          await idempotency.saveIn((text, values) => tx.query(text, values), { status: 201 })
          return 'never'
        }),
      ),
    )
    expect(await send('/', { key: aKey() })).toMatchObject({ status: 500 })
    expect(await effects()).toBe(0)
  })

  it('does nothing without a key', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async (request) => {
        await saving({ status: 201 })(request.idempotency)
        return { of: 'the handler' }
      }),
    )
    expect(await send('/')).toMatchObject({ status: 200, bytes: Buffer.from('{"of":"the handler"}') })
    expect(await effects()).toBe(1)
  })

  it('releases the key when an atomic handler fails before any transaction', async () => {
    let runs = 0
    const { send } = await aBank((app) =>
      app.post('/', { config: { idempotency: { atomic: true } } }, async (request) => {
        runs += 1
        if (runs === 1) throw new Error('not yet')
        await saving({ status: 201 })(request.idempotency)
      }),
    )
    const key = aKey()
    expect(await send('/', { key })).toMatchObject({ status: 500 })
    expect(await send('/', { key })).toMatchObject({ status: 201, isReplay: false })
    expect(await effects()).toBe(1)
  })

  it('has one effect for many requests at once, and answers all of them with it', async () => {
    const { send } = await aBank(
      (app) =>
        app.post('/', async (request) => saving({ status: 201, body: { id: 1 } })(request.idempotency)),
      { whenBusy: { wait: '20s' } },
    )
    const key = aKey()
    const answers = await Promise.all(Array.from({ length: 10 }, () => send('/', { key })))
    for (const answer of answers)
      expect(answer).toMatchObject({ status: 201, bytes: Buffer.from('{"id":1}') })
    expect(answers.filter(({ isReplay }) => !isReplay)).toHaveLength(1)
    expect(await effects()).toBe(1)
  })
})
