import { randomUUID } from 'node:crypto'
import { Pool, type PoolClient } from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, expect, inject, it } from 'vitest'
import { idempotencyOf, type WebIdempotency, type WebOptions } from '../../src/adapters/web.js'
import type { ExecuteStatement } from '../../src/contract/store.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { aKey } from '../support/fastify-app.js'
import { describeWith } from '../support/services.js'
import { aHandler, type TestHandler } from '../support/web-app.js'

const { postgresUrl } = inject('services')

describeWith(['postgres'], 'web handler › transactions', () => {
  let pool: Pool
  let table: string
  const handlers: TestHandler[] = []

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
    await Promise.all(handlers.splice(0).map(({ once }) => once.engine.close()))
    await pool.query(`drop table ${table}`)
  })

  function aBank(
    handler: (operation: WebIdempotency) => Response | Promise<Response>,
    options: Partial<WebOptions> = {},
  ): TestHandler {
    const bank = aHandler((request) => handler(idempotencyOf(request)), {
      store: postgresStore(pool),
      ...options,
    })
    handlers.push(bank)
    return bank
  }

  async function effects(): Promise<number> {
    const { rows } = await pool.query<{ count: number }>(`select count(*)::int from ${table}`)
    return rows[0]?.count ?? -1
  }

  const pay = (tx: Pick<PoolClient, 'query'>) => tx.query(`insert into ${table} values (1)`)
  const accepted = () =>
    Response.json(
      { status: 'accepted' },
      {
        status: 201,
        headers: [
          ['location', '/p/1'],
          ['set-cookie', 'a=1'],
          ['set-cookie', 'b=2'],
        ],
      },
    )
  const paying = (answer: () => Response) => (operation: WebIdempotency) =>
    operation.transaction<PoolClient>(async (tx) => {
      await pay(tx)
      return answer()
    })

  it('commits the effect with the response, and replays it byte for byte', async () => {
    const { send, once } = aBank(paying(accepted), { atomic: true })
    const events: string[] = []
    once.engine.on(({ type }) => events.push(type))
    const key = aKey()
    const first = await send({ key })
    expect(first).toMatchObject({ status: 201, isReplay: false, bytes: Buffer.from('{"status":"accepted"}') })
    expect(first.headers).toMatchObject({ location: '/p/1', 'content-type': 'application/json' })
    expect(String(first.headers['set-cookie'])).toContain('b=2')
    expect(await effects()).toBe(1)
    const again = await send({ key })
    expect(again).toMatchObject({ status: 201, isReplay: true, bytes: first.bytes })
    expect(again.headers.location).toBe('/p/1')
    expect(again.headers).not.toHaveProperty('set-cookie')
    expect(await effects()).toBe(1)
    expect(events.filter((type) => !type.startsWith('store-'))).toEqual([
      'claimed',
      'completed',
      'claim-ended',
      'replayed',
    ])
  })

  it.each([
    ['returns something else', async () => new Response('something else')],
    [
      'throws',
      async () => {
        throw new Error('the mail server is away')
      },
    ],
  ])('answers with what was committed when the handler then %s', async (_, then) => {
    const { send } = aBank(async (operation) => {
      await paying(accepted)(operation)
      return then()
    })
    const key = aKey()
    const first = await send({ key })
    expect(first).toMatchObject({ status: 201, bytes: Buffer.from('{"status":"accepted"}') })
    expect(await send({ key })).toMatchObject({ isReplay: true, bytes: first.bytes })
    expect(await effects()).toBe(1)
  })

  it('answers with what was committed when the handler did not wait for it, or has read it', async () => {
    const hasty = aBank((operation) => {
      void paying(accepted)(operation)
      return new Response('at once')
    })
    expect(await hasty.send({ key: aKey() })).toMatchObject({ status: 201 })
    const reading = aBank(async (operation) => {
      const response = await paying(accepted)(operation)
      await response.text()
      return response
    })
    expect(await reading.send({ key: aKey() })).toMatchObject({ bytes: Buffer.from('{"status":"accepted"}') })
    expect(await effects()).toBe(2)
  })

  it('streams a response over the limit on, and keeps a tombstone with its effect', async () => {
    const { send } = aBank(
      paying(() => new Response('x'.repeat(5000), { status: 201 })),
      { maxBodyBytes: 1000 },
    )
    const key = aKey()
    expect((await send({ key })).bytes).toHaveLength(5000)
    expect(await send({ key })).toMatchObject({ code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
    expect(await effects()).toBe(1)
  })

  it.each([
    ['keeps a refusal', 402, true],
    ['keeps no failure', 500, false],
    ['keeps nothing that says that nothing was done', 429, false],
  ])('rolls back, and %s', async (_, status, isReplay) => {
    const { send } = aBank(paying(() => Response.json({ error: 'no' }, { status })))
    const key = aKey()
    expect(await send({ key })).toMatchObject({ status, bytes: Buffer.from('{"error":"no"}') })
    expect(await send({ key })).toMatchObject({ status, isReplay })
    expect(await effects()).toBe(0)
  })

  it.each(['with', 'without'])('rolls back what throws, %s a key, and a retry runs', async (how) => {
    let runs = 0
    const { send } = aBank((operation) =>
      operation.transaction<PoolClient>(async (tx) => {
        await pay(tx)
        if (++runs === 1) throw new Error('no stock')
        return accepted()
      }),
    )
    const key = how === 'with' ? aKey() : undefined
    await expect(send({ key })).rejects.toThrow('no stock')
    expect(await effects()).toBe(0)
    expect(await send({ key })).toMatchObject({ status: 201, isReplay: false })
    expect(await effects()).toBe(1)
  })

  it('refuses what is no response, and rolls back', async () => {
    const { send } = aBank((operation) =>
      operation.transaction<PoolClient>(async (tx) => {
        await pay(tx)
        return { status: 201 } as Response
      }),
    )
    await expect(send({ key: aKey() })).rejects.toMatchObject({ code: 'IDEMPOTENCY_TRANSACTION_MISUSED' })
    expect(await effects()).toBe(0)
  })

  it('is a plain transaction without a key, which rolls back with a failure', async () => {
    const { send } = aBank(paying(accepted))
    expect(await send()).toMatchObject({ status: 201, isReplay: false })
    expect(await effects()).toBe(1)
    const failing = aBank(paying(() => new Response('no', { status: 409 })))
    expect(await failing.send()).toMatchObject({ status: 409, bytes: Buffer.from('no') })
    expect(await effects()).toBe(1)
  })

  it('runs again after a conflict, with the answer of the last attempt', async () => {
    let attempts = 0
    const { send } = aBank((operation) =>
      operation.transaction<PoolClient>(async (tx) => {
        await pay(tx)
        attempts += 1
        if (attempts === 1) throw Object.assign(new Error('serialize'), { code: '40001' })
        return new Response(`attempt ${attempts}`)
      }),
    )
    expect((await send({ key: aKey() })).bytes.toString()).toBe('attempt 2')
    expect(await effects()).toBe(1)
  })

  it('fails a success that had no transaction, where the handler is atomic', async () => {
    const { send } = aBank(() => new Response('done'), { atomic: true })
    const key = aKey()
    expect(await send({ key })).toMatchObject({ status: 500, code: 'IDEMPOTENCY_TRANSACTION_MISSING' })
    expect(await send({ key })).toMatchObject({ status: 500, code: 'IDEMPOTENCY_TRANSACTION_MISSING' })
  })

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

  const execute =
    (client: PoolClient): ExecuteStatement =>
    (text, values) =>
      client.query(text, values)

  it.each([
    ['a response', accepted],
    ['a plain one', () => ({ status: 201, headers: { location: '/p/1' }, body: { status: 'accepted' } })],
  ])('keeps %s in a transaction of the application', async (_, saved) => {
    const { send } = aBank(async (operation) => {
      await inOwnTransaction(async (client) => {
        await pay(client)
        await operation.saveIn(execute(client), saved())
      })
      return Response.json(
        { status: 'accepted' },
        { status: 201, headers: { 'content-length': '99', 'x-own': 'yes' } },
      )
    })
    const key = aKey()
    const first = await send({ key })
    expect(first).toMatchObject({ status: 201, bytes: Buffer.from('{"status":"accepted"}') })
    expect(first.headers).toMatchObject({ location: '/p/1', 'x-own': 'yes' })
    // It would be that of another body.
    expect(first.headers).not.toHaveProperty('content-length')
    const again = await send({ key })
    expect(again).toMatchObject({ status: 201, isReplay: true, bytes: first.bytes })
    expect(again.headers.location).toBe('/p/1')
    expect(await effects()).toBe(1)
  })

  it('lets the handler return the very response that it has saved', async () => {
    const { send } = aBank((operation) =>
      inOwnTransaction(async (client) => {
        await pay(client)
        const response = accepted()
        await operation.saveIn(execute(client), response)
        expect(response.bodyUsed).toBe(false)
        return response
      }),
    )
    const key = aKey()
    const first = await send({ key })
    expect(first).toMatchObject({ status: 201, bytes: Buffer.from('{"status":"accepted"}') })
    expect(await send({ key })).toMatchObject({ isReplay: true, bytes: first.bytes })
  })

  it('finds out that what was saved was never committed, and a retry runs', async () => {
    let commits = false
    const { send } = aBank(async (operation) => {
      await inOwnTransaction(async (client) => {
        await pay(client)
        await operation.saveIn(execute(client), accepted())
        if (!commits) throw new Error('rolled back')
      }).catch(() => {})
      return accepted()
    })
    const key = aKey()
    expect(await send({ key })).toMatchObject({ status: 500, code: 'IDEMPOTENCY_TRANSACTION_MISUSED' })
    commits = true
    expect(await send({ key })).toMatchObject({ status: 201, isReplay: false })
    expect(await effects()).toBe(1)
  })
})
