import { randomBytes, randomUUID } from 'node:crypto'
import { Redis } from 'ioredis'
import { Pool } from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it, vi } from 'vitest'
import { StoreUnavailableError } from '../../src/contract/errors.js'
import type { IdempotencyStore, Outcome } from '../../src/contract/store.js'
import { memoryStore } from '../../src/stores/memory.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { redisStore } from '../../src/stores/redis.js'
import { sealedStore } from '../../src/stores/sealed.js'
import { tieredStore } from '../../src/stores/tiered.js'
import { storeContract } from '../../src/testing/store-contract.js'
import {
  aClaim,
  anId,
  anOutcome,
  assertOutcome,
  aToken,
  HOUR,
  lapsed,
  times,
  until,
} from '../../src/testing/store-fixtures.js'
import { answeringFromCopies, copied, type Tiers } from '../support/copied.js'
import { disturbed } from '../support/disturbed-store.js'
import { gate } from '../support/gate.js'
import { asInstance } from '../support/instance-store.js'
import { replaysWarnings } from '../support/replays-warnings.js'
import { describeWith } from '../support/services.js'
import { checkStoreModel } from '../support/store-model.js'

/** A busy machine must not make a tier that works look like one that hangs. */
const PATIENT = '10s'

const PATIENTLY = { timeout: 15_000, interval: 20 }

let warnings: readonly string[]
beforeEach(() => {
  warnings = replaysWarnings()
})
afterEach(() => {
  vi.useRealTimers()
  vi.restoreAllMocks()
})

const patient = (tiers: Tiers): IdempotencyStore => tieredStore({ ...tiers, replaysTimeout: PATIENT })

const memoryTiers = (): Tiers => ({ durable: memoryStore(), replays: memoryStore() })

/** Keeps an outcome in the durable store, by way of a tiered one. */
async function completed(
  store: IdempotencyStore,
  given: { readonly id?: string; readonly outcome?: Outcome; readonly ttlMs?: number } = {},
): Promise<string> {
  const { outcome = anOutcome(), ttlMs = HOUR } = given
  const claim = aClaim(given.id === undefined ? {} : { id: given.id })
  await store.claim(claim)
  await store.complete(claim.id, claim.token, outcome, ttlMs)
  return claim.id
}

/** A completed record of which the tier has a copy. */
async function completedAndCopied(
  { durable, replays }: Tiers,
  given: Parameters<typeof completed>[1] = {},
): Promise<string> {
  const id = await completed(durable, given)
  await copied(patient({ durable, replays }), replays, id)
  return id
}

describe('tieredStore of two memory stores', () => {
  it.each(storeContract)('$name', async ({ run }) => {
    const { durable, replays } = memoryTiers()
    await run(tieredStore({ durable: asInstance(durable), replays: asInstance(replays) }))
  })

  it('follows the model through any interleaving of clients', async () => {
    await checkStoreModel(() => patient(memoryTiers()), { numRuns: 100 })
  })
})

describe('tieredStore of two memory stores, when copies answer', () => {
  it.each(storeContract)('$name', async ({ run }) => {
    await run(answeringFromCopies(memoryTiers(), patient))
  })

  it('follows the model through any interleaving of clients', async () => {
    await checkStoreModel(() => answeringFromCopies(memoryTiers(), patient), { numRuns: 60 })
  })
})

describeWith(['redis', 'postgres'], 'tieredStore of Postgres and Redis', () => {
  const { redisUrl, postgresUrl } = inject('services')
  let client: Redis
  let pool: Pool
  beforeAll(async () => {
    client = new Redis(redisUrl)
    pool = new Pool({ connectionString: postgresUrl, max: 10 })
    await postgresStore(pool).migrate()
  })
  afterAll(async () => {
    client.disconnect()
    await pool.end()
  })

  const tiers = (): Tiers => ({
    durable: postgresStore(pool),
    replays: redisStore(client, { prefix: `${randomUUID()}:` }),
  })
  const sealedTiers = (): Tiers => {
    const { durable, replays } = tiers()
    return { durable, replays: sealedStore(replays, { keys: [randomBytes(32)] }) }
  }

  it.each(storeContract)('$name', async ({ run }) => {
    await run(tieredStore(tiers()))
  })

  it.each(storeContract)('$name (when copies answer)', async ({ run }) => {
    await run(answeringFromCopies(tiers(), patient))
  })

  it.each(storeContract)('$name (when sealed copies answer)', async ({ run }) => {
    await run(answeringFromCopies(sealedTiers(), patient))
  })

  it.each(storeContract)('$name (when everything is sealed, and copies answer)', async ({ run }) => {
    await run(sealedStore(answeringFromCopies(tiers(), patient), { keys: [randomBytes(32)] }))
  })

  it('follows the model through any interleaving of clients', async () => {
    await checkStoreModel(() => answeringFromCopies(tiers(), patient), { numRuns: 30 })
  })
})

