import { randomUUID } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import { Pool, type PoolClient } from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, expect, inject, it } from 'vitest'
import type { FastifyIdempotencyOptions } from '../../src/adapters/fastify.js'
import { NothingHappenedError } from '../../src/contract/errors.js'
import type { IdempotencyEvent } from '../../src/core/events.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { aKey, anApp, type TestApp } from '../support/fastify-app.js'
import { gate } from '../support/gate.js'
import { type Money, move, someMoney } from '../support/money.js'
import { describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')

describeWith(['postgres'], 'request.idempotency.transaction', () => {
  let pool: Pool
  let money: Money
  const apps: FastifyInstance[] = []
  let events: IdempotencyEvent[]

  beforeAll(async () => {
    pool = new Pool({ connectionString: postgresUrl, max: 10 })
    await postgresStore(pool).migrate()
  })
  afterAll(() => pool.end())
  beforeEach(async () => {
    money = await someMoney(pool, `money_${randomUUID().slice(0, 8)}`)
    events = []
  })
  afterEach(async () => {
    await Promise.all(apps.splice(0).map((app) => app.close()))
    await money.drop()
  })

  async function aBank(
    define: (app: FastifyInstance) => void,
    options: Partial<FastifyIdempotencyOptions> = {},
  ): Promise<TestApp> {
    const bank = await anApp(define, { store: postgresStore(pool), ...options })
    apps.push(bank.app)
    bank.app.idempotency.on((event) => events.push(event))
    return bank
  }

  function transfer(app: FastifyInstance, change: Partial<Parameters<typeof move>[2]> = {}): void {
    app.post('/', async (request, reply) =>
      request.idempotency.transaction(async (tx) => {
        const key = request.idempotency.key ?? 'none'
        const { id } = await move(tx, money.schema, { key, ...change })
        reply.code(201).header('location', `/transfers/${id}`)
        return { id, status: 'accepted' }
      }),
    )
  }

  const types = (): readonly string[] =>
    events.map(({ type }) => type).filter((type) => !type.startsWith('store-'))

  it('commits the effect and the answer together, and replays the answer byte for byte', async () => {
    const { send } = await aBank((app) => transfer(app))
    const key = aKey()
    const first = await send('/', { key })
    expect(first).toMatchObject({ status: 201, isReplay: false })
    expect(JSON.parse(first.bytes.toString())).toMatchObject({ status: 'accepted' })
    const again = await send('/', { key })
    expect(again).toMatchObject({ status: 201, isReplay: true, bytes: first.bytes })
    expect(again.headers.location).toBe(first.headers.location)
    expect(again.headers['content-type']).toBe(first.headers['content-type'])
    expect(await money.transfers()).toEqual([key])
    expect(await money.balance('alice')).toBe(90)
    expect(types()).toEqual(['claimed', 'completed', 'claim-ended', 'replayed'])
  })

  it('has committed when it resolves', async () => {
    let seen: readonly string[] = []
    const { send } = await aBank((app) =>
      app.post('/', async (request, reply) => {
        const answer = await request.idempotency.transaction(async (tx) => {
          await move(tx, money.schema, { key: 'seen' })
          reply.code(201)
          return { done: true }
        })
        seen = await money.transfers()
        return answer
      }),
    )
    await send('/', { key: aKey() })
    expect(seen).toEqual(['seen'])
  })

  it('serialises the answer once, inside of the transaction, by the response schema', async () => {
    let calls = 0
    const { send } = await aBank((app) => {
      app.setSerializerCompiler(() => (value) => {
        calls += 1
        return JSON.stringify({ id: (value as { id: number }).id })
      })
      app.post('/', { schema: { response: { 201: { type: 'object' } } } }, async (request, reply) =>
        request.idempotency.transaction(async () => {
          reply.code(201)
          return { id: 1, secret: 'not in the schema' }
        }),
      )
    })
    const key = aKey()
    const first = await send('/', { key })
    expect(first.bytes.toString()).toBe('{"id":1}')
    expect(calls).toBe(1)
    expect((await send('/', { key })).bytes.toString()).toBe('{"id":1}')
  })

  it('takes a response schema for a content type', async () => {
    const schema = { type: 'object', properties: { id: { type: 'integer' } } }
    const { send } = await aBank((app) =>
      app.post(
        '/',
        { schema: { response: { '2xx': { content: { 'application/json': { schema } } } } } },
        async (request) => request.idempotency.transaction(async () => ({ id: 1, secret: 'no' })),
      ),
    )
    expect((await send('/', { key: aKey() })).bytes.toString()).toBe('{"id":1}')
  })

  it('rolls back when the answer cannot be serialised', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async (request) =>
        request.idempotency.transaction(async (tx) => {
          await move(tx, money.schema, { key: 'lost' })
          return { amount: 1n }
        }),
      ),
    )
    expect(await send('/', { key: aKey() })).toMatchObject({ status: 500 })
    expect(await money.transfers()).toEqual([])
  })

  it.each([
    {
      what: 'text',
      make: () => 'done',
      type: 'text/plain; charset=utf-8',
      bytes: Buffer.from('done'),
    },
    {
      what: 'bytes',
      make: () => Buffer.from([0, 255, 1]),
      type: 'application/octet-stream',
      bytes: Buffer.from([0, 255, 1]),
    },
    {
      what: 'a stream',
      make: () => new Response(Buffer.from('streamed')).body,
      type: undefined,
      bytes: Buffer.from('streamed'),
    },
    {
      what: 'null',
      make: () => null,
      type: undefined,
      bytes: Buffer.alloc(0),
    },
  ])('answers with $what', async ({ make, type, bytes }) => {
    const { send } = await aBank((app) =>
      app.post('/', async (request) => request.idempotency.transaction(async () => make())),
    )
    const key = aKey()
    for (const isReplay of [false, true]) {
      const answer = await send('/', { key })
      expect(answer).toMatchObject({ status: 200, isReplay, bytes })
      expect(answer.headers['content-type']).toBe(type)
    }
  })

  it('answers with 204', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async (request, reply) =>
        request.idempotency.transaction(async (tx) => {
          await move(tx, money.schema, { key: 'one' })
          reply.code(204)
        }),
      ),
    )
    const key = aKey()
    for (const isReplay of [false, true])
      expect(await send('/', { key })).toMatchObject({ status: 204, isReplay, bytes: Buffer.alloc(0) })
    expect(await money.transfers()).toEqual(['one'])
  })

  it('takes what is sent inside of it for the answer, and lets it go after the commit', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async (request, reply) =>
        request.idempotency.transaction(async (tx) => {
          const { id } = await move(tx, money.schema, { key: 'sent' })
          return reply.code(201).send({ id })
        }),
      ),
    )
    const key = aKey()
    const first = await send('/', { key })
    expect(first).toMatchObject({ status: 201, isReplay: false })
    expect(await send('/', { key })).toMatchObject({ status: 201, isReplay: true, bytes: first.bytes })
    expect(await money.transfers()).toEqual(['sent'])
  })

  it('keeps an answer that is too long as a tombstone, and sends it', async () => {
    const { send } = await aBank(
      (app) => app.post('/', async (request) => request.idempotency.transaction(async () => 'x'.repeat(100))),
      { maxBodyBytes: 10 },
    )
    const key = aKey()
    expect((await send('/', { key })).bytes.toString()).toBe('x'.repeat(100))
    expect(await send('/', { key })).toMatchObject({ status: 409, code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
  })

  it('rolls back what throws, and releases the key after a 500', async () => {
    let attempts = 0
    const { send } = await aBank((app) =>
      app.post('/', async (request) =>
        request.idempotency.transaction(async (tx) => {
          attempts += 1
          await move(tx, money.schema, { key: `attempt ${attempts}` })
          if (attempts === 1) throw new Error('the first attempt fails')
          return { attempts }
        }),
      ),
    )
    const key = aKey()
    expect(await send('/', { key })).toMatchObject({ status: 500, isReplay: false })
    expect(await send('/', { key })).toMatchObject({ status: 200, isReplay: false })
    expect(await money.transfers()).toEqual(['attempt 2'])
    expect(types()).toEqual([
      'claimed',
      'rolled-back',
      'released',
      'claim-ended',
      'claimed',
      'completed',
      'claim-ended',
    ])
  })

  it.each([402, 409, 422, 400, 404])('rolls back a %i that is thrown, and keeps it', async (statusCode) => {
    const { send } = await aBank((app) =>
      app.post('/', async (request) =>
        request.idempotency.transaction(async (tx) => {
          await move(tx, money.schema, { key: 'refused' })
          throw Object.assign(new Error('refused'), { statusCode })
        }),
      ),
    )
    const key = aKey()
    const first = await send('/', { key })
    expect(first).toMatchObject({ status: statusCode, isReplay: false })
    expect(await send('/', { key })).toMatchObject({ status: statusCode, isReplay: true, bytes: first.bytes })
    expect(await money.transfers()).toEqual([])
    expect(await money.balance('alice')).toBe(100)
  })

  it.each([402, 409, 422])('rolls back a %i that is returned, and keeps it', async (statusCode) => {
    const { send } = await aBank((app) =>
      app.post('/', async (request, reply) =>
        request.idempotency.transaction(async (tx) => {
          await move(tx, money.schema, { key: 'refused' })
          reply.code(statusCode)
          return { error: 'refused' }
        }),
      ),
    )
    const key = aKey()
    for (const isReplay of [false, true])
      expect(await send('/', { key })).toMatchObject({ status: statusCode, isReplay })
    expect(await money.transfers()).toEqual([])
  })

  it.each([500, 502, 503, 429])(
    'rolls back a %i that is returned, and releases the key',
    async (statusCode) => {
      const { send } = await aBank((app) =>
        app.post('/', async (request, reply) =>
          request.idempotency.transaction(async (tx) => {
            await move(tx, money.schema, { key: 'refused' })
            reply.code(statusCode)
            return { error: 'later' }
          }),
        ),
      )
      const key = aKey()
      for (const isReplay of [false, false])
        expect(await send('/', { key })).toMatchObject({ status: statusCode, isReplay })
      expect(await money.transfers()).toEqual([])
    },
  )

  it('rolls back what was forgotten, and releases the key', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async (request) =>
        request.idempotency.transaction(async (tx) => {
          await move(tx, money.schema, { key: 'forgotten' })
          request.idempotency.forget()
          return { done: false }
        }),
      ),
    )
    const key = aKey()
    for (const isReplay of [false, false])
      expect(await send('/', { key })).toMatchObject({ status: 200, isReplay })
    expect(await money.transfers()).toEqual([])
  })

  it('releases the key when the application says that nothing happened', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async () => {
        throw new NothingHappenedError('the provider did not answer', { statusCode: 504 })
      }),
    )
    const key = aKey()
    for (const isReplay of [false, false])
      expect(await send('/', { key })).toMatchObject({ status: 504, isReplay })
  })

  it('fails at the commit when the database refuses it there, and nothing has happened', async () => {
    const { send } = await aBank((app) => transfer(app, { payee: 'nobody' }))
    const key = aKey()
    for (const isReplay of [false, false])
      expect(await send('/', { key })).toMatchObject({ status: 500, isReplay })
    expect(await money.transfers()).toEqual([])
    expect(await money.balance('alice')).toBe(100)
  })

  it('does not commit when a statement failed and its error was ignored', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async (request) =>
        request.idempotency.transaction(async (tx) => {
          await tx.query(`update ${money.schema}.accounts set balance = -1`).catch(() => {})
          return { done: true }
        }),
      ),
    )
    expect(await send('/', { key: aKey() })).toMatchObject({ status: 500 })
    expect(await send('/', { key: undefined })).toMatchObject({ status: 500 })
  })

  it('runs duplicates once', async () => {
    const { send } = await aBank((app) => transfer(app))
    const key = aKey()
    const answers = await Promise.all(Array.from({ length: 20 }, () => send('/', { key })))
    expect(answers.filter(({ status }) => status === 201).length).toBeGreaterThan(0)
    for (const { status, code } of answers)
      expect([`201`, '409 IDEMPOTENCY_KEY_IN_PROGRESS']).toContain(
        status === 201 ? '201' : `${status} ${code}`,
      )
    expect(await money.transfers()).toEqual([key])
  })

  it('begins again, whole, after a serialization failure', async () => {
    const meeting = gate()
    let attempts = 0
    const { send } = await aBank(
      (app) =>
        app.post('/', async (request, reply) =>
          request.idempotency.transaction(async (tx) => {
            attempts += 1
            const key = request.idempotency.key ?? ''
            await tx.query(`select sum(balance) from ${money.schema}.accounts`)
            // Both have read before either writes: they cannot both be serial.
            if (attempts >= 2) meeting.open()
            await meeting.opened
            await move(tx, money.schema, { key, amount: 1 })
            reply.code(201)
            return { key }
          }),
        ),
      { transaction: { isolation: 'serializable' } },
    )
    const keys = [aKey(), aKey()]
    const answers = await Promise.all(keys.map((key) => send('/', { key })))
    expect(answers.map(({ status }) => status)).toEqual([201, 201])
    expect(attempts).toBeGreaterThan(2)
    expect(types()).toContain('transaction-repeated')
    expect([...(await money.transfers())].sort()).toEqual([...keys].sort())
    expect(await money.balance('alice')).toBe(98)
  })

  it('gives up after as many attempts as were allowed', async () => {
    let attempts = 0
    const { send } = await aBank(
      (app) =>
        app.post('/', async (request) =>
          request.idempotency.transaction(async () => {
            attempts += 1
            throw Object.assign(new Error('could not serialize'), { code: '40001' })
          }),
        ),
      { transaction: { attempts: 3 } },
    )
    expect(await send('/', { key: aKey() })).toMatchObject({ status: 500 })
    expect(attempts).toBe(3)
  })

  it('does not wait longer for a lock than it may', async () => {
    const { send } = await aBank((app) => transfer(app), { transaction: { lockTimeout: 50 } })
    const holder = await pool.connect()
    await holder.query('begin')
    await holder.query(`select from ${money.schema}.accounts where id = 'alice' for update`)
    const key = aKey()
    expect(await send('/', { key })).toMatchObject({ status: 500 })
    await holder.query('rollback')
    holder.release()
    expect(await send('/', { key })).toMatchObject({ status: 201, isReplay: false })
    expect(await money.transfers()).toEqual([key])
  })

  it('gives back its connections, as they were', async () => {
    const { send } = await aBank(
      (app) => {
        transfer(app)
        app.post('/fails', async (request) =>
          request.idempotency.transaction(async () => {
            throw new Error('no')
          }),
        )
      },
      { transaction: { isolation: 'serializable', lockTimeout: 1234 } },
    )
    await send('/', { key: aKey() })
    await send('/fails', { key: aKey() })
    expect(pool.waitingCount).toBe(0)
    expect(pool.idleCount).toBe(pool.totalCount)
    const clients = await Promise.all(Array.from({ length: pool.totalCount }, () => pool.connect()))
    for (const client of clients) {
      const { rows } = await client.query(
        `select current_setting('lock_timeout') as lock, current_setting('transaction_isolation') as isolation, now() = statement_timestamp() as is_fresh`,
      )
      expect(rows).toEqual([{ lock: '0', isolation: 'read committed', is_fresh: true }])
      expect(client.listenerCount('error')).toBe(0)
      client.release()
    }
  })

  it('survives a connection that breaks between two statements', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async (request) =>
        request.idempotency.transaction(async (tx: PoolClient) => {
          await move(tx, money.schema, { key: 'broken' })
          const { rows } = await tx.query('select pg_backend_pid() as pid')
          await pool.query('select pg_terminate_backend($1)', [rows[0].pid])
          await new Promise((resolve) => tx.once('error', resolve))
          return { done: true }
        }),
      ),
    )
    expect(await send('/', { key: aKey() })).toMatchObject({
      status: 503,
      code: 'IDEMPOTENCY_STORE_UNAVAILABLE',
    })
    expect(await money.transfers()).toEqual([])
  })

  it('answers with what it committed, whatever the handler comes to afterwards', async () => {
    const { send } = await aBank((app) =>
      app.post<{ Body: { then: string } }>('/', async (request, reply) => {
        await request.idempotency.transaction(async (tx) => {
          await move(tx, money.schema, { key: request.body.then })
          reply.code(201)
          return { done: true }
        })
        if (request.body.then === 'throws') throw new Error('after the commit')
        if (request.body.then === 'sends') return reply.code(202).send({ other: true })
        return { other: true }
      }),
    )
    for (const then of ['throws', 'sends', 'returns']) {
      const key = aKey()
      for (const isReplay of [false, true]) {
        const answer = await send('/', { key, payload: { then } })
        expect(answer).toMatchObject({ status: 201, isReplay })
        expect(answer.bytes.toString()).toBe('{"done":true}')
        expect(answer.headers['content-type']).toBe('application/json; charset=utf-8')
      }
    }
    expect(await money.transfers()).toEqual(['throws', 'sends', 'returns'])
  })

  it('refuses to be called a second time after it committed, or inside of itself', async () => {
    const refused: unknown[] = []
    const { send } = await aBank((app) =>
      app.post('/', async (request) => {
        const { idempotency } = request
        const answer = await idempotency.transaction(async () => {
          await idempotency.transaction(async () => 'inner').catch((error) => refused.push(error))
          return { done: true }
        })
        await idempotency.transaction(async () => 'second').catch((error) => refused.push(error))
        return answer
      }),
    )
    const key = aKey()
    const first = await send('/', { key })
    expect(first.bytes.toString()).toBe('{"done":true}')
    expect(refused).toMatchObject([
      { code: 'IDEMPOTENCY_TRANSACTION_MISUSED' },
      { code: 'IDEMPOTENCY_TRANSACTION_MISUSED' },
    ])
  })

  it('may be begun again by the handler after a roll-back', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async (request) => {
        const { idempotency } = request
        await idempotency
          .transaction(async (tx) => {
            await move(tx, money.schema, { key: 'first' })
            throw new Error('no')
          })
          .catch(() => {})
        return idempotency.transaction(async (tx) => move(tx, money.schema, { key: 'second' }))
      }),
    )
    const key = aKey()
    expect(await send('/', { key })).toMatchObject({ status: 200, isReplay: false })
    expect(await send('/', { key })).toMatchObject({ status: 200, isReplay: true })
    expect(await money.transfers()).toEqual(['second'])
  })

  it('is an error when nobody waits for it, and rolls back', async () => {
    const begun = gate()
    const { send } = await aBank((app) =>
      app.post('/', async (request) => {
        request.idempotency
          .transaction(async (tx) => {
            await move(tx, money.schema, { key: 'unawaited' })
            await begun.opened
            return { done: true }
          })
          .catch(() => {})
        setImmediate(begun.open)
        return { done: 'not yet' }
      }),
    )
    const answer = await send('/', { key: aKey() })
    expect(answer.status).toBe(500)
    expect(await money.transfers()).toEqual([])
  })

  it('is an error when it says nothing to the client', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async (request, reply) => {
        await request.idempotency.transaction(async (tx) => {
          await move(tx, money.schema, { key: 'silent' })
        })
        return reply.code(201).send({ done: true })
      }),
    )
    expect(await send('/', { key: aKey() })).toMatchObject({
      status: 500,
      code: 'IDEMPOTENCY_TRANSACTION_MISUSED',
    })
    expect(await money.transfers()).toEqual([])
  })

  it('refuses a reply that leaves by itself', async () => {
    const { send } = await aBank((app) =>
      app.post('/', async (request, reply) =>
        request.idempotency.transaction(async () => {
          reply.hijack()
          return { done: true }
        }),
      ),
    )
    expect(await send('/', { key: aKey() })).toMatchObject({ status: 500 })
  })

  it('is a plain transaction without a key', async () => {
    const { send } = await aBank((app) => {
      transfer(app)
      app.post('/refused', async (request, reply) =>
        request.idempotency.transaction(async (tx) => {
          await move(tx, money.schema, { key: 'refused' })
          return reply.code(402).send({ error: 'refused' })
        }),
      )
      app.post('/off', { config: { idempotency: false } }, async (request) =>
        request.idempotency.transaction(async (tx) => {
          await move(tx, money.schema, { key: 'off' })
          throw new Error('no')
        }),
      )
    })
    for (const isReplay of [false, false])
      expect(await send('/', { key: undefined })).toMatchObject({ status: 201, isReplay })
    expect(await send('/refused')).toMatchObject({ status: 402 })
    expect(await send('/off')).toMatchObject({ status: 500 })
    expect(await money.transfers()).toEqual(['none', 'none'])
  })

  it('says so where the store has no transactions', async () => {
    const { send } = await anApp((app) => {
      app.post('/', async (request) => request.idempotency.transaction(async () => ({ done: true })))
    })
    expect(await send('/', { key: aKey() })).toMatchObject({
      status: 500,
      code: 'IDEMPOTENCY_TRANSACTION_UNSUPPORTED',
    })
  })

  it('ends with the time that a run may take, and gives its connection up', async () => {
    const { send } = await aBank(
      (app) =>
        app.post('/', async (request) =>
          request.idempotency.transaction(async (tx) => {
            await move(tx, money.schema, { key: 'slow' })
            await tx.query('select pg_sleep(2)')
            return { done: true }
          }),
        ),
      { maxRun: 300, lease: 200 },
    )
    expect((await send('/', { key: aKey() })).status).toBe(503)
    await expect.poll(() => pool.idleCount === pool.totalCount, { timeout: 10_000 }).toBe(true)
    expect(await money.transfers()).toEqual([])
  })

  it('lets a run that was overtaken write nothing, and answers with what the other kept', async () => {
    const stalled = gate()
    const overtaken = gate()
    const options = { lease: 200, maxRun: 60_000, onUnknown: 'rerun' } as const
    const define = (app: FastifyInstance): void => {
      app.post('/', async (request, reply) =>
        request.idempotency.transaction(async (tx) => {
          const { fence } = request.idempotency
          await tx.query(`insert into ${money.schema}.transfers (key, payee, amount) values ($1, 'bob', 1)`, [
            `fence ${fence}`,
          ])
          if (fence === 1) {
            stalled.open()
            await overtaken.opened
          }
          reply.code(201)
          return { fence }
        }),
      )
    }
    const stalling = await aBank(define, { ...options, store: withoutRenewals(pool) })
    const key = aKey()
    const late = stalling.send('/', { key })
    await stalled.opened
    const other = await aBank(define, options)
    await expect.poll(async () => (await other.send('/', { key })).status, { timeout: 10_000 }).toBe(201)
    overtaken.open()
    const answer = await late
    expect(answer).toMatchObject({ status: 201, isReplay: true })
    expect(answer.bytes.toString()).toBe('{"fence":2}')
    expect(await money.transfers()).toEqual(['fence 2'])
    expect(types()).toContain('rolled-back')
  })
})

