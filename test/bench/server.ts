import { randomUUID } from 'node:crypto'
import Fastify, { type FastifyInstance } from 'fastify'
import { Redis } from 'ioredis'
import { type IdempotencyStore, memoryStore } from 'oncekey'
import idempotency from 'oncekey/fastify'
import { postgresStore } from 'oncekey/postgres'
import { redisStore } from 'oncekey/redis'
import { Pool } from 'pg'

/** Which server to run: the first argument, as JSON. */
export interface BenchServerOptions {
  readonly variant: 'bare' | 'memory' | 'redis' | 'redis by hand' | 'postgres' | 'postgres by hand'
  readonly redisUrl: string
  readonly postgresUrl: string
}

const { variant, redisUrl, postgresUrl } = JSON.parse(process.argv[2] ?? '{}') as BenchServerOptions
const LEASE_MS = 30_000
const TTL_MS = 86_400_000
const POOL_SIZE = 20

/** What every variant answers with: a small JSON body, as payment APIs give. */
function pay(): { readonly id: string; readonly status: string; readonly amount: number } {
  return { id: randomUUID(), status: 'accepted', amount: 500 }
}

async function protectedBy(store: IdempotencyStore): Promise<FastifyInstance> {
  const app = Fastify()
  await app.register(idempotency, { store, scope: 'shared' })
  app.post('/', (_, reply) => reply.code(201).send(pay()))
  return app
}

/** The least that somebody would write by hand: no fingerprint, no scope, no renewals, JSON only. */
async function redisByHand(): Promise<FastifyInstance> {
  const redis = new Redis(redisUrl)
  redis.defineCommand('keep', {
    numberOfKeys: 1,
    lua: `if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end`,
  })
  const { keep } = redis as unknown as { keep: (...args: (string | number)[]) => Promise<unknown> }
  const app = Fastify()
  app.post('/', async (request, reply) => {
    const key = `hand:${String(request.headers['idempotency-key'])}`
    const token = `claim ${randomUUID()}`
    const found = await redis.call('SET', key, token, 'NX', 'GET', 'PX', LEASE_MS)
    reply.type('application/json')
    if (typeof found === 'string') {
      if (found.startsWith('claim ')) return reply.code(409).send('{}')
      return reply.code(201).header('idempotent-replayed', 'true').send(found)
    }
    const body = JSON.stringify(pay())
    await keep.call(redis, key, token, body, TTL_MS)
    return reply.code(201).send(body)
  })
  return app
}

async function postgresByHand(): Promise<FastifyInstance> {
  const pool = new Pool({ connectionString: postgresUrl, max: POOL_SIZE })
  await pool.query(
    'create table if not exists by_hand (key text primary key, token text not null, body text)',
  )
  const app = Fastify()
  app.post('/', async (request, reply) => {
    const key = String(request.headers['idempotency-key'])
    const token = randomUUID()
    const claimed = await pool.query(
      'insert into by_hand (key, token) values ($1, $2) on conflict do nothing',
      [key, token],
    )
    reply.type('application/json')
    if (claimed.rowCount === 0) {
      const { rows } = await pool.query('select body from by_hand where key = $1', [key])
      const body = (rows[0] as { body: string | null } | undefined)?.body
      if (typeof body !== 'string') return reply.code(409).send('{}')
      return reply.code(201).header('idempotent-replayed', 'true').send(body)
    }
    const body = JSON.stringify(pay())
    await pool.query('update by_hand set body = $3 where key = $1 and token = $2', [key, token, body])
    return reply.code(201).send(body)
  })
  return app
}

async function build(): Promise<FastifyInstance> {
  switch (variant) {
    case 'bare': {
      const app = Fastify()
      app.post('/', (_, reply) => reply.code(201).send(pay()))
      return app
    }
    case 'memory':
      return protectedBy(memoryStore({ maxEntries: 5_000_000, maxBytes: 2 ** 32 }))
    case 'redis':
      return protectedBy(redisStore(new Redis(redisUrl)))
    case 'redis by hand':
      return redisByHand()
    case 'postgres': {
      const store = postgresStore(new Pool({ connectionString: postgresUrl, max: POOL_SIZE }))
      await store.migrate()
      return protectedBy(store)
    }
    case 'postgres by hand':
      return postgresByHand()
  }
}

const app = await build()
process.stdout.write(`${await app.listen({ port: 0, host: '127.0.0.1' })}\n`)