describe('tieredStore › copies', () => {
  it('are made at the first retry, and answer the second without the durable store', async () => {
    const durable = disturbed(memoryStore())
    const replays = memoryStore()
    const store = patient({ durable: durable.store, replays })
    const id = await completed(store)
    expect(await replays.find(id)).toBeUndefined()
    expect(await store.claim(aClaim({ id }))).toMatchObject({ status: 'completed' })
    await copied(store, replays, id)
    const before = { ...durable.calls }
    const second = await store.claim(aClaim({ id, fingerprint: 'another', takeOver: true }))
    expect(second).toMatchObject({
      status: 'completed',
      fingerprint: aClaim().fingerprint,
      outcome: anOutcome(),
    })
    expect(durable.calls).toEqual(before)
  })

  it('answer retries while the durable store is away', async () => {
    const durable = disturbed(memoryStore())
    const tiers = { durable: durable.store, replays: memoryStore() }
    const id = await completedAndCopied(tiers)
    durable.disturb('claim', 'fails')
    const store = patient(tiers)
    expect(await store.claim(aClaim({ id }))).toMatchObject({ status: 'completed', outcome: anOutcome() })
    await expect(store.claim(aClaim())).rejects.toThrow(/line is down/)
  })

  it('are as old as the outcome, not as old as themselves', async () => {
    const tiers = memoryTiers()
    const id = await completed(tiers.durable)
    await until(tiers.durable, id, (record) => record?.status === 'completed' && record.ageMs > 200)
    const store = patient(tiers)
    const first = await store.claim(aClaim({ id }))
    await copied(store, tiers.replays, id)
    const durable = await tiers.durable.find(id)
    const second = await store.claim(aClaim({ id }))
    if (first.status !== 'completed' || second.status !== 'completed' || durable?.status !== 'completed')
      throw new Error('The operation has not completed')
    expect(second.ageMs).toBeGreaterThan(200)
    // They differ by what copying took, which was less than a second.
    expect(second.ageMs).toBeGreaterThan(durable.ageMs - 1000)
    expect(second.ageMs).toBeLessThan(durable.ageMs + 1000)
  })

  it('go on ageing', async () => {
    const tiers = memoryTiers()
    const id = await completedAndCopied(tiers)
    await until(tiers.replays, id, (record) => record?.status === 'completed' && record.ageMs > 100)
    expect(await patient(tiers).claim(aClaim({ id }))).toMatchObject({
      ageMs: expect.toSatisfy((ageMs: number) => ageMs > 100),
    })
  })

  it('are made of what has completed, and of nothing else', async () => {
    const tiers = memoryTiers()
    const store = patient(tiers)
    const running = aClaim()
    await store.claim(running)
    const unknown = await lapsed(store)
    const done = await completed(store)
    for (const id of [running.id, unknown.id, done]) await store.claim(aClaim({ id }))
    await copied(store, tiers.replays, done)
    expect(await tiers.replays.find(running.id)).toBeUndefined()
    expect(await tiers.replays.find(unknown.id)).toBeUndefined()
  })

  it('are not made of a record that ends within the second that copying may take', async () => {
    const durable = memoryStore()
    const replays = disturbed(memoryStore())
    const id = await completed(durable)
    const ending: IdempotencyStore = {
      ...durable,
      async find(wanted) {
        const record = await durable.find(wanted)
        return record && { ...record, expiresInMs: 1000 }
      },
    }
    const store = patient({ durable: ending, replays: replays.store })
    expect(await store.claim(aClaim({ id }))).toMatchObject({ status: 'completed' })
    await until(replays.store, id, (record) => record === undefined)
    expect(replays.calls).toMatchObject({ claim: 1, complete: 0 })
  })

  it('are made one at a time for each record, however many retries there are', async () => {
    const replays = disturbed(memoryStore())
    const tiers = { durable: memoryStore(), replays: replays.store }
    const id = await completed(tiers.durable)
    replays.disturb('claim', 'stalls')
    const store = patient(tiers)
    const answers = await Promise.all(times(200, () => store.claim(aClaim({ id }))))
    expect(answers.every(({ status }) => status === 'completed')).toBe(true)
    expect(replays.calls.claim).toBe(1)
  })

  it('do not pile up when the tier swallows them, and are made again when it is back', async () => {
    const replays = disturbed(memoryStore())
    const tiers = { durable: memoryStore(), replays: replays.store }
    const ids = await Promise.all(times(200, () => completed(tiers.durable)))
    replays.disturb('claim', 'stalls')
    const store = patient(tiers)
    const answers = await Promise.all(ids.map((id) => store.claim(aClaim({ id }))))
    expect(answers.every(({ status }) => status === 'completed')).toBe(true)
    expect(replays.calls.claim).toBe(32)
    replays.heal()
    const [id = ''] = ids
    await expect
      .poll(async () => {
        await store.claim(aClaim({ id }))
        return (await tiers.replays.find(id))?.status
      }, PATIENTLY)
      .toBe('completed')
  })

  it('are left out where the record that was read is not the one that answered', async () => {
    const durable = memoryStore()
    const other = await completed(durable)
    const replays = disturbed(memoryStore())
    const id = await completed(durable)
    // Between the answer and the copy, the record ended and its id was used anew, for another request.
    const found = await durable.find(other)
    const changed: IdempotencyStore = {
      ...durable,
      find: async () => (found === undefined ? undefined : { ...found, id, fingerprint: 'another' }),
    }
    await patient({ durable: changed, replays: replays.store }).claim(aClaim({ id }))
    await until(replays.store, id, (record) => record === undefined)
    expect(replays.calls).toMatchObject({ claim: 1, complete: 0 })
  })
})