/** A store whose claims lapse while their handlers run, as those of a stopped process do. */
function withoutRenewals(pool: Pool) {
  const store = postgresStore(pool)
  return { ...store, renew: () => new Promise<boolean>(() => {}) }
}

describeWith(['postgres'], 'a route that is atomic', () => {
  let pool: Pool
  const apps: FastifyInstance[] = []
  beforeAll(async () => {
    pool = new Pool({ connectionString: postgresUrl, max: 5 })
    await postgresStore(pool).migrate()
  })
  afterEach(() => Promise.all(apps.splice(0).map((app) => app.close())))
  afterAll(() => pool.end())

  async function anAtomicApp(define: (app: FastifyInstance) => void): Promise<TestApp> {
    const bank = await anApp(define, { store: postgresStore(pool), lease: 200 })
    apps.push(bank.app)
    return bank
  }

  it('is refused at start by a store without transactions', async () => {
    const building = anApp((app) => {
      app.post('/', { config: { idempotency: { atomic: true } } }, () => 'never')
    })
    await expect(building).rejects.toMatchObject({
      code: 'IDEMPOTENCY_OPTIONS_INVALID',
      message: expect.stringContaining('"atomic"'),
    })
  })

  it('may not succeed without a transaction, and does not run again after it did', async () => {
    let runs = 0
    const { send } = await anAtomicApp((app) =>
      app.post('/', { config: { idempotency: { atomic: true } } }, async () => {
        runs += 1
        return { done: true }
      }),
    )
    const key = aKey()
    for (const isReplay of [false, true])
      expect(await send('/', { key })).toMatchObject({
        status: 500,
        code: 'IDEMPOTENCY_TRANSACTION_MISSING',
        isReplay,
      })
    expect(runs).toBe(1)
    expect((await send('/')).status).toBe(200)
  })

  it('may fail without one', async () => {
    const { send } = await anAtomicApp((app) =>
      app.post('/', { config: { idempotency: { atomic: true } } }, async (_request, reply) =>
        reply.code(422).send({ error: 'no' }),
      ),
    )
    const key = aKey()
    for (const isReplay of [false, true])
      expect(await send('/', { key })).toMatchObject({ status: 422, isReplay })
  })

  it('releases the key after a failure of the server, since nothing can have committed', async () => {
    let runs = 0
    const { send } = await anAtomicApp((app) =>
      app.post('/', { config: { idempotency: { atomic: true } } }, async (request) => {
        runs += 1
        if (runs === 1) throw new Error('the handler failed before its transaction')
        return request.idempotency.transaction(async () => ({ runs }))
      }),
    )
    const key = aKey()
    expect(await send('/', { key })).toMatchObject({ status: 500, isReplay: false })
    expect(await send('/', { key })).toMatchObject({ status: 200, bytes: Buffer.from('{"runs":2}') })
  })

  it('runs again by itself what stopped in the middle', async () => {
    const stopped = gate()
    const runs: number[] = []
    const { app, send } = await anAtomicApp((bank) =>
      bank.post('/', { config: { idempotency: { atomic: true } } }, async (request) => {
        const { fence } = request.idempotency
        runs.push(fence)
        if (fence === 1) await stopped.opened
        return request.idempotency.transaction(async () => ({ fence }))
      }),
    )
    const key = aKey()
    const claim = await claimOf(app, pool, () => send('/', { key }))
    await pool.query(`update oncekey_records set lease_until = clock_timestamp() where id = $1`, [claim.id])
    const other = await anAtomicApp((bank) =>
      bank.post('/', { config: { idempotency: { atomic: true } } }, async (request) => {
        const { fence } = request.idempotency
        runs.push(fence)
        return request.idempotency.transaction(async () => ({ fence }))
      }),
    )
    expect(await other.send('/', { key })).toMatchObject({ status: 200, bytes: Buffer.from('{"fence":2}') })
    stopped.open()
    expect(await claim.answer).toMatchObject({ status: 200, bytes: Buffer.from('{"fence":2}') })
    expect(runs).toEqual([1, 2])
  })
})

/** Sends a request, waits until it is claimed, and gives the claim's id and the answer to come. */
async function claimOf<T>(app: FastifyInstance, _pool: Pool, send: () => Promise<T>) {
  const claimed = new Promise<string>((resolve) => {
    app.idempotency.on((event) => {
      if (event.type === 'claimed') resolve(event.operation.id)
    })
  })
  const answer = send()
  return { id: await claimed, answer }
}
