import { randomBytes } from 'node:crypto'
import Fastify, { type FastifyInstance } from 'fastify'
import { Redis } from 'ioredis'
import { Pool } from 'pg'
import { afterEach, beforeEach, expect, inject, it, vi } from 'vitest'
import idempotency from '../../src/adapters/fastify.js'
import { recordId } from '../../src/contract/key.js'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { createIdempotency } from '../../src/index.js'
import { type PostgresQuery, postgresStore } from '../../src/stores/postgres.js'
import { redisStore } from '../../src/stores/redis.js'
import { sealedStore } from '../../src/stores/sealed.js'
import { tieredStore } from '../../src/stores/tiered.js'
import {
  aClaim,
  anId,
  anOutcome,
  assertOutcome,
  HOUR,
  lapsed,
  until,
} from '../../src/testing/store-fixtures.js'
import { copied } from '../support/copied.js'
import { aKey, send } from '../support/fastify-app.js'
import { gate } from '../support/gate.js'
import { type RedisServer, startRedisServer } from '../support/redis-server.js'
import { replaysWarnings } from '../support/replays-warnings.js'
import { describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')

const PATIENTLY = { timeout: 15_000, interval: 20 }

let server: RedisServer
let redis: Redis
let pool: Pool
/** The statements that went to Postgres. */
let statements: string[]
let durable: IdempotencyStore
let replays: IdempotencyStore
beforeEach(async () => {
  replaysWarnings()
  server = await startRedisServer()
  redis = new Redis(server.url, { retryStrategy: () => 50 })
  // Outages are what is tested here: without a listener, ioredis writes every error to the console.
  redis.on('error', () => {})
  pool = new Pool({ connectionString: postgresUrl, max: 4 })
  statements = []
  const postgres = postgresStore({
    query(query: string | PostgresQuery) {
      statements.push(typeof query === 'string' ? query : query.text)
      return pool.query(query)
    },
  })
  await postgres.migrate()
  durable = postgres
  replays = redisStore(redis)
})
afterEach(async () => {
  server.resume()
  redis.disconnect()
  await server.stop().catch(() => {})
  await pool.end()
  vi.restoreAllMocks()
})

/** A new store of the same two, as another process has it: it has not learnt yet that the tier is away. */
function aStore(replaysTimeout: '50ms' | '10s' = '10s'): IdempotencyStore {
  return tieredStore({ durable, replays, replaysTimeout })
}

async function completed(given: Partial<Parameters<typeof anOutcome>[0] & { ttlMs: number }> = {}) {
  const { ttlMs = HOUR, ...outcome } = given
  const claim = aClaim()
  await durable.claim(claim)
  await durable.complete(claim.id, claim.token, anOutcome(outcome), ttlMs)
  return claim.id
}

async function completedAndCopied(given: Parameters<typeof completed>[0] = {}): Promise<string> {
  const id = await completed(given)
  await copied(aStore(), replays, id)
  return id
}

const keyOf = (id: string): string => `oncekey:${id}`

async function expectTrueAnswer(store: IdempotencyStore, id: string): Promise<void> {
  const answer = await store.claim(aClaim({ id, takeOver: true }))
  expect(answer).toMatchObject({ status: 'completed', fingerprint: aClaim().fingerprint })
  if (answer.status === 'completed') assertOutcome(answer.outcome, anOutcome())
}

/** The tier has been asked after this, and has answered. */
async function isUsedAgain(store: IdempotencyStore, id: string): Promise<void> {
  await expect
    .poll(async () => {
      statements.length = 0
      await expectTrueAnswer(store, id)
      return statements.length
    }, PATIENTLY)
    .toBe(0)
}

describeWith(['redis', 'postgres'], 'tieredStore of Postgres and a Redis of its own', () => {
  it('answers the second retry without a statement to Postgres', async () => {
    const store = aStore()
    const id = await completed()
    await expectTrueAnswer(store, id)
    await copied(store, replays, id)
    statements.length = 0
    for (const _retry of [1, 2, 3]) await expectTrueAnswer(store, id)
    expect(statements).toEqual([])
  })

  it('answers the second retry of a request without a statement to Postgres', async () => {
    let runs = 0
    const store = aStore()
    const { run, close } = createIdempotency({ store, replayCache: false, sweep: false })
    const key = aKey()
    const retry = () => run({ scope: 'acme', key }, () => ({ run: ++runs }))
    expect(await retry()).toEqual({ run: 1 })
    expect(await retry()).toEqual({ run: 1 })
    await copied(store, replays, recordId({ namespace: '', scope: 'acme', key }))
    statements.length = 0
    expect(await retry()).toEqual({ run: 1 })
    expect(statements).toEqual([])
    expect(runs).toBe(1)
    await close()
  })

  it('loses nothing when the tier is emptied, and copies anew', async () => {
    const store = aStore()
    const id = await completedAndCopied()
    const running = aClaim()
    await store.claim(running)
    const unknown = await lapsed(store)
    await redis.flushall()
    await expectTrueAnswer(store, id)
    expect(await store.claim(aClaim({ id: running.id }))).toMatchObject({ status: 'running' })
    expect(await store.claim(aClaim({ id: unknown.id }))).toMatchObject({ status: 'unknown' })
    await copied(store, replays, id)
    await isUsedAgain(store, id)
  })

  it('gives every copy a time to live that is shorter than its record has', async () => {
    const id = await completedAndCopied({ ttlMs: 60_000 })
    const record = await durable.find(id)
    const ttlMs = await redis.pttl(keyOf(id))
    expect(ttlMs).toBeGreaterThan(30_000)
    expect(ttlMs).toBeLessThanOrEqual(record?.expiresInMs ?? 0)
  })

  it('leaves nothing behind for longer than a second when a copy could not be completed', async () => {
    const id = await completed()
    const cut = gate()
    let leftMs = Number.NaN
    const half: IdempotencyStore = {
      ...replays,
      async complete() {
        leftMs = await redis.pttl(keyOf(id))
        cut.open()
        throw new Error('cut off')
      },
    }
    await tieredStore({ durable, replays: half, replaysTimeout: '10s' }).claim(aClaim({ id }))
    await cut.opened
    expect(leftMs).toBeLessThanOrEqual(1000)
    await until(replays, id, (record) => record === undefined)
    await isUsedAgain(aStore(), id)
  })

  it('runs an operation that comes after the ttl, even when the tier never forgets', async () => {
    const id = await completedAndCopied({ ttlMs: 3000 })
    await redis.persist(keyOf(id))
    await until(durable, id, (record) => record === undefined)
    expect(await redis.exists(keyOf(id))).toBe(1)
    const again = aClaim({ id, fingerprint: 'another' })
    expect(await aStore().claim(again)).toEqual({ status: 'acquired', fence: 1 })
    expect(await aStore().claim(aClaim({ id }))).toMatchObject({ status: 'running' })
    await durable.complete(id, again.token, anOutcome({ head: 'second' }), HOUR)
    expect(await aStore().claim(aClaim({ id }))).toMatchObject({
      fingerprint: 'another',
      outcome: { head: 'second' },
    })
  })
})

describeWith(['redis', 'postgres'], 'tieredStore › a Redis that holds something else', () => {
  it.each([
    ['plain', () => replays],
    ['sealed', () => sealedStore(replays, { keys: [randomBytes(32)] })],
  ])('answers right, whichever byte of a copy is damaged (%s)', async (_, tier) => {
    const raw = replays
    replays = tier()
    const id = await completedAndCopied()
    const bytes = (await redis.getBuffer(keyOf(id))) ?? Buffer.alloc(0)
    expect(bytes.byteLength).toBeGreaterThan(200)
    for (const index of bytes.keys()) {
      const damaged = Buffer.from(bytes)
      damaged[index] = (damaged[index] ?? 0) ^ (1 << (index % 8))
      await redis.set(keyOf(id), damaged, 'PX', HOUR)
      await expectTrueAnswer(aStore(), id)
    }
    await redis.set(keyOf(id), bytes, 'PX', HOUR)
    statements.length = 0
    await expectTrueAnswer(aStore(), id)
    expect(statements).toEqual([])
    expect(await raw.find(id)).toMatchObject({ status: 'completed' })
  })

  it('answers right, wherever a copy is cut off', async () => {
    const id = await completedAndCopied()
    const bytes = (await redis.getBuffer(keyOf(id))) ?? Buffer.alloc(0)
    for (const end of bytes.keys()) {
      await redis.set(keyOf(id), bytes.subarray(0, end), 'PX', HOUR)
      await expectTrueAnswer(aStore(), id)
    }
  })

  it.each<[string, (key: string) => Promise<unknown>]>([
    ['a list', (key) => redis.rpush(key, 'x')],
    ['an empty text', (key) => redis.set(key, '')],
    ['bytes', (key) => redis.set(key, randomBytes(500))],
    ['a record of a later version', (key) => redis.set(key, '9C something new')],
    ['a running record', (key) => plantClaim(key)],
    ['an unknown record', (key) => plantClaim(key, 1)],
  ])('answers right and runs what is new where there is %s', async (_, plant) => {
    const [id, fresh] = [await completed(), anId()]
    for (const each of [id, fresh]) await plant(keyOf(each))
    await expectTrueAnswer(aStore(), id)
    expect(await aStore().claim(aClaim({ id: fresh }))).toEqual({ status: 'acquired', fence: 1 })
    expect(await aStore().claim(aClaim({ id: fresh }))).toMatchObject({ status: 'running' })
  })

  async function plantClaim(key: string, leaseMs = HOUR): Promise<void> {
    const id = key.slice(keyOf('').length)
    await replays.claim(aClaim({ id, leaseMs, fingerprint: 'another' }))
    if (leaseMs === 1) await until(replays, id, (record) => record?.status === 'unknown')
  }

  it('does not answer with the copy of another record', async () => {
    const other = await completedAndCopied({ head: '{"status":202}', body: Buffer.from('[]') })
    const [id, fresh] = [await completed(), anId()]
    for (const each of [id, fresh]) await redis.copy(keyOf(other), keyOf(each))
    await expectTrueAnswer(aStore(), id)
    expect(await aStore().claim(aClaim({ id: fresh }))).toEqual({ status: 'acquired', fence: 1 })
  })
})

describeWith(['redis', 'postgres'], 'tieredStore › an outage of its Redis', () => {
  let app: FastifyInstance
  let effects: number
  beforeEach(async () => {
    effects = 0
    app = Fastify()
    await app.register(idempotency, {
      store: aStore('50ms'),
      scope: 'shared',
      storeTimeout: '5s',
      replayCache: false,
      sweep: false,
    })
    app.post('/', async (_request, reply) => {
      effects += 1
      return reply.code(201).send({ effects })
    })
  })
  afterEach(async () => {
    server.resume()
    await app.close()
  })

  const outages: readonly (readonly [string, () => Promise<void> | void])[] = [
    ['hangs', () => server.pause()],
    ['has ended', () => server.stop()],
  ]

  it.each(outages)('that %s costs no answer, no run and no 503', async (_, begin) => {
    await app.ready()
    const before = aKey()
    const first = await send(app, '/', { key: before })
    expect(first).toMatchObject({ status: 201, isReplay: false })
    await send(app, '/', { key: before })
    await expect.poll(() => redis.dbsize(), PATIENTLY).toBe(1)
    await begin()
    const keys = Array.from({ length: 20 }, aKey)
    for (const key of keys)
      expect(await send(app, '/', { key })).toMatchObject({ status: 201, isReplay: false })
    for (const key of [...keys, ...keys])
      expect(await send(app, '/', { key })).toMatchObject({ status: 201, isReplay: true })
    const replay = await send(app, '/', { key: before })
    expect(replay).toMatchObject({ status: 201, isReplay: true, bytes: first.bytes })
    expect(effects).toBe(21)
  })

  it.each(outages)('that %s when the application starts costs a warning', async (_, begin) => {
    await begin()
    await app.ready()
    const key = aKey()
    expect(await send(app, '/', { key })).toMatchObject({ status: 201, isReplay: false })
    expect(await send(app, '/', { key })).toMatchObject({ status: 201, isReplay: true })
    expect(await aStore('50ms').check?.()).toContainEqual(
      expect.stringMatching(/replays tier cannot be used/),
    )
  })

  it('that hangs is over as soon as it answers again', async () => {
    const store = aStore('50ms')
    const id = await completedAndCopied()
    server.pause()
    for (const _retry of [1, 2]) await expectTrueAnswer(store, id)
    server.resume()
    await isUsedAgain(store, id)
  })

  it('in the middle of copying, for longer than that may take, leaves no copy', async () => {
    const id = await completed({ ttlMs: 60_000 })
    const paused = gate()
    const hanging: IdempotencyStore = {
      ...replays,
      complete(...completion) {
        server.pause()
        paused.open()
        return replays.complete(...completion)
      },
    }
    await tieredStore({ durable, replays: hanging, replaysTimeout: '10s' }).claim(aClaim({ id }))
    await paused.opened
    await expectTrueAnswer(aStore('50ms'), id)
    const marker = await completed({ ttlMs: 1200 })
    await until(durable, marker, (record) => record === undefined)
    server.resume()
    // It comes after the completion, on the same connection.
    expect(await replays.find(id)).toBeUndefined()
    await copied(aStore(), replays, id)
    await expectTrueAnswer(aStore(), id)
  })
})
