import { randomUUID } from 'node:crypto'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Redis } from 'ioredis'
import { Pool } from 'pg'
import type { IdempotencyStore, Outcome } from '../../src/contract/store.js'
import { createReplayCache } from '../../src/core/replay-cache.js'
import { memoryStore } from '../../src/stores/memory.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { type RedisStoreOptions, redisStore } from '../../src/stores/redis.js'
import { aClaim, HOUR } from '../../src/testing/store-fixtures.js'
import { startPostgresServer } from '../support/postgres-server.js'
import { startRedisServer } from '../support/redis-server.js'

const RECORDS = Number(process.env.BENCH_RECORDS ?? 20_000)
const AT_ONCE = 200
const BODIES = [0, 200, 1000, 10_000]
const LISTS = [2048, 10_240]
/** Headers as a small JSON answer has them. */
const HEAD = JSON.stringify({
  status: 201,
  headers: [['content-type', 'application/json; charset=utf-8']],
  body: 'text',
})

/** Measures how much room a completed record takes: bytes in each store, and in the memory of a process. */
export async function benchSizes(): Promise<void> {
  const redis = await startRedisServer()
  const postgres = await startPostgresServer()
  const client = new Redis(redis.url)
  const pool = new Pool({ connectionString: postgres.url })
  console.log(`\nBytes a completed record, ${RECORDS} records, keys of 36 characters.\n`)
  console.log('| body | Redis | Postgres, table and indexes | of it indexes | memoryStore | replay cache |')
  console.log('|---|---|---|---|---|---|')
  try {
    // What the first fill compiles is none of the records' memory.
    await filledMemoryStore(0)
    for (const size of BODIES) {
      const cells = [
        await inRedis(client, () => anAnswer(size)),
        ...(await inPostgres(pool, size)),
        await inMemory(() => filledMemoryStore(size)),
        await inMemory(() => filledCache(size)),
      ]
      console.log(`| ${size} | ${cells.map((bytes) => Math.round(bytes / RECORDS)).join(' | ')} |`)
    }
    console.log('\n| a list in JSON, bytes | Redis | with `compress` |\n|---|---|---|')
    for (const size of LISTS) {
      const cells = [await inRedis(client, () => aList(size))]
      cells.push(await inRedis(client, () => aList(size), { compress: { aboveBytes: 1024 } }))
      console.log(`| ${size} | ${cells.map((bytes) => Math.round(bytes / RECORDS)).join(' | ')} |`)
    }
  } finally {
    client.disconnect()
    await pool.end()
    await redis.stop()
    await postgres.stop()
  }
}

async function inRedis(client: Redis, answer: () => Outcome, options?: RedisStoreOptions): Promise<number> {
  await client.flushall()
  const before = await usedByRedis(client)
  await fill(redisStore(client, options), answer)
  return (await usedByRedis(client)) - before
}

async function usedByRedis(client: Redis): Promise<number> {
  return Number(/^used_memory:(\d+)/m.exec(await client.info('memory'))?.[1])
}

async function inPostgres(pool: Pool, size: number): Promise<readonly [all: number, indexes: number]> {
  const table = `t_${randomUUID().slice(0, 8)}`
  const store = postgresStore(pool, { table })
  await store.migrate()
  await fill(store, () => anAnswer(size))
  await pool.query(`vacuum ${table}`)
  const { rows } = await pool.query(
    'select pg_total_relation_size($1::regclass) as total, pg_indexes_size($1::regclass) as indexes',
    [table],
  )
  await pool.query(`update ${table} set expires_at = now(), expiry_bucket = 0`)
  const startedAt = performance.now()
  const swept = (await store.sweep?.()) ?? 0
  console.error(
    `body ${size}: ${Math.round(swept / ((performance.now() - startedAt) / 1000))} rows swept a second`,
  )
  return [Number(rows[0].total), Number(rows[0].indexes)]
}

async function filledMemoryStore(size: number): Promise<IdempotencyStore> {
  const store = memoryStore({ maxEntries: RECORDS, maxBytes: 2 ** 40 })
  await fill(store, () => anAnswer(size))
  return store
}

async function filledCache(size: number): Promise<unknown> {
  const cache = createReplayCache({ entries: RECORDS, bytes: 2 ** 40, maxAgeMs: HOUR })
  for (let index = 0; index < RECORDS; index += 1) {
    const { id, fingerprint } = realClaim()
    cache.set(id, { id, fingerprint, outcome: anAnswer(size), ageMs: 0, cachedAt: 0 }, HOUR)
  }
  return cache
}

setFlagsFromString('--expose-gc')
const gc = runInNewContext('gc') as () => void

/** Buffers are given back some turns after what held them. */
async function collectGarbage(): Promise<void> {
  for (let time = 0; time < 5; time += 1) {
    gc()
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** How much the heap and the buffers of this process grow by what `make` makes. */
async function inMemory(make: () => Promise<unknown>): Promise<number> {
  await collectGarbage()
  const before = process.memoryUsage()
  const made = await make()
  await collectGarbage()
  const after = process.memoryUsage()
  if (made === undefined) throw new Error('There is nothing to measure')
  return after.heapUsed - before.heapUsed + (after.arrayBuffers - before.arrayBuffers)
}

async function fill(store: IdempotencyStore, answer: () => Outcome): Promise<void> {
  for (let filled = 0; filled < RECORDS; filled += AT_ONCE)
    await Promise.all(
      Array.from({ length: AT_ONCE }, async () => {
        const claim = realClaim()
        await store.claim(claim)
        await store.complete(claim.id, claim.token, answer(), HOUR)
      }),
    )
}

/** A claim with values as long as those of a service. */
function realClaim() {
  const hash = (): string => aClaim().id
  return aClaim({
    fingerprint: hash(),
    meta: { key: randomUUID(), route: 'POST /payments', scope: hash().slice(0, 22), firstSeenAt: Date.now() },
  })
}

/** A list of payments in JSON, of about so many bytes. */
function aList(size: number): Outcome {
  const lines: string[] = []
  for (let length = 0; length < size; length += lines.at(-1)?.length ?? 0)
    lines.push(
      JSON.stringify({
        id: randomUUID(),
        status: 'accepted',
        from: 'alice',
        to: `bob-${lines.length}`,
        amount: { currency: 'EUR', value: 100 + ((lines.length * 7919) % 5000) },
        createdAt: new Date(1.79e12 + lines.length * 86_413).toISOString(),
      }),
    )
  return { result: 'succeeded', head: HEAD, body: Buffer.from(`[${lines.join(',')}]`) }
}

function anAnswer(size: number): Outcome {
  // Text that does not compress much better than real answers do: Postgres compresses bodies past 2 kB.
  const body = Buffer.alloc(size)
  for (let at = 0; at < size; at += 36) body.write(randomUUID(), at)
  return { result: 'succeeded', head: HEAD, body }
}