describe('tieredStore › a copy never outlives its record', () => {
  async function expectToEndFirst({ durable, replays }: Tiers, id: string): Promise<void> {
    const record = await durable.find(id)
    const copy = await replays.find(id)
    if (record === undefined || copy === undefined) throw new Error('There is no copy')
    // The copy was asked second: had both the same end, it would have no more time left.
    expect(copy.expiresInMs).toBeLessThanOrEqual(record.expiresInMs)
  }

  /** Waits until a store's clock has gone on by this much. */
  async function passes(store: IdempotencyStore, ms: number): Promise<void> {
    const id = await completed(store, { ttlMs: ms })
    await until(store, id, (record) => record === undefined)
  }

  it('when it is made at once', async () => {
    const tiers = memoryTiers()
    await expectToEndFirst(tiers, await completedAndCopied(tiers, { ttlMs: 60_000 }))
  })

  it('when the tier takes the claim late', async () => {
    const tiers = memoryTiers()
    const { opened, open } = gate()
    const replays: IdempotencyStore = {
      ...tiers.replays,
      async claim(request) {
        await opened
        return tiers.replays.claim(request)
      },
    }
    const id = await completed(tiers.durable, { ttlMs: 60_000 })
    const store = patient({ ...tiers, replays })
    await store.claim(aClaim({ id }))
    await passes(tiers.durable, 1200)
    open()
    await copied(store, tiers.replays, id)
    await expectToEndFirst(tiers, id)
  })

  it('when the tier takes the completion late', async () => {
    const tiers = memoryTiers()
    const { opened, open } = gate()
    const replays: IdempotencyStore = {
      ...tiers.replays,
      async complete(...completion) {
        await opened
        return tiers.replays.complete(...completion)
      },
    }
    const id = await completed(tiers.durable, { ttlMs: 60_000 })
    const store = patient({ ...tiers, replays })
    await store.claim(aClaim({ id }))
    await passes(tiers.durable, 300)
    open()
    await copied(store, tiers.replays, id)
    await expectToEndFirst(tiers, id)
  })

  it('when the tier takes the completion so late that its claim is forgotten: then it takes none', async () => {
    const tiers = memoryTiers()
    const { opened, open } = gate()
    const asked = gate()
    const kept = gate()
    const answers: boolean[] = []
    const replays: IdempotencyStore = {
      ...tiers.replays,
      async complete(...completion) {
        asked.open()
        await opened
        answers.push(await tiers.replays.complete(...completion))
        kept.open()
        return true
      },
    }
    const id = await completed(tiers.durable, { ttlMs: 60_000 })
    await patient({ ...tiers, replays }).claim(aClaim({ id }))
    await asked.opened
    await until(tiers.replays, id, (record) => record === undefined)
    open()
    await kept.opened
    expect(answers).toEqual([false])
    expect(await tiers.replays.find(id)).toBeUndefined()
  })

  it('and an operation that comes after its end runs', async () => {
    const tiers = memoryTiers()
    const id = await completedAndCopied(tiers, { ttlMs: 3000 })
    await until(tiers.durable, id, (record) => record === undefined)
    expect(await patient(tiers).claim(aClaim({ id, fingerprint: 'another' }))).toEqual({
      status: 'acquired',
      fence: 1,
    })
  })

  it('even in a tier that does not forget it', async () => {
    const tiers = memoryTiers()
    const forever: IdempotencyStore = {
      ...tiers.replays,
      complete: (id, token, outcome) => tiers.replays.complete(id, token, outcome, HOUR),
    }
    const id = await completedAndCopied({ ...tiers, replays: forever }, { ttlMs: 3000 })
    const store = patient({ ...tiers, replays: forever })
    expect(await store.claim(aClaim({ id }))).toMatchObject({ status: 'completed' })
    await until(tiers.durable, id, (record) => record === undefined)
    expect(await forever.find(id)).toMatchObject({ status: 'completed' })
    expect(await store.claim(aClaim({ id }))).toEqual({ status: 'acquired', fence: 1 })
  })
})

