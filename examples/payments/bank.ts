import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import { memoryStore } from 'oncekey'
import idempotency from 'oncekey/fastify'
import { collectMetrics } from 'oncekey/prometheus'
import { Registry } from 'prom-client'
import { mountConsole } from './console.js'
import type { Ledger, Refusal, Transfer } from './ledger.js'

const STATUS: Readonly<Record<Refusal, number>> = { 'no such account': 404, 'insufficient funds': 402 }

const transferSchema = {
  body: {
    type: 'object',
    required: ['from', 'to', 'amount'],
    additionalProperties: false,
    properties: {
      from: { type: 'string' },
      to: { type: 'string' },
      amount: { type: 'integer', minimum: 1 },
    },
  },
}

/** A small bank. `POST /transfers` moves money once for every `Idempotency-Key`, however often it is sent. */
export async function buildBank(ledger: Ledger): Promise<FastifyInstance> {
  const app = Fastify()

  app.addHook('onRequest', async (request, reply) => {
    const { url = '' } = request.routeOptions
    // The console asks for a password of its own.
    if (url !== '/metrics' && !/^\/console(\/|$)/.test(url) && userOf(request) === '')
      return reply.code(401).send({ error: 'say who you are: Authorization: Bearer alice' })
  })

  await app.register(idempotency, {
    store: memoryStore(),
    scope: userOf,
    ttl: '24h',
  })

  const register = new Registry()
  const stopMetrics = collectMetrics(app.idempotency, { register })
  app.get('/metrics', async (_request, reply) => {
    reply.type(register.contentType)
    return register.metrics()
  })

  await mountConsole(app)

  app.get('/accounts', () => ledger.accounts())

  app.post<{ Body: Omit<Transfer, 'id'> }>(
    '/transfers',
    { schema: transferSchema, config: { idempotency: { required: true, ttl: '7d' } } },
    async (request, reply) => {
      const result = await ledger.transfer(request.body)
      if (typeof result === 'string') return reply.code(STATUS[result]).send({ error: result })
      return reply.code(201).send(result)
    },
  )

  app.addHook('onClose', async () => {
    stopMetrics()
    await ledger.close()
  })
  return app
}

/** Stands for real authentication: the token is the user's name. */
function userOf(request: FastifyRequest): string {
  return request.headers.authorization?.match(/^Bearer (\w+)$/)?.[1] ?? ''
}
