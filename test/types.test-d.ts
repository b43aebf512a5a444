import { PGlite, type Transaction } from '@electric-sql/pglite'
import { drizzle } from 'drizzle-orm/node-postgres'
import express from 'express'
import express4 from 'express-4'
import Fastify from 'fastify'
import { Cluster, Redis } from 'ioredis'
import { Cluster as Cluster5, Redis as Redis5 } from 'ioredis-5'
import {
  createIdempotency,
  type Idempotency,
  type IdempotencyStore,
  memoryStore,
  sealedStore,
  type TransactionClient,
  tieredStore,
} from 'oncekey'
import {
  type CallError,
  type CallOptions,
  createFetch,
  deriveFrom,
  forgetOperation,
  type RetryingFetch,
  retryDelayMs,
} from 'oncekey/client'
import {
  type ExpressHandler,
  idempotency as expressIdempotency,
  noteReceivedBytes,
  type Once,
} from 'oncekey/express'
import idempotency, { type RequestIdempotency } from 'oncekey/fastify'
import { type PostgresDriver, pglite, postgresJs, postgresStore } from 'oncekey/postgres'
import { redisStore } from 'oncekey/redis'
import { Pool, type PoolClient } from 'pg'
import postgres, { type TransactionSql } from 'postgres'
import { expectTypeOf } from 'vitest'

const app = Fastify()
await app.register(idempotency, {
  scope: (request) => request.ip,
  store: redisStore(new Redis()),
  ttl: '24h',
})
// @ts-expect-error the scope is required
await app.register(idempotency, { store: memoryStore() })

app.post('/payments', { config: { idempotency: { required: true, ttl: '7d' } } }, (request) => {
  expectTypeOf(request.idempotency).toEqualTypeOf<RequestIdempotency>()
  expectTypeOf(request.idempotency.key).toEqualTypeOf<string | undefined>()
  return ''
})
app.post('/search', { config: { idempotency: false } }, () => '')
// @ts-expect-error a duration has a unit
app.post('/typo', { config: { idempotency: { ttl: '7 days' } } }, () => '')
expectTypeOf(app.idempotency).toEqualTypeOf<Idempotency>()

const once = expressIdempotency({ store: memoryStore(), scope: (req) => req.get('x-account') ?? 'nobody' })
expectTypeOf(once).toEqualTypeOf<Once>()
expectTypeOf(once.engine).toEqualTypeOf<Idempotency>()
expectTypeOf(once({ required: true, ttl: '7d' })).toEqualTypeOf<ExpressHandler>()
// @ts-expect-error the scope is required
expressIdempotency({ store: memoryStore() })
// @ts-expect-error a duration has a unit
once({ ttl: '7 days' })
// @ts-expect-error the scope is said once, for all routes
once({ scope: 'shared' })

const app5 = express()
app5.use(express.json({ verify: noteReceivedBytes }), once())
app5.post('/orders/:id', once({ key: (req) => req.body.id }), async (req, res) => {
  expectTypeOf(req.params.id).toEqualTypeOf<string>()
  expectTypeOf(req.idempotency).toEqualTypeOf<RequestIdempotency>()
  await req.idempotency.transaction(async (tx: PoolClient) => {
    await tx.query('select 1')
    return res.status(201).json({})
  })
})
app5.post('/own', expressIdempotency({ scope: (req: express.Request) => req.hostname })({ keep: () => true }))

const app4 = express4()
app4.use(express4.json({ verify: noteReceivedBytes }), once())
app4.post('/orders/:id', once({ fingerprint: (req) => req.body.amount }), (req, res) => {
  expectTypeOf(req.params.id).toEqualTypeOf<string>()
  expectTypeOf(req.idempotency).toEqualTypeOf<RequestIdempotency>()
  res.send(req.idempotency.key)
})
app4.post('/own', expressIdempotency({ scope: (req: express4.Request) => req.hostname })())

expectTypeOf(redisStore(new Cluster([]))).toEqualTypeOf<IdempotencyStore>()
expectTypeOf(redisStore(new Redis5())).toEqualTypeOf<IdempotencyStore>()
const waitReplicas = { count: 1, timeout: '500ms' } as const
for (const client of [new Redis(), new Redis5(), new Cluster([]), new Cluster5([])])
  expectTypeOf(redisStore(client, { waitReplicas })).toEqualTypeOf<IdempotencyStore>()
// @ts-expect-error how many replicas must be said
redisStore(new Redis(), { waitReplicas: {} })
expectTypeOf(postgresStore(new Pool()).migrate).returns.toEqualTypeOf<Promise<void>>()

