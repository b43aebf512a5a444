import { randomBytes, randomUUID } from 'node:crypto'
import { Client, Pool } from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it, vi } from 'vitest'
import type { ClaimRequest, ClaimResult, Outcome } from '../../src/contract/store.js'
import { type PostgresQuery, postgresStore } from '../../src/stores/postgres.js'
import { ALONE, type Batching, createBatch } from '../../src/stores/postgres-batch.js'
import {
  aClaim,
  anId,
  anOutcome,
  assertOutcome,
  HOUR,
  lapsed,
  times,
} from '../../src/testing/store-fixtures.js'
import { type Gate, gate } from '../support/gate.js'
import { describeWith } from '../support/services.js'

describe('a batch', () => {
  /** Every statement, with its steps, in the order in which they were sent. */
  let sent: { readonly steps: readonly string[]; readonly ends: Gate }[]
  let fails: (steps: readonly string[]) => Error | undefined
  const batching: Batching<string, string> = {
    one: async (step) => (await statement([step]))[0] as string,
    many: (steps) => statement(steps),
    isOnesFault: (error) => (error as Error).message === 'refused',
  }
  async function statement(steps: readonly string[]): Promise<readonly string[]> {
    const ends = gate()
    sent.push({ steps, ends })
    await ends.opened
    const error = fails(steps)
    if (error !== undefined) throw error
    return steps.map((step) => `${step} done`)
  }
  beforeEach(() => {
    sent = []
    fails = () => undefined
  })
  /** Waits for the statement of that number, and gives its steps. */
  async function stepsOf(number: number): Promise<readonly string[]> {
    await expect.poll(() => sent.length).toBeGreaterThan(number)
    return sent[number]?.steps ?? []
  }

  it('sends a step at the end of the turn in which it came', async () => {
    const batch = createBatch(batching)
    const result = batch('a')
    expect(sent).toHaveLength(0)
    await new Promise((resolve) => setImmediate(resolve))
    expect(sent.map(({ steps }) => steps)).toEqual([['a']])
    sent[0]?.ends.open()
    expect(await result).toBe('a done')
  })

  it('sends what comes in one turn, or while a statement is under way, together', async () => {
    const batch = createBatch(batching)
    const first = [batch('a'), batch('b')]
    expect(await stepsOf(0)).toEqual(['a', 'b'])
    const second = [batch('c'), batch('d'), batch('e')]
    sent[0]?.ends.open()
    expect(await Promise.all(first)).toEqual(['a done', 'b done'])
    expect(await stepsOf(1)).toEqual(['c', 'd', 'e'])
    sent[1]?.ends.open()
    expect(await Promise.all(second)).toEqual(['c done', 'd done', 'e done'])
    expect(sent).toHaveLength(2)
  })

  it('sends a second statement beside the first when 16 wait, and no third', async () => {
    const batch = createBatch(batching)
    const results = [batch('a')]
    await stepsOf(0)
    results.push(...times(15, () => batch('b')))
    await new Promise((resolve) => setImmediate(resolve))
    expect(sent).toHaveLength(1)
    results.push(batch('b'))
    expect(await stepsOf(1)).toHaveLength(16)
    results.push(...times(16, () => batch('c')))
    await new Promise((resolve) => setImmediate(resolve))
    expect(sent).toHaveLength(2)
    // With either of them ended, there is room for the next one.
    sent[1]?.ends.open()
    expect(await stepsOf(2)).toHaveLength(16)
    results.push(batch('d'))
    sent[2]?.ends.open()
    await new Promise((resolve) => setImmediate(resolve))
    expect(sent).toHaveLength(3)
    sent[0]?.ends.open()
    expect(await stepsOf(3)).toEqual(['d'])
    sent[3]?.ends.open()
    expect(await Promise.all(results)).toHaveLength(34)
  })

  it('shares a statement among 64 at most, and leaves nobody behind', async () => {
    const batch = createBatch(batching)
    const results = Promise.all(times(150, () => batch('a')))
    for (const [number, count] of [64, 64, 22].entries()) {
      expect(await stepsOf(number)).toHaveLength(count)
      sent[number]?.ends.open()
    }
    expect(await results).toHaveLength(150)
  })

  it('sends each step alone when one of them may be at fault', async () => {
    fails = (steps) => (steps.includes('bad') ? new Error('refused') : undefined)
    const batch = createBatch(batching)
    const results = Promise.allSettled([batch('a'), batch('bad'), batch('c')])
    await stepsOf(0)
    sent[0]?.ends.open()
    await stepsOf(3)
    for (const { ends } of sent) ends.open()
    expect(await results).toEqual([
      { status: 'fulfilled', value: 'a done' },
      { status: 'rejected', reason: new Error('refused') },
      { status: 'fulfilled', value: 'c done' },
    ])
    expect(sent.map(({ steps }) => steps)).toEqual([['a', 'bad', 'c'], ['a'], ['bad'], ['c']])
  })

  it('waits for no step that is to go alone after all, neither with the others nor with what comes next', async () => {
    const batch = createBatch({
      ...batching,
      many: async (steps) =>
        (await statement(steps)).map((result) => (result.startsWith('long') ? ALONE : result)),
    })
    const long = [batch('long'), batch('long and bad')]
    const others = [batch('a'), batch('b')]
    await stepsOf(0)
    sent[0]?.ends.open()
    expect(await Promise.all(others)).toEqual(['a done', 'b done'])
    const next = [batch('c'), batch('d')]
    expect(await stepsOf(3)).toEqual(['c', 'd'])
    sent[3]?.ends.open()
    expect(await Promise.all(next)).toEqual(['c done', 'd done'])
    expect(sent.map(({ steps }) => steps).slice(1, 3)).toEqual([['long'], ['long and bad']])
    fails = ([step]) => (step === 'long and bad' ? new Error('lost') : undefined)
    for (const { ends } of sent) ends.open()
    expect(await Promise.allSettled(long)).toEqual([
      { status: 'fulfilled', value: 'long done' },
      { status: 'rejected', reason: new Error('lost') },
    ])
  })

  it('fails all of them when the connection was lost, and sends what comes next', async () => {
    fails = (steps) => (steps.includes('a') ? new Error('lost') : undefined)
    const batch = createBatch(batching)
    const results = Promise.allSettled([batch('a'), batch('b')])
    await stepsOf(0)
    const next = batch('c')
    sent[0]?.ends.open()
    expect((await results).map(({ status }) => status)).toEqual(['rejected', 'rejected'])
    await stepsOf(1)
    sent[1]?.ends.open()
    expect(await next).toBe('c done')
    expect(sent).toHaveLength(2)
  })

  it('does not let what is too much for a statement wait for one whose answer does not come', async () => {
    const batch = createBatch(batching)
    const results = times(65, () => batch('a'))
    expect(await stepsOf(1)).toEqual(['a'])
    for (const { ends } of sent) ends.open()
    expect(await Promise.all(results)).toHaveLength(65)
  })

  it('does not wait for a statement whose answer does not come', async () => {
    const batch = createBatch(batching)
    const lost = batch('a')
    await stepsOf(0)
    const next = [batch('b'), batch('c')]
    expect(await stepsOf(1)).toEqual(['b', 'c'])
    sent[1]?.ends.open()
    await Promise.all(next)
    // The lost one is not waited for any more, and when it ends after all it does not disturb the others.
    const last = batch('d')
    await stepsOf(2)
    const waits = batch('e')
    sent[0]?.ends.open()
    await lost
    await new Promise((resolve) => setImmediate(resolve))
    expect(sent).toHaveLength(3)
    sent[2]?.ends.open()
    await last
    await stepsOf(3)
    sent[3]?.ends.open()
    expect(await waits).toBe('e done')
  })
})

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

