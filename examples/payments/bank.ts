import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import { type IdempotencyStore, memoryStore } from 'oncekey'
import type { AuditLogger } from 'oncekey/console'
import idempotency from 'oncekey/fastify'
import { collectMetrics } from 'oncekey/prometheus'
import { Registry } from 'prom-client'
import { mountConsole } from './console.js'
import { PAGE_ADDRESSES, servePage } from './demo-page.js'
import { createFeed } from './feed.js'
import type { Ledger, Refusal, Transfer } from './ledger.js'
import { createTrouble, keyEventOf, referenceOf } from './trouble.js'

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

/** What tests hold still, or look into. */
export interface BankOptions {
  /** Where keys live. */
  readonly store?: IdempotencyStore
  /** What a slow bank waits for before it moves money. */
  readonly slowness?: () => Promise<unknown>
  /** How long a handler may hold its claim, before nobody knows how it ended. */
  readonly maxRunMs?: number
  /** Where the lines about settled and released transfers go. Standard output, if it is not said. */
  readonly audit?: AuditLogger
}

/** A small bank. `POST /transfers` moves money once for every `Idempotency-Key`, however often it is sent. */
export async function buildBank(ledger: Ledger, options: BankOptions = {}): Promise<FastifyInstance> {
  // Pages hold connections open, and events never end: closing does not wait for them.
  const app = Fastify({ forceCloseConnections: true })
  const feed = createFeed()
  const trouble = createTrouble(feed, options.slowness)

  app.addHook('onRequest', async (request, reply) => {
    const { url = '' } = request.routeOptions
    // The console asks for a password of its own.
    const isOpen = url === '/metrics' || PAGE_ADDRESSES.test(url) || /^\/console(\/|$)/.test(url)
    if (!isOpen && userOf(request) === '')
      return reply.code(401).send({ error: 'say who you are: Authorization: Bearer alice' })
  })

  await app.register(idempotency, {
    store: options.store ?? memoryStore(),
    scope: userOf,
    ttl: '24h',
  })

  const register = new Registry()
  const stopMetrics = collectMetrics(app.idempotency, { register })
  app.get('/metrics', async (_request, reply) => {
    reply.type(register.contentType)
    return register.metrics()
  })
  app.idempotency.on((event) => {
    const told = keyEventOf(event)
    if (told) feed.tell(told)
  })
  await servePage(app, { feed, ledger })

  await mountConsole(app, options.audit)

  app.get('/accounts', () => ledger.accounts())
  app.get('/transfers', () => ledger.transfers(50))

  const transfer = async (request: FastifyRequest, reply: FastifyReply) => {
    await trouble.beforeEffect(request)
    const result = await ledger.transfer(request.body as Omit<Transfer, 'id'>, referenceOf(request))
    if (typeof result === 'string') return reply.code(STATUS[result]).send({ error: result })
    await trouble.afterEffect(request, result)
    return reply.code(201).send(result)
  }
  // A run that does not come back is given up soon, so that a visitor need not wait for five minutes to see an unknown outcome.
  const { maxRunMs = 6000 } = options
  const once = { required: true, ttl: '7d', maxRun: maxRunMs, lease: Math.min(maxRunMs, 3000) } as const
  app.post(
    '/transfers',
    { schema: transferSchema, config: { idempotency: once }, ...trouble.hooks },
    transfer,
  )
  // For the demo only: the same without protection, to see what it is for.
  app.post(
    '/unprotected/transfers',
    { schema: transferSchema, config: { idempotency: false }, ...trouble.hooks },
    transfer,
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
