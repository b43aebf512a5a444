import Fastify, { type FastifyInstance } from 'fastify'
import { memoryStore } from 'oncekey'
import idempotency from 'oncekey/fastify'
import { ask } from './ask.js'
import type { Receipt } from './orders.js'
import type { Basket, ServiceParts } from './service.js'

/**
 * What customers talk to. It has no database. When it dies it forgets all keys, and nothing is lost by that: its one effect
 * is a call, and for the same key of the customer it makes the same key for that call again.
 */
export async function buildGateway({
  urls,
  secret,
  heedsKeys,
  dieAt,
}: ServiceParts): Promise<FastifyInstance> {
  const app = Fastify()
  await app.register(idempotency, {
    store: memoryStore(),
    // Stands for real authentication.
    scope: (request) => String(request.headers['x-customer']),
    secret,
    lease: '2s',
  })

  app.post<{ Body: Basket }>(
    '/checkout',
    { config: { idempotency: heedsKeys && { required: true, onUnknown: 'rerun' } } },
    async (request, reply) => {
      const receipt = await ask<Receipt>(request, {
        url: `${urls.orders}/orders`,
        label: 'order',
        body: request.body,
      })
      // Ordered, and the customer is not told.
      dieAt(request.body.basket)
      return reply.code(201).send(receipt)
    },
  )
  return app
}
