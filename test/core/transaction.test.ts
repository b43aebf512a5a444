import { randomUUID } from 'node:crypto'
import { Pool } from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest'
import { NothingHappenedError } from '../../src/contract/errors.js'
import type { IdempotencyEvent } from '../../src/core/events.js'
import { createIdempotency, type Idempotency, type IdempotencyOptions, memoryStore } from '../../src/index.js'
import { type PostgresPool, postgresStore } from '../../src/stores/postgres.js'
import { type DisturbedPool, disturbedPool } from '../support/disturbed-pool.js'
import { gate } from '../support/gate.js'
import { type Money, move, someMoney } from '../support/money.js'
import { describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')

describeWith(['postgres'], 'run, with a transaction', () => {
  let pool: Pool
  let line: DisturbedPool
  let money: Money
  let engines: Idempotency[]
  let events: IdempotencyEvent[]

  beforeAll(async () => {
    pool = new Pool({ connectionString: postgresUrl, max: 10 })
    await postgresStore(pool).migrate()
  })
  afterAll(() => pool.end())
  beforeEach(async () => {
    money = await someMoney(pool, `money_${randomUUID().slice(0, 8)}`)
    line = disturbedPool(pool)
    engines = []
    events = []
  })
  afterEach(async () => {
    await Promise.all(engines.map((engine) => engine.close()))
    await money.drop()
  })

  function anEngine(options: Partial<IdempotencyOptions> = {}, client: PostgresPool = line): Idempotency {
    const engine = createIdempotency({
      store: postgresStore(client),
      storeTimeout: 1000,
      namespace: money.schema,
      ...options,
    })
    engine.on((event) => events.push(event))
    engines.push(engine)
    return engine
  }

  const types = (): readonly string[] =>
    events.map(({ type }) => type).filter((type) => !type.startsWith('store-'))

  const pay = ({ run }: Idempotency, key: string) =>
    run({ scope: 'acme', key }, ({ transaction, fence }) =>
      transaction(async (tx) => {
        await move(tx, money.schema, { key })
        return { paid: true, fence }
      }),
    )

  it('gives its value to every caller, and has one effect', async () => {
    const engine = anEngine()
    for (let call = 0; call < 3; call += 1) expect(await pay(engine, 'one')).toEqual({ paid: true, fence: 1 })
    expect(await money.transfers()).toEqual(['one'])
  })

  it('rolls back what throws, and a retry runs it again', async () => {
    const { run } = anEngine()
    let attempts = 0
    const attempt = () =>
      run({ scope: 'acme', key: 'two' }, ({ transaction }) =>
        transaction(async (tx) => {
          attempts += 1
          await move(tx, money.schema, { key: `attempt ${attempts}` })
          if (attempts === 1) throw new Error('the first attempt fails')
          return attempts
        }),
      )
    await expect(attempt()).rejects.toThrow('the first attempt fails')
    expect(await attempt()).toBe(2)
    expect(await money.transfers()).toEqual(['attempt 2'])
  })

  it('keeps what the application refuses for good', async () => {
    const { run } = anEngine()
    let attempts = 0
    const attempt = () =>
      run({ scope: 'acme', key: 'refused' }, ({ transaction }) =>
        transaction(async () => {
          attempts += 1
          throw Object.assign(new Error('insufficient funds'), { statusCode: 402 })
        }),
      )
    await expect(attempt()).rejects.toThrow('insufficient funds')
    await expect(attempt()).rejects.toMatchObject({ code: 'IDEMPOTENCY_OPERATION_FAILED' })
    expect(attempts).toBe(1)
  })

  it('keeps what fails without a transaction, and releases what says that nothing happened', async () => {
    const { run } = anEngine()
    let attempts = 0
    const attempt = (key: string, error: Error) =>
      run({ scope: 'acme', key }, () => {
        attempts += 1
        throw error
      })
    await expect(attempt('kept', new Error('no'))).rejects.toThrow('no')
    await expect(attempt('kept', new Error('no'))).rejects.toMatchObject({
      code: 'IDEMPOTENCY_OPERATION_FAILED',
    })
    expect(attempts).toBe(1)
    const nothing = new NothingHappenedError('the provider is away')
    await expect(attempt('nothing', nothing)).rejects.toBe(nothing)
    await expect(attempt('nothing', nothing)).rejects.toBe(nothing)
    expect(attempts).toBe(3)
  })

  it('is the value of the operation, whatever the work comes to afterwards', async () => {
    const { run } = anEngine()
    const warned = new Promise((resolve) => process.once('warning', resolve))
    const value = await run({ scope: 'acme', key: 'after' }, async ({ transaction }) => {
      await transaction(async () => 'committed')
      throw new Error('after the commit')
    })
    expect(value).toBe('committed')
    expect(await warned).toMatchObject({ message: 'after the commit' })
  })

  it('may not succeed without one when it is atomic', async () => {
    const { run } = anEngine({ atomic: true })
    let runs = 0
    const attempt = () =>
      run({ scope: 'acme', key: 'bare' }, () => {
        runs += 1
        return 'done'
      })
    await expect(attempt()).rejects.toMatchObject({ code: 'IDEMPOTENCY_TRANSACTION_MISSING' })
    await expect(attempt()).rejects.toMatchObject({
      originalCode: 'IDEMPOTENCY_TRANSACTION_MISSING',
    })
    expect(runs).toBe(1)
  })

  it('releases the key of what is atomic and fails without one', async () => {
    const { run } = anEngine({ atomic: true })
    let runs = 0
    const attempt = () =>
      run({ scope: 'acme', key: 'fails before' }, ({ transaction }) => {
        runs += 1
        if (runs === 1) throw new Error('not yet')
        return transaction(async () => runs)
      })
    await expect(attempt()).rejects.toThrow('not yet')
    expect(await attempt()).toBe(2)
  })

  it('is refused at start where the store has no transactions', () => {
    expect(() => createIdempotency({ store: memoryStore(), atomic: true })).toThrow('"atomic"')
  })

  describe('whose commit was carried out, and its answer lost', () => {
    it('finds the record, and gives its value', async () => {
      line.disturbCommit('loses-answer')
      expect(await pay(anEngine(), 'lost')).toEqual({ paid: true, fence: 1 })
      expect(await money.transfers()).toEqual(['lost'])
      expect(types()).toEqual(['claimed', 'commit-undecided', 'completed', 'claim-ended'])
    })

    it('says that it does not know while the store is away, and finds out afterwards', async () => {
      const engine = anEngine()
      const { run } = engine
      const attempt = () =>
        run({ scope: 'acme', key: 'away' }, ({ transaction }) =>
          transaction(async (tx) => {
            await move(tx, money.schema, { key: 'away' })
            line.disturbCommit('loses-answer')
            line.cut()
            return 'paid'
          }),
        )
      await expect(attempt()).rejects.toMatchObject({
        code: 'IDEMPOTENCY_COMMIT_UNDECIDED',
        retryable: true,
      })
      line.heal()
      await expect.poll(types, { timeout: 10_000 }).toContain('completed')
      expect(await attempt()).toBe('paid')
      expect(await money.transfers()).toEqual(['away'])
    })
  })

  describe('whose commit never arrived', () => {
    it('gives the claim back, and a retry runs it', async () => {
      const engine = anEngine()
      line.disturbCommit('never-arrives')
      await expect(pay(engine, 'never')).rejects.toMatchObject({ code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
      expect(await money.transfers()).toEqual([])
      expect(await pay(engine, 'never')).toEqual({ paid: true, fence: 1 })
      expect(await money.transfers()).toEqual(['never'])
    })

    it('says that it does not know while the store is away, and gives the claim back afterwards', async () => {
      const engine = anEngine()
      const attempt = () =>
        engine.run({ scope: 'acme', key: 'both' }, ({ transaction }) =>
          transaction(async (tx) => {
            await move(tx, money.schema, { key: 'both' })
            if (events.every(({ type }) => type !== 'commit-undecided')) {
              line.disturbCommit('never-arrives')
              line.cut()
            }
            return 'paid'
          }),
        )
      await expect(attempt()).rejects.toMatchObject({ code: 'IDEMPOTENCY_COMMIT_UNDECIDED' })
      line.heal()
      await expect.poll(types, { timeout: 10_000 }).toContain('rolled-back')
      expect(await attempt()).toBe('paid')
      expect(await money.transfers()).toEqual(['both'])
    })
  })

  it('is not taken for committed when the database has lost its claim as well, and another run has ended', async () => {
    const key = 'forgotten'
    const store = postgresStore(line)
    const other = anEngine({}, pool)
    let answer: unknown
    const forgetful = anEngine({
      store: {
        ...store,
        async find(id) {
          if (answer === undefined) {
            // What the crash of a database may leave of a claim that waited for no disk: nothing.
            await pool.query('delete from oncekey_records where id = $1', [id])
            answer = await payOnce(other, 'by the other')
          }
          return store.find(id)
        },
      },
    })
    const payOnce = ({ run }: Idempotency, by: string) =>
      run({ scope: 'acme', key }, ({ transaction }) =>
        transaction(async (tx) => {
          await move(tx, money.schema, { key: by })
          return by
        }),
      )
    line.disturbCommit('never-arrives')
    await expect(payOnce(forgetful, 'by the first')).rejects.toMatchObject({
      code: 'IDEMPOTENCY_STORE_UNAVAILABLE',
    })
    expect(answer).toBe('by the other')
    expect(await payOnce(anEngine(), 'by a retry')).toBe('by the other')
    expect(await money.transfers()).toEqual(['by the other'])
  })

  it('aborts its signal when its claim is lost while it runs again', async () => {
    const store = postgresStore(pool)
    let attempts = 0
    const refusing: typeof store = {
      ...store,
      transaction: (work, settings) =>
        store.transaction?.(async (tx) => {
          const value = await work(tx)
          if (attempts === 1) throw Object.assign(new Error('refused at the commit'), { code: '40001' })
          return value
        }, settings) ?? expect.fail('the store has no transactions'),
    }
    const { run } = anEngine({ store: refusing, lease: 300 })
    let aborted = false
    const running = run({ scope: 'acme', key: 'again' }, ({ transaction, signal }) =>
      transaction(async () => {
        attempts += 1
        if (attempts === 1) return 'refused'
        await pool.query(`update oncekey_records set token = 'another' where key = 'again'`)
        await expect.poll(() => signal.aborted, { timeout: 10_000 }).toBe(true)
        aborted = true
        return 'overtaken'
      }),
    )
    await expect(running).rejects.toMatchObject({ code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
    expect([attempts, aborted]).toEqual([2, true])
  })

  it('waits for a commit that is on its way, and does not let a retry run beside it', async () => {
    const engine = anEngine()
    line.disturbCommit('stalls-between')
    // The record is locked by the transaction whose commit stalls: whoever decides has to wait for its end.
    const first = pay(engine, 'stalled').catch((error: unknown) => error)
    await expect.poll(types).toContain('commit-undecided')
    line.goOn()
    const answer = await first
    const undecided = expect.objectContaining({ code: 'IDEMPOTENCY_COMMIT_UNDECIDED' })
    expect([{ paid: true, fence: 1 }, undecided]).toContainEqual(answer)
    await expect
      .poll(() => pay(engine, 'stalled').catch(() => undefined), { timeout: 10_000 })
      .toEqual({
        paid: true,
        fence: 1,
      })
    expect(await money.transfers()).toEqual(['stalled'])
  })

  it('does not let a commit happen that arrives after it was decided that it did not', async () => {
    const engine = anEngine()
    const attempt = () =>
      engine.run({ scope: 'acme', key: 'too late' }, ({ transaction }) =>
        transaction(async (tx) => {
          // Nothing that the second attempt would wait for.
          await tx.query(
            `insert into ${money.schema}.transfers (key, payee, amount) values ('late', 'bob', 1)`,
          )
          return 'paid'
        }),
      )
    line.disturbCommit('stalls')
    await expect(attempt()).rejects.toMatchObject({ code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
    expect(await attempt()).toBe('paid')
    line.goOn()
    await expect.poll(() => pool.idleCount === pool.totalCount, { timeout: 10_000 }).toBe(true)
    expect(await money.transfers()).toEqual(['late'])
  })

  it('is rolled back when another run took its place, and gives the value that the other kept', async () => {
    const stalled = gate()
    const overtaken = gate()
    const options = { lease: 200, maxRun: 60_000, onUnknown: 'rerun' } as const
    const store = { ...postgresStore(pool), renew: () => new Promise<boolean>(() => {}) }
    const work = ({ run }: Idempotency) =>
      run({ scope: 'acme', key: 'overtaken' }, ({ transaction, fence }) =>
        transaction(async (tx) => {
          await tx.query(`insert into ${money.schema}.transfers (key, payee, amount) values ($1, 'bob', 1)`, [
            `fence ${fence}`,
          ])
          if (fence === 1) {
            stalled.open()
            await overtaken.opened
          }
          return fence
        }),
      )
    const late = work(anEngine({ ...options, store }))
    await stalled.opened
    const other = anEngine(options)
    await expect.poll(() => work(other).catch(() => undefined), { timeout: 10_000 }).toBe(2)
    overtaken.open()
    expect(await late).toBe(2)
    expect(await money.transfers()).toEqual(['fence 2'])
  })

  it('gives up on a database that does not begin in time, and nothing happened', async () => {
    const tiny = new Pool({ connectionString: postgresUrl, max: 1 })
    const store = { ...postgresStore(pool), transaction: postgresStore(tiny).transaction }
    const engine = anEngine({ store: store as ReturnType<typeof postgresStore>, storeTimeout: 300 })
    const busy = await tiny.connect()
    await expect(pay(engine, 'no room')).rejects.toMatchObject({ code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
    busy.release()
    expect(await pay(engine, 'no room')).toEqual({ paid: true, fence: 1 })
    await tiny.end()
    expect(await money.transfers()).toEqual(['no room'])
  })

  describe('that the application has begun itself, with saveIn', () => {
    async function payIn(
      engine: Idempotency,
      key: string,
      end: 'commit' | 'rollback' | 'loses-answer' = 'commit',
    ): Promise<unknown> {
      return engine.run({ scope: 'acme', key }, async ({ saveIn, fence }) => {
        const client = await pool.connect()
        try {
          await client.query('begin')
          const paid = { ...(await move(client, money.schema, { key })), fence }
          await saveIn((text, values) => client.query(text, values), paid)
          if (end === 'rollback') throw new Error('the last statement fails')
          await client.query('commit')
          if (end === 'loses-answer') throw new Error('the answer to the commit was lost')
          return paid
        } catch (error) {
          await client.query('rollback')
          throw error
        } finally {
          client.release()
        }
      })
    }

    it('commits effect and value together', async () => {
      const engine = anEngine()
      const first = await payIn(engine, 'own')
      expect(await payIn(engine, 'own')).toEqual(first)
      expect(await money.transfers()).toEqual(['own'])
    })

    it('runs again after a roll-back', async () => {
      const engine = anEngine()
      await expect(payIn(engine, 'own', 'rollback')).rejects.toThrow('the last statement fails')
      expect(await money.transfers()).toEqual([])
      expect(await payIn(engine, 'own')).toMatchObject({ fence: 1 })
      expect(await money.transfers()).toEqual(['own'])
    })

    it('gives the value that was committed, although the work did not hear of the commit', async () => {
      const engine = anEngine()
      const first = await payIn(engine, 'own', 'loses-answer')
      expect(first).toMatchObject({ fence: 1 })
      expect(await payIn(engine, 'own')).toEqual(first)
      expect(await money.transfers()).toEqual(['own'])
    })

    it('throws when the claim was lost, so that the transaction rolls back', async () => {
      const store = { ...postgresStore(pool), renew: () => new Promise<boolean>(() => {}) }
      const stalled = gate()
      const overtaken = gate()
      const options = { lease: 200, maxRun: 60_000, onUnknown: 'rerun' } as const
      const slow = anEngine({ ...options, store })
      const late = slow.run({ scope: 'acme', key: 'own' }, async ({ saveIn }) => {
        stalled.open()
        await overtaken.opened
        const client = await pool.connect()
        try {
          await client.query('begin')
          await move(client, money.schema, { key: 'late' })
          await expect(saveIn((text, values) => client.query(text, values), 'late')).rejects.toMatchObject({
            code: 'IDEMPOTENCY_CLAIM_LOST',
          })
          await client.query('rollback')
        } finally {
          client.release()
        }
        return 'late'
      })
      await stalled.opened
      const other = anEngine(options)
      await expect
        .poll(() => payIn(other, 'own').catch(() => undefined), { timeout: 10_000 })
        .toMatchObject({
          fence: 2,
        })
      overtaken.open()
      expect(await late).toMatchObject({ fence: 2 })
      expect(await money.transfers()).toEqual(['own'])
    })

    it('counts as a transaction for what is atomic', async () => {
      const engine = anEngine({ atomic: true })
      expect(await payIn(engine, 'own')).toMatchObject({ fence: 1 })
    })
  })
})

describe('deriveKey', () => {
  const secret = 'a secret of at least sixteen bytes'
  const derive = (options: Partial<IdempotencyOptions>, key: string, label: string, scope = 'acme') =>
    createIdempotency({ secret, ...options }).run({ scope, key }, ({ deriveKey }) => deriveKey(label))

  it('is the same in every run of one operation, in every process with the same secret', async () => {
    const first = await derive({}, 'payment-1', 'psp')
    expect(await derive({}, 'payment-1', 'psp')).toBe(first)
    expect(await derive({ secret: Buffer.from(secret) }, 'payment-1', 'psp')).toBe(first)
  })

  it('is the same after a run whose key was released', async () => {
    const { run } = createIdempotency({ secret })
    const keys: string[] = []
    const attempt = () =>
      run({ scope: 'acme', key: 'again' }, ({ deriveKey, forget }) => {
        keys.push(deriveKey('psp'))
        forget()
      })
    await attempt()
    await attempt()
    expect(keys[1]).toBe(keys[0])
  })

  it('differs by label, key, scope, namespace and secret', async () => {
    const keys = await Promise.all([
      derive({}, 'payment-1', 'psp'),
      derive({}, 'payment-1', 'ledger'),
      derive({}, 'payment-2', 'psp'),
      derive({}, 'payment-1', 'psp', 'other'),
      derive({ namespace: 'other' }, 'payment-1', 'psp'),
      derive({ secret: 'another secret of enough bytes' }, 'payment-1', 'psp'),
    ])
    expect(new Set(keys).size).toBe(keys.length)
  })

  it('is an idempotency key, an AWS client token and a message id', async () => {
    const key = await derive({}, 'payment-1', 'psp')
    expect(key).toMatch(/^[A-Za-z0-9_-]{43}$/)
    expect(key.length).toBeLessThanOrEqual(64)
  })

  it('throws without a secret, and for a label that names nothing', async () => {
    const { run } = createIdempotency()
    const bare = run({ scope: 'acme', key: 'bare' }, ({ deriveKey }) => deriveKey('psp'))
    await expect(bare).rejects.toThrow('"secret"')
    await expect(derive({}, 'payment-1', '')).rejects.toThrow('label')
  })

  it('refuses a secret that is too short, and does not show it', () => {
    expect(() => createIdempotency({ secret: 'short-secret' })).toThrow('option "secret"')
    expect(() => createIdempotency({ secret: 'short-secret' })).not.toThrow('short-secret')
  })
})