describeWith(['postgres'], 'claims that come together', () => {
  const statements: string[] = []
  /** A store that writes down what it sends. */
  const watched = () =>
    postgresStore({
      query(query: PostgresQuery) {
        statements.push(query.text)
        return pool.query(query)
      },
    })
  beforeEach(() => {
    statements.length = 0
  })

  it('are one statement, and each gets its own answer', async () => {
    const store = watched()
    const [fresh, other, running, completed, expired] = [aClaim(), aClaim(), aClaim(), aClaim(), aClaim()]
    await store.claim(running)
    await store.claim(completed)
    await store.complete(completed.id, completed.token, anOutcome({ head: 'kept' }), HOUR)
    await store.claim(expired)
    await store.complete(expired.id, expired.token, anOutcome(), 1)
    await expect.poll(() => store.find(expired.id)).toBeUndefined()
    const unknown = await lapsed(store)
    const taken = await lapsed(store)
    statements.length = 0
    const results = await Promise.all([
      store.claim(aClaim({ id: running.id })),
      store.claim(fresh),
      store.claim(aClaim({ id: completed.id })),
      store.claim(other),
      store.claim(aClaim({ id: fresh.id })),
      store.claim(running),
      store.claim(aClaim({ id: unknown.id })),
      store.claim(aClaim({ id: taken.id, takeOver: true })),
      store.claim(aClaim({ id: expired.id })),
    ])
    expect(results).toMatchObject([
      { status: 'running' },
      { status: 'acquired', fence: 1 },
      { status: 'completed', outcome: { head: 'kept' } },
      { status: 'acquired', fence: 1 },
      { status: 'running' },
      { status: 'acquired', fence: 1 },
      { status: 'unknown', fence: 1 },
      { status: 'acquired', fence: 2 },
      { status: 'acquired', fence: 1 },
    ])
    expect(statements).toEqual([expect.stringContaining('oncekey_records_claims')])
    const record = await store.find(fresh.id)
    expect(record).toMatchObject({ fingerprint: fresh.fingerprint, meta: fresh.meta, status: 'running' })
    const { rows } = await pool.query('select * from oncekey_records where id = any($1)', [
      [fresh.id, other.id],
    ])
    const alone = aClaim()
    await store.claim(alone)
    const short = aClaim({ ttlMs: 1 })
    await Promise.all([store.claim(short), store.claim(aClaim())])
    expect((await store.find(short.id))?.expiresInMs).toBeGreaterThan(short.leaseMs - 5000)
    const [like] = (await pool.query('select * from oncekey_records where id = $1', [alone.id])).rows
    for (const row of rows) {
      const { lease_until: lease, expires_at: expiry, created_at: created } = row
      expect(lease - created).toBeCloseTo(like.lease_until - like.created_at, -2)
      expect(expiry - created).toBeCloseTo(like.expires_at - like.created_at, -2)
      expect(row.expiry_bucket).toBe(Math.floor(expiry / 10_000))
      expect({ ...row, ...SET_APART }).toEqual({ ...like, ...SET_APART })
    }
    expect(rows).toHaveLength(2)
  })

  it('have nobody wait for those that find a long body', async () => {
    const released = gate()
    const alone = vi.fn<(text: string) => void>()
    const answers: string[] = []
    const store = postgresStore({
      async query(query: PostgresQuery) {
        if (query.text.includes('oncekey_records_claim"')) {
          alone(query.text)
          await released.opened
        }
        const result = await pool.query(query)
        if (query.text.includes('oncekey_records_claims"')) answers.push(result.rows[0].answer)
        return result
      },
    })
    const plain = postgresStore(pool)
    const kept = times(20, () => ({ claim: aClaim(), outcome: anOutcome({ body: randomBytes(200 * 1024) }) }))
    // A long head is as long.
    kept.push({ claim: aClaim(), outcome: anOutcome({ head: JSON.stringify('h'.repeat(9000)), body: null }) })
    const [short, expired] = [aClaim(), aClaim()]
    const whole = anOutcome({ head: '{}', body: randomBytes(8190) })
    for (const { claim, outcome } of kept) {
      await plain.claim(claim)
      await plain.complete(claim.id, claim.token, outcome, HOUR)
    }
    await plain.claim(short)
    await plain.complete(short.id, short.token, whole, HOUR)
    await plain.claim(expired)
    await plain.complete(expired.id, expired.token, anOutcome({ body: randomBytes(200 * 1024) }), 1)
    await expect.poll(() => plain.find(expired.id)).toBeUndefined()

    const fresh = store.claim(aClaim())
    const replays = kept.map(({ claim }) => store.claim(aClaim({ id: claim.id })))
    const replay = store.claim(aClaim({ id: short.id }))
    const anew = store.claim(aClaim({ id: expired.id }))
    expect(await fresh).toEqual({ status: 'acquired', fence: 1 })
    expect(await anew).toEqual({ status: 'acquired', fence: 1 })
    assertOutcome(outcomeOf(await replay), whole)
    expect(await Promise.all(times(2, () => store.claim(aClaim())))).toMatchObject([
      { status: 'acquired' },
      { status: 'acquired' },
    ])
    expect(alone).toHaveBeenCalledTimes(kept.length)
    expect(answers).toHaveLength(2)
    expect(Math.max(...answers.map((answer) => answer?.length ?? 0))).toBeLessThan(20_000)
    released.open()
    for (const [index, { outcome }] of kept.entries())
      assertOutcome(outcomeOf((await replays[index]) ?? expect.fail()), outcome)
    expect(alone).toHaveBeenCalledTimes(kept.length)
  })

  it('are matched by their place, whoever shares a token or an id', async () => {
    const store = watched()
    const held = aClaim()
    await store.claim(held)
    statements.length = 0
    const [one, twice] = [aClaim(), aClaim()]
    const results = await Promise.all([
      store.claim(one),
      store.claim({ ...held, token: one.token }),
      store.claim(twice),
      store.claim({ ...twice, token: anId() }),
      store.claim(twice),
    ])
    expect(results.map(({ status }) => status)).toEqual([
      'acquired',
      'running',
      'acquired',
      'running',
      'acquired',
    ])
    expect(statements).toHaveLength(1)
  })

  it('are not taken for granted where an answer is missing', async () => {
    const answer = JSON.stringify([{ p: 1, found: null }])
    const store = postgresStore({ query: async () => ({ rows: [{ answer }] }) })
    const missing = { reason: { message: expect.stringContaining('no answer for a claim') } }
    expect(await Promise.allSettled(times(2, () => store.claim(aClaim())))).toMatchObject([missing, missing])
  })

  it('give one claim to one of many who ask for it', async () => {
    const store = watched()
    const { id } = aClaim()
    const results = await Promise.all(times(100, () => store.claim(aClaim({ id }))))
    expect(results.filter(({ status }) => status === 'acquired')).toHaveLength(1)
    expect(results.filter(({ status }) => status === 'running')).toHaveLength(99)
    expect(statements.length).toBeLessThan(5)
  })

  it('never wait for each other in a circle', async () => {
    const refusals: unknown[] = []
    const reporting = {
      query: (query: PostgresQuery) =>
        pool.query(query).catch((error: unknown) => {
          refusals.push(error)
          throw error
        }),
    }
    const stores = times(4, () => postgresStore(reporting))
    for (let round = 0; round < 20; round += 1) {
      const ids = times(60, () => aClaim().id)
      const shuffled = () => ids.toSorted(() => Math.random() - 0.5)
      const asked = stores.flatMap((store) =>
        shuffled().map(async (id) => ({ id, result: await store.claim(aClaim({ id })) })),
      )
      const granted = (await Promise.all(asked)).filter(({ result }) => result.status === 'acquired')
      expect(granted.map(({ id }) => id).toSorted()).toEqual(ids.toSorted())
    }
    expect(refusals).toEqual([])
  })

  it('are not taken for granted where the client gives no answer', async () => {
    const store = postgresStore({ query: async () => ({ rows: [] }) })
    const noAnswer = { reason: { message: expect.stringContaining('gave no row') } }
    const complete = () => store.complete(aClaim().id, aClaim().token, anOutcome(), HOUR)
    await expect(store.claim(aClaim())).rejects.toThrow(/gave no row/)
    expect(await Promise.allSettled(times(2, () => store.claim(aClaim())))).toMatchObject([
      noAnswer,
      noAnswer,
    ])
    expect(await Promise.allSettled(times(2, complete))).toMatchObject([noAnswer, noAnswer])
  })

  it('fail alone, when the store cannot read what one of them finds', async () => {
    const store = postgresStore(pool)
    const unreadable = await lapsed(store)
    await pool.query('update oncekey_records set format = 9 where id = $1', [unreadable.id])
    const asked = [aClaim(), aClaim({ id: unreadable.id }), aClaim()]
    expect(await Promise.allSettled(asked.map((claim) => store.claim(claim)))).toMatchObject([
      { value: { status: 'acquired', fence: 1 } },
      { reason: { code: 'IDEMPOTENCY_STORE_UNFIT' } },
      { value: { status: 'acquired', fence: 1 } },
    ])
  })

  it('fail alone, when the database cannot take one of them', async () => {
    const store = postgresStore(pool)
    const meta = { ...aClaim().meta, route: 'POST /\0' }
    const asked = [aClaim(), aClaim({ meta }), aClaim()]
    expect(await Promise.allSettled(asked.map((claim) => store.claim(claim)))).toMatchObject([
      { value: { status: 'acquired', fence: 1 } },
      { reason: { code: '22021' } },
      { value: { status: 'acquired', fence: 1 } },
    ])
  })

  it('may be lost only if each of them may', async () => {
    const single = new Pool({ connectionString: postgresUrl, max: 1 })
    const settings: string[] = []
    const store = postgresStore({
      async query(query: PostgresQuery) {
        await single.query('begin')
        const result = await single.query(query)
        const { rows } = await single.query('show synchronous_commit')
        settings.push(rows[0].synchronous_commit)
        await single.query('commit')
        return result
      },
    })
    const claims = (...lossy: boolean[]) =>
      Promise.all(lossy.map((mayBeLost) => store.claim(aClaim({ mayBeLost }))))
    await claims(true, true)
    await claims(true, false)
    expect(settings).toEqual(['off', 'on'])
    await single.end()
  })

  describe('beside a transaction that holds a record', () => {
    let holder: Client
    beforeEach(async () => {
      holder = new Client({ connectionString: postgresUrl })
      await holder.connect()
    })
    afterEach(() => holder.end())

    it('do not wait for it, but for the one that has to', async () => {
      const store = postgresStore(pool)
      const held = await lapsed(store)
      await holder.query('begin')
      await holder.query('select from oncekey_records where id = $1 for update', [held.id])
      const onTaken = vi.fn<(result: ClaimResult) => void>()
      const taking = Promise.resolve(store.claim(aClaim({ id: held.id, takeOver: true }))).then(onTaken)
      const others = times(5, () => store.claim(aClaim()))
      expect(await Promise.all(others)).toEqual(times(5, () => ({ status: 'acquired', fence: 1 })))
      // Nor do those that come while it still waits.
      expect(await store.claim(aClaim())).toEqual({ status: 'acquired', fence: 1 })
      expect(onTaken).not.toHaveBeenCalled()
      await holder.query('commit')
      await taking
      expect(onTaken).toHaveBeenCalledExactlyOnceWith({ status: 'acquired', fence: 2 })
    })
  })
})

