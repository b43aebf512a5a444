import { hash, randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import express, { type Express } from 'express'
import stableStringify from 'fast-json-stable-stringify'
import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import { Redis } from 'ioredis'
import { type IdempotencyStore, memoryStore } from 'oncekey'
import { idempotency as expressIdempotency } from 'oncekey/express'
import idempotency from 'oncekey/fastify'
import { postgresStore } from 'oncekey/postgres'
import { redisStore } from 'oncekey/redis'
import { Pool } from 'pg'
import { tellCpuTime } from './measure.js'

/** Servers that can be compared. `by hand` is the least that somebody would write for the same store. */
export type Variant =
  | 'bare'
  | 'unprotected route'
  | 'memory'
  | 'memory by hand'
  | 'redis'
  | 'redis without cache'
  | 'redis by hand'
  | 'postgres'
  | 'postgres without cache'
  | 'postgres unprepared'
  | 'postgres by hand'
  | 'express bare'
  | 'express memory'

/** Which server to run: the first argument, as JSON. */
export interface BenchServerOptions {
  readonly variant: Variant
  readonly redisUrl: string
  readonly postgresUrl: string
}

const { variant, redisUrl, postgresUrl } = JSON.parse(process.argv[2] ?? '{}') as BenchServerOptions
const LEASE_MS = 30_000
const TTL_MS = 86_400_000
const POOL_SIZE = 20
const BODY_LIMIT = 2 * 1024 * 1024

interface Payment {
  readonly id: string
  readonly status: string
  readonly amount: number
}

/** What every variant answers with: a small JSON body, as payment APIs give. One that is asked to be slow is. */
function pay(body: unknown): Payment | Promise<Payment> {
  const { slowMs } = (body ?? {}) as { readonly slowMs?: number }
  const payment = { id: randomUUID(), status: 'accepted', amount: 500 }
  return slowMs === undefined ? payment : sleep(slowMs, payment)
}

function bare(): FastifyInstance {
  const app = Fastify({ bodyLimit: BODY_LIMIT })
  app.post('/', async (request, reply) => {
    reply.code(201)
    return pay(request.body)
  })
  return app
}

async function protectedBy(store: IdempotencyStore, options: { readonly replayCache?: false } = {}) {
  const app = Fastify({ bodyLimit: BODY_LIMIT })
  await app.register(idempotency, { store, scope: 'shared', ...options })
  app.post('/', async (request, reply) => {
    reply.code(201)
    return pay(request.body)
  })
  return app
}

async function unprotectedRoute(): Promise<FastifyInstance> {
  const app = Fastify({ bodyLimit: BODY_LIMIT })
  await app.register(idempotency, { store: memoryStore(), scope: 'shared' })
  app.post('/', { config: { idempotency: false } }, async (request, reply) => {
    reply.code(201)
    return pay(request.body)
  })
  return app
}

function bigMemoryStore(): IdempotencyStore {
  return memoryStore({ maxEntries: 20_000_000, maxBytes: 2 ** 36 })
}

function fingerprintByHand(request: FastifyRequest): string {
  return hash('sha256', `${request.method} ${request.url} ${stableStringify(request.body)}`, 'base64')
}

/** A map with a fingerprint: no scope, no lease, no ttl, JSON only, and a handler that throws leaves its key stuck. */
function memoryByHand(): FastifyInstance {
  const records = new Map<string, { readonly fingerprint: string; body: string | undefined }>()
  const app = Fastify({ bodyLimit: BODY_LIMIT })
  app.post('/', async (request, reply) => {
    const key = String(request.headers['idempotency-key'])
    const fingerprint = fingerprintByHand(request)
    const found = records.get(key)
    reply.type('application/json')
    if (found !== undefined) {
      if (found.fingerprint !== fingerprint) return reply.code(422).send('{}')
      if (found.body === undefined) return reply.code(409).send('{}')
      return reply.code(201).header('idempotent-replayed', 'true').send(found.body)
    }
    const record = { fingerprint, body: undefined as string | undefined }
    records.set(key, record)
    record.body = JSON.stringify(await pay(request.body))
    return reply.code(201).send(record.body)
  })
  return app
}

/** `SET NX GET PX`, then a `SET` that compares the token: no scope, no fence number, no renewals, JSON only. */
async function redisByHand(): Promise<FastifyInstance> {
  const redis = new Redis(redisUrl, { enableAutoPipelining: true })
  redis.defineCommand('keep', {
    numberOfKeys: 1,
    lua: `if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end`,
  })
  const { keep } = redis as unknown as { keep: (...args: (string | number)[]) => Promise<unknown> }
  const app = Fastify({ bodyLimit: BODY_LIMIT })
  app.post('/', async (request, reply) => {
    const key = `hand:${String(request.headers['idempotency-key'])}`
    const fingerprint = fingerprintByHand(request)
    const claim = `${fingerprint} claim ${randomUUID()}`
    const found = await redis.set(key, claim, 'PX', LEASE_MS, 'NX', 'GET')
    reply.type('application/json')
    if (typeof found === 'string') {
      if (!found.startsWith(fingerprint)) return reply.code(422).send('{}')
      const rest = found.slice(fingerprint.length + 1)
      if (rest.startsWith('claim ')) return reply.code(409).send('{}')
      return reply.code(201).header('idempotent-replayed', 'true').send(rest)
    }
    const body = JSON.stringify(await pay(request.body))
    await keep.call(redis, key, claim, `${fingerprint} ${body}`, TTL_MS)
    return reply.code(201).send(body)
  })
  return app
}

/** An insert and an update with the token, both prepared: no scope, no fence number, no lease, JSON only. */
async function postgresByHand(): Promise<FastifyInstance> {
  const pool = new Pool({ connectionString: postgresUrl, max: POOL_SIZE, idleTimeoutMillis: 0 })
  await pool.query(
    'create table if not exists by_hand (key text primary key, token text not null, fingerprint text not null, body text)',
  )
  const app = Fastify({ bodyLimit: BODY_LIMIT })
  app.post('/', async (request, reply) => {
    const key = String(request.headers['idempotency-key'])
    const token = randomUUID()
    const fingerprint = fingerprintByHand(request)
    const claimed = await pool.query({
      name: 'claim',
      text: 'insert into by_hand (key, token, fingerprint) values ($1, $2, $3) on conflict do nothing',
      values: [key, token, fingerprint],
    })
    reply.type('application/json')
    if (claimed.rowCount === 0) {
      const { rows } = await pool.query<{ fingerprint: string; body: string | null }>({
        name: 'replay',
        text: 'select fingerprint, body from by_hand where key = $1',
        values: [key],
      })
      const [found] = rows
      if (found?.fingerprint !== fingerprint) return reply.code(422).send('{}')
      if (found.body === null) return reply.code(409).send('{}')
      return reply.code(201).header('idempotent-replayed', 'true').send(found.body)
    }
    const body = JSON.stringify(await pay(request.body))
    await pool.query({
      name: 'keep',
      text: 'update by_hand set body = $3 where key = $1 and token = $2',
      values: [key, token, body],
    })
    return reply.code(201).send(body)
  })
  return app
}

async function postgres(options: { readonly prepare: boolean; readonly replayCache?: false }) {
  const { prepare, ...rest } = options
  const pool = new Pool({ connectionString: postgresUrl, max: POOL_SIZE, idleTimeoutMillis: 0 })
  const store = postgresStore(pool, { prepare })
  await store.migrate()
  return protectedBy(store, rest)
}

function expressApp(protection?: ReturnType<typeof expressIdempotency>): Express {
  const app = express()
  app.disable('x-powered-by')
  app.use(express.json({ limit: BODY_LIMIT }))
  const handlers = protection === undefined ? [] : [protection()]
  app.post('/', ...handlers, async (request, response) => {
    response.status(201).json(await pay(request.body))
  })
  return app
}

async function build(): Promise<FastifyInstance | Express> {
  switch (variant) {
    case 'bare':
      return bare()
    case 'unprotected route':
      return unprotectedRoute()
    case 'memory':
      return protectedBy(bigMemoryStore())
    case 'memory by hand':
      return memoryByHand()
    case 'redis':
      return protectedBy(redisStore(new Redis(redisUrl)))
    case 'redis without cache':
      return protectedBy(redisStore(new Redis(redisUrl)), { replayCache: false })
    case 'redis by hand':
      return redisByHand()
    case 'postgres':
      return postgres({ prepare: true })
    case 'postgres without cache':
      return postgres({ prepare: true, replayCache: false })
    case 'postgres unprepared':
      return postgres({ prepare: false })
    case 'postgres by hand':
      return postgresByHand()
    case 'express bare':
      return expressApp()
    case 'express memory':
      return expressApp(expressIdempotency({ store: bigMemoryStore(), scope: 'shared' }))
  }
}

function listen(app: FastifyInstance | Express): Promise<string> {
  if ('inject' in app) return app.listen({ port: 0, host: '127.0.0.1' })
  return new Promise((resolve) => {
    const server = app.listen(0, '127.0.0.1', () => {
      const address = server.address()
      resolve(`http://127.0.0.1:${typeof address === 'object' ? address?.port : ''}`)
    })
  })
}

tellCpuTime()
process.stdout.write(`${await listen(await build())}\n`)