const EMPTY = anOutcome({ body: new Uint8Array(0) })

describe('tieredStore › a tier that is wrong', () => {
  /** Puts something into the tier, past everything, under an id of which the durable store knows one answer or none. */
  const poisons: readonly (readonly [
    string,
    (replays: IdempotencyStore, id: string, tiers: Tiers) => Promise<unknown>,
  ])[] = [
    ['a running claim', async (replays, id) => replays.claim(aClaim({ id }))],
    [
      'an unknown claim',
      async (replays, id) => {
        const claim = aClaim({ id })
        await replays.claim(claim)
        await replays.renew(id, claim.token, 1)
        await until(replays, id, (record) => record?.status === 'unknown')
      },
    ],
    [
      'an outcome that nobody copied',
      (replays, id) => completed(replays, { id, outcome: anOutcome({ head: '{"status":200}' }) }),
    ],
    [
      'an outcome with an empty head',
      (replays, id) => completed(replays, { id, outcome: anOutcome({ head: '' }) }),
    ],
    [
      'the copy of another record',
      async (replays, id, tiers) => {
        const other = await completedAndCopied(tiers, { outcome: anOutcome({ head: '{"status":202}' }) })
        const copy = await replays.find(other)
        if (copy?.status !== 'completed') throw new Error('There is no copy')
        await completed(replays, { id, outcome: copy.outcome })
      },
    ],
  ]

  it.each(poisons)('does not answer a retry with %s', async (_, poison) => {
    const tiers = memoryTiers()
    const id = await completed(tiers.durable)
    await poison(tiers.replays, id, tiers)
    const store = patient(tiers)
    for (const _attempt of [1, 2, 3]) {
      const answer = await store.claim(aClaim({ id }))
      expect(answer).toMatchObject({ status: 'completed', fingerprint: aClaim().fingerprint })
      if (answer.status === 'completed') assertOutcome(answer.outcome, anOutcome())
    }
  })

  it.each(poisons)('does not keep a new operation from running with %s', async (_, poison) => {
    const tiers = memoryTiers()
    const id = anId()
    await poison(tiers.replays, id, tiers)
    const store = patient(tiers)
    expect(await store.claim(aClaim({ id }))).toEqual({ status: 'acquired', fence: 1 })
    expect(await store.claim(aClaim({ id }))).toMatchObject({ status: 'running' })
  })

  it.each<
    [string, (copy: Outcome) => { readonly outcome: Outcome; readonly fingerprint?: string }, Outcome?]
  >([
    ['another fingerprint', (copy) => ({ outcome: copy, fingerprint: 'another' })],
    ['another result', (copy) => ({ outcome: { ...copy, result: 'failed' } })],
    ['another head', (copy) => ({ outcome: { ...copy, head: copy.head.replace('201', '200') } })],
    ['another age', (copy) => ({ outcome: { ...copy, head: copy.head.replace(/^1 \d+/, '1 9') } })],
    ['another end', (copy) => ({ outcome: { ...copy, head: copy.head.replace(/^(1 \d+ )/, '$19') } })],
    ['another body', (copy) => ({ outcome: { ...copy, body: Buffer.from('[]') } })],
    ['half of its body', (copy) => ({ outcome: { ...copy, body: Buffer.from('{') } })],
    ['no body', (copy) => ({ outcome: { ...copy, body: null } })],
    ['no body in place of an empty one', (copy) => ({ outcome: { ...copy, body: null } }), EMPTY],
    ['an empty body', (copy) => ({ outcome: { ...copy, body: new Uint8Array(0) } })],
    ['half of its head', (copy) => ({ outcome: { ...copy, head: copy.head.slice(0, -3) } })],
    ['a later format', (copy) => ({ outcome: { ...copy, head: copy.head.replace(/^1/, '2') } })],
  ])('does not answer with a copy that has %s', async (_, change, original = anOutcome()) => {
    const tiers = memoryTiers()
    const id = await completedAndCopied(tiers, { outcome: original })
    const copy = await tiers.replays.find(id)
    if (copy?.status !== 'completed') throw new Error('There is no copy')
    const { outcome, fingerprint = copy.fingerprint } = change(copy.outcome)
    const poisoned = memoryStore()
    const claim = aClaim({ id, fingerprint })
    await poisoned.claim(claim)
    await poisoned.complete(id, claim.token, outcome, HOUR)
    const durable = disturbed(tiers.durable)
    const answer = await patient({ durable: durable.store, replays: poisoned }).claim(aClaim({ id }))
    expect(answer).toMatchObject({ status: 'completed', fingerprint: copy.fingerprint })
    if (answer.status === 'completed') assertOutcome(answer.outcome, original)
    expect(durable.calls.claim).toBe(1)
  })

  it('says so in a warning of the process, once a minute at the most', async () => {
    const tiers = memoryTiers()
    const store = patient(tiers)
    for (const id of await Promise.all(times(3, () => completed(tiers.durable)))) {
      await completed(tiers.replays, { id })
      await store.claim(aClaim({ id }))
    }
    expect(warnings).toEqual([expect.stringMatching(/holds what is no copy: record [\w-]{43}\. The durable/)])
  })
})

