import { randomUUID } from 'node:crypto'
import { Readable } from 'node:stream'
import type { Express, NextFunction, Request, Response } from 'express'
import { Pool, type PoolClient } from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, expect, inject, it } from 'vitest'
import type { ExpressOptions, Once } from '../../src/adapters/express.js'
import type { IdempotencyEvent } from '../../src/core/events.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { aKey, anExpress, closeExpressApps, type TestExpress } from '../support/express-app.js'
import { EXPRESS_VERSIONS, type ExpressVersion } from '../support/express-versions.js'
import { gate } from '../support/gate.js'
import { type Money, move, someMoney } from '../support/money.js'
import { keptHeaders } from '../support/raw-request.js'
import { describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')

type Handler = (request: Request, response: Response) => Promise<unknown>

for (const version of EXPRESS_VERSIONS)
  describeWith(['postgres'], `${version.name} › req.idempotency.transaction`, () => transactions(version))

/** What the log says of answers that went to nobody. */
function ignored(log: TestExpress['log']): readonly string[] {
  return log.map(({ message }) => message).filter((message) => message.includes('went to nobody'))
}

function transactions(version: ExpressVersion): void {
  let pool: Pool
  let money: Money
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
    await closeExpressApps()
    await money.drop()
  })

  async function aBank(
    handler: Handler,
    {
      define = () => {},
      before = (_req, _res, next) => next(),
      ...options
    }: Partial<ExpressOptions> & {
      define?: (app: Express, once: Once) => void
      before?: (request: Request, response: Response, next: NextFunction) => void
    } = {},
  ): Promise<TestExpress> {
    const bank = await anExpress(
      version,
      (app, once) => {
        // Express 4 knows nothing of promises.
        app.post('/', before, once(), (req, res, next) => void handler(req, res).catch(next))
        define(app, once)
      },
      { store: postgresStore(pool), ...options },
    )
    bank.once.engine.on((event) => events.push(event))
    return bank
  }

  const types = (): readonly string[] =>
    events.map(({ type }) => type).filter((type) => !type.startsWith('store-'))

  const transfer: Handler = (req, res) =>
    req.idempotency.transaction(async (tx) => {
      const { id } = await move(tx, money.schema, { key: req.idempotency.key ?? 'none' })
      return res.status(201).location(`/transfers/${id}`).json({ id, status: 'accepted' })
    })

  it('commits the effect and the answer that it sends together, and replays the answer byte for byte', async () => {
    const { send, log } = await aBank(transfer)
    const key = aKey()
    const first = await send('/', { key })
    expect(first).toMatchObject({ status: 201, isReplay: false })
    const again = await send('/', { key })
    expect(again).toMatchObject({ status: 201, isReplay: true, bytes: first.bytes })
    expect(keptHeaders(again)).toEqual(keptHeaders(first))
    expect(first.headers.location).toMatch(/^\/transfers\/\d+$/)
    expect(await money.transfers()).toEqual([key])
    expect(await money.balance('alice')).toBe(90)
    expect(types()).toEqual(['claimed', 'completed', 'claim-ended', 'replayed'])
    expect(ignored(log)).toEqual([])
  })

  it('sends nothing before the commit, and has committed when it resolves', async () => {
    const asked = gate()
    const committing = gate()
    const store = postgresStore(pool)
    let seen: readonly string[] = []
    const { send } = await aBank(
      async (req, res) => {
        await req.idempotency.transaction(async (tx) => {
          await move(tx, money.schema, { key: 'seen' })
          res.json({ done: true })
        })
        seen = await money.transfers()
      },
      {
        store: {
          ...store,
          transaction: (work, settings) =>
            store.transaction?.(async (client) => {
              const ended = await work(client)
              asked.open()
              await committing.opened
              return ended
            }, settings) ?? expect.fail(),
        },
      },
    )
    let isAnswered = false
    const answer = send('/', { key: aKey() }).then(() => {
      isAnswered = true
    })
    await asked.opened
    await send('/nowhere', { method: 'GET' })
    expect(isAnswered).toBe(false)
    committing.open()
    await answer
    await expect.poll(() => seen).toEqual(['seen'])
  })

  it.each<{ what: string; make: () => unknown; type: string | undefined; bytes: Buffer }>([
    {
      what: 'JSON',
      make: () => ({ a: 1 }),
      type: 'application/json; charset=utf-8',
      bytes: Buffer.from('{"a":1}'),
    },
    { what: 'text', make: () => 'done', type: 'text/html; charset=utf-8', bytes: Buffer.from('done') },
    {
      what: 'bytes',
      make: () => new Uint8Array([0, 255, 1]),
      type: 'application/octet-stream',
      bytes: Buffer.from([0, 255, 1]),
    },
    {
      what: 'a stream',
      make: () => Readable.from(['one ', 'two']),
      type: undefined,
      bytes: Buffer.from('one two'),
    },
    { what: 'null', make: () => null, type: 'application/json; charset=utf-8', bytes: Buffer.from('null') },
    { what: 'a number', make: () => 7, type: 'application/json; charset=utf-8', bytes: Buffer.from('7') },
  ])('answers with $what that it returns, as Express would send it', async ({ make, type, bytes }) => {
    const { send } = await aBank((req) => req.idempotency.transaction(async () => make()))
    const key = aKey()
    for (const given of [{ key }, { key }, {}]) {
      const answer = await send('/', given)
      expect(answer).toMatchObject({ status: 200, bytes })
      expect(answer.headers['content-type']).toBe(type)
    }
    expect(types()).toEqual(['claimed', 'completed', 'claim-ended', 'replayed'])
  })

  it('answers with 204', async () => {
    const { send } = await aBank((req, res) =>
      req.idempotency.transaction(async (tx) => {
        await move(tx, money.schema, { key: 'one' })
        res.sendStatus(204)
      }),
    )
    const key = aKey()
    for (const isReplay of [false, true])
      expect(await send('/', { key })).toMatchObject({ status: 204, isReplay, bytes: Buffer.alloc(0) })
    expect(await money.transfers()).toEqual(['one'])
  })

  it('rolls back when the answer cannot be serialised', async () => {
    const { send } = await aBank((req) =>
      req.idempotency.transaction(async (tx) => {
        await move(tx, money.schema, { key: 'lost' })
        return { amount: 1n }
      }),
    )
    expect(await send('/', { key: aKey() })).toMatchObject({ status: 500 })
    expect(await money.transfers()).toEqual([])
  })

  it('keeps an answer that is too long as a tombstone, and sends it', async () => {
    const { send } = await aBank(
      (req, res) => req.idempotency.transaction(async () => void res.send('x'.repeat(100))),
      { maxBodyBytes: 10 },
    )
    const key = aKey()
    expect((await send('/', { key })).bytes.toString()).toBe('x'.repeat(100))
    expect(await send('/', { key })).toMatchObject({ status: 409, code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
  })

  it('rolls back what throws, forgets what it had said, and releases the key after a 500', async () => {
    let attempts = 0
    const { send } = await aBank((req, res) =>
      req.idempotency.transaction(async (tx) => {
        attempts += 1
        await move(tx, money.schema, { key: `attempt ${attempts}` })
        res.status(201).set('x-attempt', String(attempts))
        if (attempts === 1) {
          res.json({ done: 'not really' })
          throw new Error('the first attempt fails')
        }
        res.json({ attempts })
      }),
    )
    const key = aKey()
    const failed = await send('/', { key })
    expect(failed).toMatchObject({ status: 500, isReplay: false })
    expect(failed.headers).not.toHaveProperty('x-attempt')
    expect(failed.bytes.toString()).not.toContain('not really')
    expect(await send('/', { key })).toMatchObject({ status: 201, isReplay: false })
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

  it.each([402, 404, 409, 422])(
    'rolls back a %i that is thrown or sent, and keeps it',
    async (statusCode) => {
      const { send } = await aBank((req, res) =>
        req.idempotency.transaction(async (tx) => {
          await move(tx, money.schema, { key: 'refused' })
          if (req.body.throws) throw Object.assign(new Error('refused'), { statusCode })
          res.status(statusCode).json({ error: 'refused' })
        }),
      )
      for (const throws of [true, false]) {
        const key = aKey()
        const first = await send('/', { key, body: { throws } })
        expect(first).toMatchObject({ status: statusCode, isReplay: false })
        expect(await send('/', { key, body: { throws } })).toMatchObject({
          status: statusCode,
          isReplay: true,
          bytes: first.bytes,
        })
      }
      expect(await money.transfers()).toEqual([])
      expect(await money.balance('alice')).toBe(100)
    },
  )

  it.each([500, 503, 429])('rolls back a %i that is sent, and releases the key', async (statusCode) => {
    const { send } = await aBank((req, res) =>
      req.idempotency.transaction(async (tx) => {
        await move(tx, money.schema, { key: 'refused' })
        res.status(statusCode).json({ error: 'later' })
      }),
    )
    const key = aKey()
    for (const isReplay of [false, false])
      expect(await send('/', { key })).toMatchObject({ status: statusCode, isReplay })
    expect(await money.transfers()).toEqual([])
  })

  it('rolls back what was forgotten, and releases the key', async () => {
    const { send } = await aBank((req, res) =>
      req.idempotency.transaction(async (tx) => {
        await move(tx, money.schema, { key: 'forgotten' })
        req.idempotency.forget()
        res.json({ done: false })
      }),
    )
    const key = aKey()
    for (const isReplay of [false, false])
      expect(await send('/', { key })).toMatchObject({ status: 200, isReplay })
    expect(await money.transfers()).toEqual([])
  })

  it('begins again, whole, after a conflict, and forgets what it had said', async () => {
    let attempts = 0
    const { send } = await aBank((req, res) =>
      req.idempotency.transaction(async (tx) => {
        attempts += 1
        await move(tx, money.schema, { key: `attempt ${attempts}` })
        if (attempts === 1) {
          res.status(202).set('x-attempt', '1').json({ attempts })
          throw Object.assign(new Error('could not serialize'), { code: '40001' })
        }
        res.json({ attempts })
      }),
    )
    const key = aKey()
    for (const isReplay of [false, true]) {
      const answer = await send('/', { key })
      expect(answer).toMatchObject({ status: 200, isReplay, bytes: Buffer.from('{"attempts":2}') })
      expect(answer.headers).not.toHaveProperty('x-attempt')
    }
    expect(await money.transfers()).toEqual(['attempt 2'])
  })

  it('answers with what it committed, whatever the handler comes to afterwards', async () => {
    const { send } = await aBank(async (req, res) => {
      await req.idempotency.transaction(async (tx) => {
        await move(tx, money.schema, { key: req.body.then })
        res.status(201).json({ done: true })
      })
      if (req.body.then === 'throws') throw new Error('after the commit')
      if (req.body.then === 'sends') res.status(202).set('x-own', 'no').json({ other: true })
      if (req.body.then === 'repeats') res.status(201).json({ done: true })
      if (req.body.then === 'streams') Readable.from(['other']).pipe(res)
    })
    for (const then of ['throws', 'sends', 'repeats', 'streams', 'says nothing']) {
      const key = aKey()
      for (const given of [{ key }, { key }, {}]) {
        const answer = await send('/', { ...given, body: { then } })
        expect(answer).toMatchObject({ status: 201, bytes: Buffer.from('{"done":true}') })
        expect(answer.headers).not.toHaveProperty('x-own')
      }
    }
  })

  it('says so in the log when the handler sends another answer afterwards, and not when it sends the same', async () => {
    const { send, log } = await aBank(async (req, res) => {
      await req.idempotency.transaction(async () => ({ done: true }))
      res.json({ done: req.body.done })
    })
    for (const given of [{ key: aKey() }, {}]) await send('/', { ...given, body: { done: true } })
    expect(ignored(log)).toHaveLength(0)
    for (const given of [{ key: aKey() }, {}]) await send('/', { ...given, body: { done: false } })
    expect(ignored(log)).toHaveLength(2)
  })

  it('gives what a handler sent after a transaction without an answer, also where it fails right behind it', async () => {
    const hadLeft: boolean[] = []
    const { send } = await aBank(
      async (req, res) => {
        await req.idempotency.transaction(async () => {})
        res.status(201).json({ done: true })
        throw new Error('after the answer')
      },
      {
        define: (app) =>
          app.use((_error: unknown, _req: Request, res: Response, _next: NextFunction) => {
            hadLeft.push(res.headersSent)
            res.status(500).json({ error: 'failed' })
          }),
      },
    )
    expect(await send('/', {})).toMatchObject({ status: 201, bytes: Buffer.from('{"done":true}') })
    // Express cuts the connection of an answer that has left when something fails.
    expect(hadLeft).toEqual([false])
  })

  it('keeps the answer of a request on which a transaction has run before it was protected', async () => {
    let runs = 0
    const bank = await anExpress(
      version,
      (app, once) => {
        app.use(once({ methods: ['PUT'] }), (req, _res, next) => {
          req.idempotency.transaction(async () => {}).then(() => next(), next)
        })
        app.post('/', once(), (_req, res) => res.json({ run: ++runs }))
      },
      { store: postgresStore(pool) },
    )
    const key = aKey()
    for (const isReplay of [false, true])
      expect(await bank.send('/', { key })).toMatchObject({ isReplay, bytes: Buffer.from('{"run":1}') })
  })

  it('lets a handler go on that waits for what it writes afterwards', async () => {
    let ended = 0
    const { send } = await aBank(async (req, res) => {
      await req.idempotency.transaction(async () => ({ done: true }))
      await new Promise<void>((resolve) => res.write('more', () => resolve()))
      await new Promise<void>((resolve) => res.end('more', () => resolve()))
      ended += 1
    })
    for (const given of [{ key: aKey() }, {}])
      expect((await send('/', given)).bytes).toEqual(Buffer.from('{"done":true}'))
    await expect.poll(() => ended).toBe(2)
  })

  it('refuses to be called a second time after it committed, or inside of itself', async () => {
    const refused: unknown[] = []
    const { send } = await aBank(async (req, res) => {
      const { idempotency } = req
      await idempotency.transaction(async (tx) => {
        await idempotency.transaction(async () => 'inner').catch((error) => refused.push(error))
        res.json({ done: true })
        await move(tx, money.schema, { key: 'outer' })
      })
      await idempotency.transaction(async () => 'second').catch((error) => refused.push(error))
    })
    expect((await send('/', { key: aKey() })).bytes.toString()).toBe('{"done":true}')
    await expect
      .poll(() => refused)
      .toMatchObject([
        { code: 'IDEMPOTENCY_TRANSACTION_MISUSED' },
        { code: 'IDEMPOTENCY_TRANSACTION_MISUSED' },
      ])
    expect(await money.transfers()).toEqual(['outer'])
  })

  it('may be begun again by the handler after a roll-back', async () => {
    const { send } = await aBank(async (req, res) => {
      const { idempotency } = req
      await idempotency
        .transaction(async (tx) => {
          await move(tx, money.schema, { key: 'first' })
          res.status(201).json({ first: true })
          throw new Error('no')
        })
        .catch(() => {})
      await idempotency.transaction(async (tx) => {
        await move(tx, money.schema, { key: 'second' })
        res.json({ second: true })
      })
    })
    for (const given of [{ key: aKey() }, {}])
      expect(await send('/', given)).toMatchObject({ status: 200, bytes: Buffer.from('{"second":true}') })
    expect(await money.transfers()).toEqual(['second', 'second'])
  })

  it.each<[string, (req: Request, res: Response) => unknown]>([
    ['says nothing to the client', () => undefined],
    ['sets a status only', (_, res) => void res.status(201)],
    ['ends in the middle of its answer', (_, res) => void res.write('half')],
    [
      'lets its answer leave by itself',
      (_, res) => {
        res.flushHeaders()
        res.end()
      },
    ],
  ])('is an error when it %s, and rolls back', async (_, work) => {
    const { send } = await aBank((req, res) =>
      req.idempotency.transaction(async (tx) => {
        await move(tx, money.schema, { key: 'misused' })
        return work(req, res)
      }),
    )
    const answer = await send('/', { key: aKey() })
    expect(answer.status).toBe(500)
    expect(answer.bytes.toString()).toMatch(/IDEMPOTENCY_TRANSACTION_MISUSED|leaves by itself/)
    expect(await money.transfers()).toEqual([])
  })

  it('is an error after the answer was sent, and rolls back', async () => {
    const refused: unknown[] = []
    const { send } = await aBank(async (req, res) => {
      res.json({ done: 'before' })
      await req.idempotency
        .transaction(async (tx) => {
          await move(tx, money.schema, { key: 'late' })
          return { done: 'after' }
        })
        .catch((error) => refused.push(error))
    })
    const key = aKey()
    expect((await send('/', { key })).bytes.toString()).toBe('{"done":"before"}')
    await expect.poll(() => refused).toHaveLength(1)
    expect(await money.transfers()).toEqual([])
    expect(await send('/', { key })).toMatchObject({
      isReplay: true,
      bytes: Buffer.from('{"done":"before"}'),
    })
  })

  it('is a plain transaction without a key', async () => {
    const { send } = await aBank(transfer, {
      define(app, once) {
        const refusing = (req: Request, res: Response, next: NextFunction) =>
          void req.idempotency
            .transaction(async (tx) => {
              await move(tx, money.schema, { key: 'refused' })
              res.status(402).json({ error: 'refused' })
            })
            .catch(next)
        app.post('/refused', once(), refusing)
        app.all('/unprotected', once(), refusing)
        app.post('/throws', once(), (req, res, next) => {
          void req.idempotency
            .transaction(async (tx) => {
              await move(tx, money.schema, { key: 'thrown' })
              res.status(201).json({ done: true })
              throw new Error('no')
            })
            .catch(next)
        })
        app.post('/silent', once(), (req, res, next) => {
          void req.idempotency
            .transaction(async (tx) => {
              await move(tx, money.schema, { key: 'silent' })
              res.status(201)
            })
            .then(() => res.json({ done: true }))
            .catch(next)
        })
      },
    })
    for (const _ of [1, 2]) expect(await send('/')).toMatchObject({ status: 201, isReplay: false })
    expect(await send('/refused')).toMatchObject({ status: 402 })
    expect(await send('/unprotected', { method: 'DELETE', key: aKey() })).toMatchObject({ status: 402 })
    expect(await send('/throws')).toMatchObject({ status: 500 })
    expect(await send('/silent')).toMatchObject({ status: 201, bytes: Buffer.from('{"done":true}') })
    expect(await money.transfers()).toEqual(['none', 'none', 'silent'])
    expect(types()).toEqual([])
  })

  it('gives back its connections', async () => {
    const { send } = await aBank((req, res) =>
      req.idempotency.transaction(async () => {
        if (req.body.throws) throw new Error('no')
        res.json({})
      }),
    )
    for (const throws of [true, false]) await send('/', { key: aKey(), body: { throws } })
    expect(pool.waitingCount).toBe(0)
    await expect.poll(() => pool.idleCount).toBe(pool.totalCount)
  })

  it('lets a run that was overtaken write nothing, and answers with what the other kept', async () => {
    const stalled = gate()
    const overtaken = gate()
    const options = { lease: 200, maxRun: 60_000, onUnknown: 'rerun' } as const
    const handler: Handler = (req, res) => {
      res.cookie('run', String(req.idempotency.fence))
      return req.idempotency.transaction(async (tx) => {
        const { fence } = req.idempotency
        await tx.query(`insert into ${money.schema}.transfers (key, payee, amount) values ($1, 'bob', 1)`, [
          `fence ${fence}`,
        ])
        if (fence === 1) {
          stalled.open()
          await overtaken.opened
        }
        res.status(201).set('x-fence', String(fence)).json({ fence })
      })
    }
    const withoutRenewals = { ...postgresStore(pool), renew: () => new Promise<boolean>(() => {}) }
    const stalling = await aBank(handler, {
      ...options,
      store: withoutRenewals,
      before: (_req, res, next) => {
        res.set('access-control-allow-origin', 'https://shop.example')
        next()
      },
    })
    const key = aKey()
    const late = stalling.send('/', { key })
    await stalled.opened
    const other = await aBank(handler, options)
    await expect.poll(async () => (await other.send('/', { key })).status, { timeout: 10_000 }).toBe(201)
    overtaken.open()
    const answer = await late
    expect(answer).toMatchObject({ status: 201, isReplay: true, headers: { 'x-fence': '2' } })
    expect(answer.headers).not.toHaveProperty('set-cookie')
    // What belongs to this client's own exchange is not the other run's to take away.
    expect(answer.headers['access-control-allow-origin']).toBe('https://shop.example')
    expect(answer.bytes.toString()).toBe('{"fence":2}')
    expect(await money.transfers()).toEqual(['fence 2'])
  })

  it('is what a route that is atomic must have', async () => {
    let runs = 0
    const { send } = await aBank(transfer, {
      define(app, once) {
        app.post('/atomic', once({ atomic: true }), (_req, res) => void res.json({ run: ++runs }))
      },
    })
    const key = aKey()
    for (const isReplay of [false, true])
      expect(await send('/atomic', { key })).toMatchObject({
        status: 500,
        code: 'IDEMPOTENCY_TRANSACTION_MISSING',
        isReplay,
      })
    expect(runs).toBe(1)
  })

  it('takes an answer that the application keeps in a transaction of its own', async () => {
    const inOwnTransaction = async (work: (client: PoolClient) => Promise<void>, fails: boolean) => {
      const client = await pool.connect()
      try {
        await client.query('begin')
        await work(client)
        if (fails) throw new Error('no')
        await client.query('commit')
      } catch (error) {
        await client.query('rollback')
        throw error
      } finally {
        client.release()
      }
    }
    const { send } = await aBank(
      async (req, res) => {
        const body = { html: '<b>', at: new Date(0) }
        res.location('/transfers/7').cookie('one', 'two')
        await inOwnTransaction(async (client) => {
          await move(client, money.schema, { key: 'saved' })
          await req.idempotency.saveIn((text, values) => client.query(text, values), {
            status: 201,
            headers: { 'X-Kind': 'transfer' },
            body,
          })
        }, req.body.fails)
        if (req.body.answers) res.status(201).set('x-kind', 'transfer').json(body)
        else throw new Error('after the commit')
      },
      { define: (app) => app.set('json escape', true) },
    )
    const saved = '{"html":"\\u003cb\\u003e","at":"1970-01-01T00:00:00.000Z"}'
    for (const answers of [true, false]) {
      const key = aKey()
      const first = await send('/', { key, body: { answers } })
      const again = await send('/', { key, body: { answers } })
      expect([first.isReplay, again.isReplay]).toEqual([false, true])
      for (const answer of [first, again]) {
        expect(answer).toMatchObject({
          status: 201,
          headers: { location: '/transfers/7', 'x-kind': 'transfer' },
        })
        expect(answer.bytes.toString()).toBe(saved)
      }
      const { 'set-cookie': cookie, ...kept } = keptHeaders(first)
      expect(cookie).toEqual(['one=two; Path=/'])
      expect(keptHeaders(again)).toEqual(kept)
    }
    expect(await money.transfers()).toEqual(['saved', 'saved'])
    expect(await send('/', { key: aKey(), body: { answers: true, fails: true } })).toMatchObject({
      status: 500,
    })
    expect(await money.transfers()).toHaveLength(2)
  })
}