describeWith(['postgres'], 'steps that come together', () => {
  const statements: string[] = []
  const store = () =>
    postgresStore({
      query(query: PostgresQuery) {
        statements.push(query.text)
        return pool.query(query)
      },
    })

  /** Claims so many records, and forgets what that took. */
  async function held(count: number): Promise<readonly ClaimRequest[]> {
    const claims = times(count, () => aClaim())
    await Promise.all(claims.map((claim) => postgresStore(pool).claim(claim)))
    statements.length = 0
    return claims
  }

  it('renew each its own claim, and say which is lost', async () => {
    const together = store()
    const [lost, completed, ...claims] = await held(5)
    if (lost === undefined || completed === undefined) throw new Error('There are five')
    await together.complete(completed.id, completed.token, anOutcome(), HOUR)
    statements.length = 0
    const renewals = [
      together.renew(lost.id, 'another token', 2 * HOUR),
      together.renew(completed.id, completed.token, 2 * HOUR),
      ...claims.map(({ id, token }, index) => together.renew(id, token, (index + 1) * HOUR)),
    ]
    expect(await Promise.all(renewals)).toEqual([false, false, true, true, true])
    expect(statements).toEqual([expect.stringContaining('oncekey_records_renews')])
    for (const [index, { id }] of claims.entries()) {
      const record = await together.find(id)
      if (record?.status !== 'running') throw new Error('It runs')
      expect(record.leaseLeftMs / HOUR).toBeCloseTo(index + 1, 2)
    }
  })

  it('keep each its own outcome, and the one that was kept first', async () => {
    const together = store()
    const claims = await held(6)
    const outcomes: Outcome[] = [
      anOutcome({ body: Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)) }),
      anOutcome({ body: null }),
      anOutcome({ body: Buffer.alloc(0) }),
      anOutcome({ result: 'failed', head: `{"a":"'\\"ü漢🚲"}` }),
      anOutcome({ body: Buffer.alloc(8192, 1) }),
      anOutcome({ head: 'of the first call' }),
    ]
    const [, , , , , twice = expect.fail()] = claims
    const completions = claims.map(({ id, token }, index) =>
      together.complete(id, token, outcomes[index] ?? expect.fail(), (index + 1) * HOUR),
    )
    completions.push(
      together.complete(twice.id, twice.token, anOutcome({ head: 'of the second call' }), HOUR),
      together.complete(twice.id, 'another token', anOutcome({ head: 'of nobody' }), HOUR),
    )
    expect(await Promise.all(completions)).toEqual([true, true, true, true, true, true, true, false])
    expect(statements).toEqual([expect.stringContaining('oncekey_records_keeps')])
    for (const [index, { id }] of claims.entries()) {
      const record = await together.find(id)
      if (record?.status !== 'completed') throw new Error('It is completed')
      assertOutcome(record.outcome, outcomes[index] ?? expect.fail())
      expect(record.expiresInMs / HOUR).toBeCloseTo(index + 1, 2)
    }
  })

  it('keep nothing under a token that does not hold the claim, nor a second time, nor of what has expired', async () => {
    const together = store()
    const short = aClaim({ leaseMs: 1, ttlMs: 1 })
    await together.claim(short)
    await expect.poll(() => together.find(short.id)).toBeUndefined()
    const [taken = expect.fail(), kept = expect.fail(), own = expect.fail()] = await held(3)
    await together.complete(kept.id, kept.token, anOutcome({ head: 'first' }), HOUR)
    statements.length = 0
    const complete = (id: string, token: string) =>
      together.complete(id, token, anOutcome({ head: 'second' }), HOUR)
    const completions = [
      complete(taken.id, 'another token'),
      complete(kept.id, kept.token),
      complete(short.id, short.token),
      complete(own.id, own.token),
    ]
    expect(await Promise.all(completions)).toEqual([false, true, false, true])
    expect(statements).toHaveLength(1)
    expect(await together.find(taken.id)).toMatchObject({ status: 'running' })
    expect(await together.find(kept.id)).toMatchObject({ outcome: { head: 'first' } })
    expect(await together.find(short.id)).toBeUndefined()
    expect(await together.find(own.id)).toMatchObject({ outcome: { head: 'second' } })
  })

  it('send a long body by itself', async () => {
    const together = store()
    const claims = await held(3)
    const [long = expect.fail()] = claims
    const body = Buffer.alloc(8193, 1)
    const completions = claims.map(({ id, token }) =>
      together.complete(id, token, id === long.id ? anOutcome({ body }) : anOutcome(), HOUR),
    )
    expect(await Promise.all(completions)).toEqual([true, true, true])
    expect(statements).toEqual([
      expect.stringContaining('oncekey_records_keep"'),
      expect.stringContaining('oncekey_records_keeps"'),
    ])
  })

  it('give each its own claim back', async () => {
    const together = store()
    const claims = await held(3)
    const [kept = expect.fail(), ...given] = claims
    const releases = claims.map(({ id, token }) => together.release(id, id === kept.id ? 'other' : token))
    expect(await Promise.all(releases)).toEqual([false, true, true])
    expect(statements).toEqual([expect.stringContaining('oncekey_records_frees')])
    expect(await together.find(kept.id)).toMatchObject({ status: 'running' })
    for (const { id } of given) expect(await together.find(id)).toBeUndefined()
  })

  it('fail alone, when the database cannot take one of them', async () => {
    const together = store()
    const claims = await held(3)
    const [bad = expect.fail()] = claims
    const completions = claims.map(({ id, token }) =>
      together.complete(id, token, anOutcome(id === bad.id ? { head: '\0' } : {}), HOUR),
    )
    expect(await Promise.allSettled(completions)).toMatchObject([
      { reason: { code: '22021' } },
      { value: true },
      { value: true },
    ])
  })

  it('do not wait for a transaction that holds a record, but for the one that has to', async () => {
    const together = store()
    const claims = await held(4)
    const [waiting = expect.fail(), ...others] = claims
    const holder = new Client({ connectionString: postgresUrl })
    await holder.connect()
    await holder.query('begin')
    await holder.query('select from oncekey_records where id = $1 for update', [waiting.id])
    const onKept = vi.fn<(kept: boolean) => void>()
    const keep = async ({ id, token }: ClaimRequest) => together.complete(id, token, anOutcome(), HOUR)
    const last = keep(waiting).then(onKept)
    expect(await Promise.all(others.map(keep))).toEqual([true, true, true])
    expect(onKept).not.toHaveBeenCalled()
    await holder.query('commit')
    await last
    expect(onKept).toHaveBeenCalledExactlyOnceWith(true)
    await holder.end()
  })

  it('never wait for each other in a circle', async () => {
    const refusals: unknown[] = []
    const reporting = {
      query: (query: PostgresQuery) =>
        pool.query(query).catch((error: unknown) => {
          refusals.push(error)
          throw error
        }),
    }
    for (let round = 0; round < 10; round += 1) {
      const claims = await held(60)
      const steps = times(2, () => postgresStore(reporting)).flatMap((one) =>
        claims
          .toSorted(() => Math.random() - 0.5)
          .flatMap(({ id, token }) => [
            one.renew(id, token, HOUR),
            one.complete(id, token, anOutcome(), HOUR),
          ]),
      )
      await Promise.all(steps)
    }
    expect(refusals).toEqual([])
  })
})

