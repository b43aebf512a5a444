import { appendFileSync } from 'node:fs'
import Fastify from 'fastify'
import { Redis } from 'ioredis'
import idempotency, { type FastifyIdempotencyOptions } from 'oncekey/fastify'
import { postgresStore } from 'oncekey/postgres'
import { redisStore } from 'oncekey/redis'
import { Pool } from 'pg'

/** How a server under test is set up: the first argument, as JSON. */
export interface PaymentServerOptions {
  readonly store: 'redis' | 'postgres'
  readonly url: string
  /** Where every effect becomes a line, which outlives the process. */
  readonly ledger: string
  readonly plugin?: Pick<FastifyIdempotencyOptions, 'lease' | 'namespace'> & {
    readonly onUnknown?: 'reject' | 'rerun'
  }
  /** The answer that an unknown payment turns out to have had. */
  readonly reconciled?: { readonly id: string }
}

const options = JSON.parse(process.argv[2] ?? '{}') as PaymentServerOptions
const { reconciled } = options
const store =
  options.store === 'redis'
    ? redisStore(new Redis(options.url))
    : postgresStore(new Pool({ connectionString: options.url, max: 10 }))

const app = Fastify()
await app.register(idempotency, {
  store,
  scope: 'shared',
  ...options.plugin,
  ...(reconciled !== undefined && { onUnknown: () => ({ outcome: { status: 201, body: reconciled } }) }),
})

app.post('/payments', async (request, reply) => {
  const { key, fence } = request.idempotency
  appendFileSync(options.ledger, `${key} ${fence}\n`)
  // The test kills this process here, after the effect and before the answer.
  if (request.headers['x-hold'] === String(fence)) await new Promise(() => {})
  return reply.code(201).send({ id: `payment of ${key}`, fence })
})

const address = await app.listen({ port: 0, host: '127.0.0.1' })
process.stdout.write(`${address}\n`)