describe('tieredStore › a tier that fails', () => {
  it.each(['fails', 'stalls', 'loses-answer'] as const)(
    'costs no answer and no run when each of its steps %s',
    async (how) => {
      const replays = disturbed(memoryStore())
      for (const step of ['claim', 'complete', 'find'] as const) replays.disturb(step, how)
      const store = tieredStore({ durable: memoryStore(), replays: replays.store })
      const claim = aClaim()
      expect(await store.claim(claim)).toEqual({ status: 'acquired', fence: 1 })
      expect(await store.claim(aClaim({ id: claim.id }))).toMatchObject({ status: 'running' })
      await store.complete(claim.id, claim.token, anOutcome(), HOUR)
      for (const _attempt of [1, 2])
        expect(await store.claim(aClaim({ id: claim.id }))).toMatchObject({ status: 'completed' })
    },
  )

  it.each(['claim', 'complete'] as const)(
    'costs nothing when it cannot take the %s of a copy',
    async (step) => {
      const replays = disturbed(memoryStore())
      const tiers = { durable: memoryStore(), replays: replays.store }
      const id = await completed(tiers.durable)
      replays.disturb(step, 'fails')
      const store = patient(tiers)
      for (const _attempt of [1, 2, 3])
        expect(await store.claim(aClaim({ id }))).toMatchObject({ status: 'completed' })
      await expect.poll(() => replays.calls[step], PATIENTLY).toBeGreaterThan(0)
    },
  )

  it('costs nothing when the durable store cannot give what is to be copied', async () => {
    const durable = disturbed(memoryStore())
    const replays = memoryStore()
    const id = await completed(durable.store)
    durable.disturb('find', 'fails')
    const store = patient({ durable: durable.store, replays })
    expect(await store.claim(aClaim({ id }))).toMatchObject({ status: 'completed' })
    await expect.poll(() => durable.calls.find, PATIENTLY).toBe(1)
    expect(await store.claim(aClaim({ id }))).toMatchObject({ status: 'completed' })
  })

  it('may throw where it should reject', async () => {
    const broken = (): never => {
      throw new Error('not even a promise')
    }
    const replays: IdempotencyStore = { ...memoryStore(), find: broken, claim: broken }
    const store = tieredStore({ durable: memoryStore(), replays })
    expect(await store.claim(aClaim())).toEqual({ status: 'acquired', fence: 1 })
  })

  it('is left alone for a second, so that one claim waits for it and not the next', async () => {
    vi.useFakeTimers({ toFake: ['performance', 'setTimeout', 'clearTimeout'] })
    const replays = disturbed(memoryStore())
    replays.disturb('find', 'stalls')
    const durable = memoryStore()
    const id = await completed(durable)
    const store = tieredStore({ durable, replays: replays.store })
    const first = store.claim(aClaim({ id }))
    await vi.advanceTimersByTimeAsync(50)
    await first
    await Promise.all(times(50, () => store.claim(aClaim({ id }))))
    await vi.advanceTimersByTimeAsync(999)
    await store.claim(aClaim({ id }))
    expect(replays.calls).toMatchObject({ find: 1, claim: 0 })
  })

  it('is asked by one claim whether it is back, and by all of them once it is', async () => {
    vi.useFakeTimers({ toFake: ['performance', 'setTimeout', 'clearTimeout'] })
    const replays = disturbed(memoryStore())
    const store = tieredStore({ durable: memoryStore(), replays: replays.store })
    replays.disturb('find', 'fails')
    await store.claim(aClaim())
    replays.disturb('find', 'stalls')
    await vi.advanceTimersByTimeAsync(1000)
    const probe = store.claim(aClaim())
    await Promise.all(times(50, () => store.claim(aClaim())))
    expect(replays.calls.find).toBe(2)
    await vi.advanceTimersByTimeAsync(50)
    await probe
    replays.heal()
    await vi.advanceTimersByTimeAsync(999)
    await store.claim(aClaim())
    expect(replays.calls.find).toBe(2)
    await vi.advanceTimersByTimeAsync(1)
    await store.claim(aClaim())
    await Promise.all(times(10, () => store.claim(aClaim())))
    expect(replays.calls.find).toBe(13)
  })

  it('is left alone as well when it says by itself that it is away', async () => {
    let asked = 0
    const replays: IdempotencyStore = {
      ...memoryStore(),
      find() {
        asked += 1
        return Promise.reject(new StoreUnavailableError('away'))
      },
    }
    vi.useFakeTimers({ toFake: ['performance', 'setTimeout', 'clearTimeout'] })
    const store = patient({ durable: memoryStore(), replays })
    await store.claim(aClaim())
    await store.claim(aClaim())
    expect(asked).toBe(1)
  })

  it('goes on being asked when one record in it cannot be read', async () => {
    const inner = memoryStore()
    const replays = disturbed(sealedStore(inner, { keys: [randomBytes(32)] }))
    const tiers = { durable: memoryStore(), replays: replays.store }
    const id = await completed(tiers.durable)
    await completed(inner, { id })
    const store = patient(tiers)
    expect(await store.claim(aClaim({ id }))).toMatchObject({ status: 'completed', outcome: anOutcome() })
    const before = replays.calls.find
    await store.claim(aClaim())
    expect(replays.calls.find).toBe(before + 1)
  })

  it('gets the time that it was given, even when this process stands still meanwhile', async () => {
    const tiers = memoryTiers()
    const id = await completedAndCopied(tiers)
    const durable = disturbed(tiers.durable)
    const asked = gate()
    const { opened, open } = gate()
    const replays: IdempotencyStore = {
      ...tiers.replays,
      async find(wanted) {
        asked.open()
        await opened
        return tiers.replays.find(wanted)
      },
    }
    const store = tieredStore({ durable: durable.store, replays, replaysTimeout: '1s' })
    const answer = store.claim(aClaim({ id }))
    await asked.opened
    // The answer comes as one from a socket does: after the timers have had their turn, and then the next one.
    setImmediate(() => setImmediate(open))
    const goesOnAt = performance.now() + 1200
    while (performance.now() < goesOnAt);
    expect(await answer).toMatchObject({ status: 'completed' })
    expect(durable.calls.claim).toBe(0)
  })
})