describeWith(['postgres'], 'a table that was nearly empty when its statistics were gathered', () => {
  it.each([true, false])('is never read as a whole, with prepare %s', async (prepare) => {
    const table = `t_${randomUUID().slice(0, 8)}`
    const single = new Pool({ connectionString: postgresUrl, max: 1 })
    const store = postgresStore(single, { table, prepare })
    await store.migrate()
    await single.query(`alter table ${table} set (autovacuum_enabled = off)`)
    await store.claim(aClaim())
    await single.query(`vacuum analyze ${table}`)
    const transaction = ({ id, token }: ClaimRequest) =>
      store.transaction?.(
        async () => ({ value: 1, completion: { id, token, outcome: anOutcome(), ttlMs: HOUR } }),
        { attempts: 1, isolation: undefined, lockTimeoutMs: undefined, signal: new AbortController().signal },
      )
    const counted = async (): Promise<{ readonly scans: number; readonly fetched: number }> => {
      const { rows } = await pool.query(
        'select seq_scan::int as scans, idx_tup_fetch::int as fetched from pg_stat_all_tables where relname = $1',
        [table],
      )
      return rows[0]
    }
    async function use() {
      const claims = times(4, () => aClaim())
      const [alone = expect.fail(), inTransaction = expect.fail(), released = expect.fail()] = claims
      await Promise.all(claims.map((claim) => store.claim(claim)))
      await store.claim(aClaim())
      await store.claim(aClaim({ id: alone.id }))
      await Promise.all(claims.map(({ id, token }) => store.renew(id, token, HOUR)))
      await store.renew(alone.id, alone.token, HOUR)
      await store.find(alone.id)
      await store.complete(alone.id, alone.token, anOutcome(), HOUR)
      await transaction(inTransaction)
      await store.release(released.id, released.token)
      await Promise.all(claims.map(({ id, token }) => store.complete(id, token, anOutcome(), HOUR)))
      await Promise.all(claims.map(({ id, token }) => store.release(id, token)))
    }
    // A connection keeps a plan for good from its sixth execution on.
    for (let time = 0; time < 8; time += 1) await use()
    await single.query(`
      insert into ${table} (id, scope, key, route, first_seen_at, fingerprint, status, fence, lease_until, expires_at, expiry_bucket)
      select n::text, '', '', '', 0, '', 'running', 1, now(), now() + interval '1 day', 1 from generate_series(1, 5000) n
    `)
    for (let time = 0; time < 40; time += 1) await use()
    // A connection tells what it has counted when it ends, at the latest.
    await single.end()
    await expect
      .poll(async () => {
        const { rows } = await pool.query(
          'select n_tup_ins::int from pg_stat_all_tables where relname = $1',
          [table],
        )
        return rows[0].n_tup_ins as number
      })
      .toBeGreaterThan(5000)
    const { scans, fetched } = await counted()
    // Making it and gathering its statistics did, and so may those who look for a record among a handful.
    expect(scans).toBeLessThan(20)
    // Nor is all of it read by way of an index, as a join in the order of the ids could.
    expect(fetched).toBeLessThan(5000)
  })
})

function outcomeOf(result: ClaimResult): Outcome {
  if (result.status !== 'completed') throw new Error(`It is ${result.status}`)
  return result.outcome
}

/** Columns in which two records may differ. */
const SET_APART = Object.fromEntries(
  [
    'id',
    'token',
    'fingerprint',
    'key',
    'lease_until',
    'expires_at',
    'expiry_bucket',
    'created_at',
    'first_seen_at',
  ].map((column) => [column, 'any']),
)
