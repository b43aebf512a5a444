import Fastify from 'fastify'
import { Cluster, Redis } from 'ioredis'
import { Redis as Redis5 } from 'ioredis-5'
import {
  createIdempotency,
  type Idempotency,
  type IdempotencyStore,
  memoryStore,
  sealedStore,
  tieredStore,
} from 'oncekey'
import idempotency, { type RequestIdempotency } from 'oncekey/fastify'
import { postgresStore } from 'oncekey/postgres'
import { redisStore } from 'oncekey/redis'
import { Pool } from 'pg'
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

expectTypeOf(redisStore(new Cluster([]))).toEqualTypeOf<IdempotencyStore>()
expectTypeOf(redisStore(new Redis5())).toEqualTypeOf<IdempotencyStore>()
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