describe('tieredStore › a sealed tier, against somebody who writes to it', () => {
  const keys = [randomBytes(32)]

  async function sealedTiers() {
    const raw = memoryStore()
    const tiers = { durable: memoryStore(), replays: sealedStore(raw, { keys }) }
    const id = await completedAndCopied(tiers)
    const copy = await raw.find(id)
    if (copy?.status !== 'completed') throw new Error('There is no copy')
    return { tiers, id, copy }
  }

  /** A tier into which somebody wrote an outcome, in the place of the true one. */
  async function poisonedWith(id: string, outcome: Outcome, fingerprint = aClaim().fingerprint) {
    const raw = memoryStore()
    const claim = aClaim({ id, fingerprint })
    await raw.claim(claim)
    await raw.complete(id, claim.token, outcome, HOUR)
    return sealedStore(raw, { keys })
  }

  async function expectTrueAnswer(durable: IdempotencyStore, replays: IdempotencyStore, id: string) {
    const counted = disturbed(durable)
    const answer = await patient({ durable: counted.store, replays }).claim(aClaim({ id }))
    expect(answer).toMatchObject({ status: 'completed', fingerprint: aClaim().fingerprint })
    if (answer.status === 'completed') assertOutcome(answer.outcome, anOutcome())
    expect(counted.calls.claim).toBe(1)
  }

  it('answers with what it sealed itself', async () => {
    const { tiers, id, copy } = await sealedTiers()
    expect(copy.outcome.head).not.toContain('201')
    const replays = await poisonedWith(id, copy.outcome)
    const durable = disturbed(tiers.durable)
    const answer = await patient({ durable: durable.store, replays }).claim(aClaim({ id }))
    expect(answer).toMatchObject({ status: 'completed', outcome: anOutcome() })
    expect(durable.calls.claim).toBe(0)
  })

  it('does not answer with a copy that was forged, with everything right but the key', async () => {
    const { tiers, id } = await sealedTiers()
    const forged = { durable: memoryStore(), replays: memoryStore() }
    await completedAndCopied(forged, { id, outcome: anOutcome({ body: Buffer.from('{"paid":true}') }) })
    const copy = await forged.replays.find(id)
    if (copy?.status !== 'completed') throw new Error('There is no copy')
    // Without a seal it is as good as a true one: that is what the seal is for.
    expect(await patient({ ...tiers, replays: forged.replays }).claim(aClaim({ id }))).toMatchObject({
      outcome: { body: Buffer.from('{"paid":true}') },
    })
    await expectTrueAnswer(tiers.durable, await poisonedWith(id, copy.outcome), id)
    const raw = memoryStore()
    await completed(sealedStore(raw, { keys: [randomBytes(32)] }), { id, outcome: copy.outcome })
    const sealedByAnother = await raw.find(id)
    if (sealedByAnother?.status !== 'completed') throw new Error('There is no copy')
    await expectTrueAnswer(tiers.durable, await poisonedWith(id, sealedByAnother.outcome), id)
  })

  it('does not answer with the sealed copy of another record, or of another request', async () => {
    const one = await sealedTiers()
    const two = await sealedTiers()
    await expectTrueAnswer(one.tiers.durable, await poisonedWith(one.id, two.copy.outcome), one.id)
    await expectTrueAnswer(one.tiers.durable, await poisonedWith(one.id, one.copy.outcome, 'another'), one.id)
  })

  it('does not answer with the head of one sealed copy beside the body of another', async () => {
    const { tiers, id, copy } = await sealedTiers()
    const raw = memoryStore()
    const other = { durable: memoryStore(), replays: sealedStore(raw, { keys }) }
    await completedAndCopied(other, { id, outcome: anOutcome({ body: Buffer.from('[]') }) })
    const second = await raw.find(id)
    if (second?.status !== 'completed') throw new Error('There is no copy')
    const mixed = { ...copy.outcome, body: second.outcome.body }
    await expectTrueAnswer(tiers.durable, await poisonedWith(id, mixed), id)
  })
})