const durable = sealedStore(postgresStore(new Pool()), { keys: ['c2VjcmV0', new Uint8Array(32)] })
expectTypeOf(durable).toEqualTypeOf<IdempotencyStore>()
const tiered = tieredStore({ durable, replays: redisStore(new Redis()), replaysTimeout: '50ms' })
expectTypeOf(tiered).toEqualTypeOf<IdempotencyStore>()
// @ts-expect-error the keys are required
sealedStore(memoryStore(), {})
// @ts-expect-error a tier is required
tieredStore({ durable })

const { run } = createIdempotency({ lease: '30s', maxRun: 60_000 })
expectTypeOf(await run({ scope: 'a', key: 'k' }, () => ({ id: 1 }))).toEqualTypeOf<{ id: number }>()
// @ts-expect-error a duration has a unit
createIdempotency({ ttl: '24 hours' })

const sql = postgres('postgres://localhost')
expectTypeOf(postgresJs(sql)).toEqualTypeOf<PostgresDriver>()
expectTypeOf(
  postgresJs(postgres({ types: { bigint: postgres.BigInt }, transform: postgres.camel })),
).toEqualTypeOf<PostgresDriver>()
expectTypeOf(pglite(new PGlite())).toEqualTypeOf<PostgresDriver>()
postgresStore(postgresJs(sql), { prepare: true })
// @ts-expect-error a client of postgres.js goes through postgresJs()
postgresStore(sql)

const { transaction, saveIn } = app.idempotency as unknown as RequestIdempotency
expectTypeOf(
  await transaction(async (tx) => {
    expectTypeOf(tx).toEqualTypeOf<TransactionClient>()
    const { rows } = await tx.query<{ id: number }>('select 1 as id', [])
    return rows
  }),
).toEqualTypeOf<{ id: number }[]>()
await transaction(async (tx: PoolClient) => tx.query({ text: 'select 1', name: 'one' }))
await transaction(async (tx: PoolClient) => drizzle({ client: tx }).execute('select 1'))
await transaction(async (tx: Transaction) => tx.sql`select 1`)
await transaction(async (tx: TransactionSql) => tx.savepoint((inner) => inner`select 1`))
await run({ scope: 'a', key: 'k' }, (execution) =>
  execution.transaction(async (tx: TransactionSql) => [...(await tx`select 1 as one`)]),
)

await sql.begin(async (tx) => saveIn((text, values) => tx.unsafe(text, values), { status: 201 }))
await sql.begin(async (tx) => saveIn((_text, values, strings) => tx(strings, ...values), { status: 201 }))
const db = new PGlite()
await db.transaction(async (tx) => saveIn((text, values) => tx.query(text, values), { status: 201 }))
// @ts-expect-error a response has a status
await saveIn(async () => [], { body: 'done' })
// @ts-expect-error what runs a statement gives its rows
await saveIn(async () => 1, { status: 201 })

const retrying = createFetch({ retries: 3, backoff: { base: '100ms' }, deadline: '10s', storage: new Map() })
expectTypeOf(retrying).toEqualTypeOf<RetryingFetch>()
expectTypeOf(retrying).toExtend<typeof fetch>()
expectTypeOf(
  await retrying('http://pay.example', { method: 'POST', idempotency: {} }),
).toEqualTypeOf<Response>()
await retrying(new URL('http://pay.example'), { idempotency: { key: 'order-42', timeout: '5s' } })
await retrying('http://pay.example', { idempotency: { operation: 'checkout-42', retries: 1 } })
await retrying('http://pay.example', { idempotency: false })
app.post('/orders', async (request) => {
  await retrying('http://pay.example', {
    idempotency: { ...deriveFrom(request.idempotency, 'psp'), retries: 1 },
  })
})
await run({ scope: 'a', key: 'k' }, (execution) =>
  retrying('http://pay.example', { idempotency: deriveFrom(execution, 'psp') }),
)
// @ts-expect-error a call names a key or an operation
await retrying('http://pay.example', { idempotency: { key: 'a', operation: 'b' } })
const derived = deriveFrom({ deriveKey: String }, 'payment')
// @ts-expect-error a key that comes from elsewhere leaves no room for an operation
await retrying('http://pay.example', { idempotency: { ...derived, operation: 'b' } })
// @ts-expect-error there is no such option
await retrying('http://pay.example', { idempotency: { retry: 1 } })
// @ts-expect-error a duration has a unit
createFetch({ timeout: '5 seconds' })
// @ts-expect-error methods are compared in upper case
createFetch({ methods: ['post'] })
// @ts-expect-error a storage can set, too
createFetch({ storage: { get: () => null } })
expectTypeOf(retryDelayMs).returns.toBeNumber()
expectTypeOf(forgetOperation).returns.toEqualTypeOf<Promise<void>>()
expectTypeOf<CallError['response']>().toEqualTypeOf<Response | undefined>()
expectTypeOf<CallOptions['key']>().toEqualTypeOf<string | undefined>()