describe('tieredStore › what only some stores can do', () => {
  it('is there where the durable store can, and is done by it alone', async () => {
    const optional = ['transaction', 'completeIn', 'watch', 'sweep', 'check'] as const
    const has = (store: IdempotencyStore) => optional.filter((name) => name in store)
    const { claim, renew, complete, release, find, settle } = memoryStore()
    const plain = { claim, renew, complete, release, find, settle }
    const full: IdempotencyStore = {
      ...plain,
      transaction: async (work) => ({ committed: true, value: (await work('the durable one')).value }),
      completeIn: async (_execute, ...completion) => complete(...completion),
      watch: async () => {},
      sweep: async () => 7,
    }
    expect(has(tieredStore({ durable: full, replays: plain }))).toEqual([...optional])
    expect(has(tieredStore({ durable: plain, replays: full }))).toEqual(['check'])
    const store = tieredStore({ durable: asInstance(full), replays: memoryStore() })
    expect(await store.sweep?.()).toBe(7)
    const settings = {
      isolation: undefined,
      lockTimeoutMs: undefined,
      attempts: 1,
      signal: new AbortController().signal,
    }
    const work = async (client: unknown) => ({ value: client, completion: undefined })
    expect(await store.transaction?.(work, settings)).toEqual({ committed: true, value: 'the durable one' })
    const id = anId()
    expect(await store.completeIn?.(async () => [], id, aToken(), anOutcome(), HOUR)).toBe(false)
  })

  it('and every other step is the durable store alone', async () => {
    const replays = disturbed(memoryStore())
    const store = patient({ durable: memoryStore(), replays: replays.store })
    const claim = aClaim()
    await store.claim(claim)
    const before = { ...replays.calls }
    await store.renew(claim.id, claim.token, HOUR)
    await store.find(claim.id)
    await store.complete(claim.id, claim.token, anOutcome(), HOUR)
    await store.settle(claim.id, 'release', HOUR)
    await store.release(claim.id, claim.token)
    expect(replays.calls).toEqual(before)
  })
})

describe('tieredStore › check', () => {
  const withCheck = (check: IdempotencyStore['check']): IdempotencyStore => ({
    ...memoryStore(),
    ...(check && { check }),
  })

  it('gives what the durable store warns of, and nothing that a tier may lose', async () => {
    const store = tieredStore({
      durable: withCheck(async () => ['the durable store may lose records']),
      replays: withCheck(async () => ['the tier may lose records']),
    })
    expect(await store.check?.()).toEqual(['the durable store may lose records'])
    expect(await tieredStore(memoryTiers()).check?.()).toEqual([])
  })

  it('rejects when the durable store is unfit or away', async () => {
    const failure = new Error('away')
    const store = tieredStore({
      durable: withCheck(() => Promise.reject(failure)),
      replays: memoryStore(),
    })
    await expect(store.check?.()).rejects.toBe(failure)
  })

  it.each<[string, () => Promise<readonly string[]>, RegExp]>([
    ['is away', () => Promise.reject(new Error('ECONNREFUSED')), /replays tier cannot be used.*ECONNREFUSED/],
    ['hangs', () => new Promise(() => {}), /replays tier cannot be used.*no answer within 50 ms/],
  ])('warns when the tier %s', async (_, check, warning) => {
    const store = tieredStore({ durable: withCheck(async () => ['first']), replays: withCheck(check) })
    expect(await store.check?.()).toEqual(['first', expect.stringMatching(warning)])
  })
})

describe('tieredStore › options', () => {
  const [durable, replays] = [memoryStore(), memoryStore()]

  it.each<[string, unknown, RegExp]>([
    ['none at all', undefined, /option "durable" must be a store/],
    ['no durable store', { replays }, /option "durable" must be a store/],
    ['no tier', { durable }, /option "replays" must be a store/],
    ['what is no store', { durable, replays: { find: 1 } }, /option "replays" must be a store/],
    ['one store for both', { durable, replays: durable }, /option "replays" must be another store/],
    ['a timeout of nothing', { durable, replays, replaysTimeout: 0 }, /option "replaysTimeout" .* got 0/],
    ['a timeout that is no time', { durable, replays, replaysTimeout: '50' }, /"replaysTimeout" .* got 50/],
    [
      'a timeout that is too long',
      { durable, replays, replaysTimeout: '11s' },
      /"replaysTimeout" .* got 11s/,
    ],
  ])('are refused at once: %s', (_, options, message) => {
    expect(() => tieredStore(options as never)).toThrow(
      expect.objectContaining({
        code: 'IDEMPOTENCY_OPTIONS_INVALID',
        message: expect.stringMatching(message),
      }),
    )
  })
})
