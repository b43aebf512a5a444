import type { FastifyInstance } from 'fastify'
import type { TransferRequest } from './transfer.js'

/** A system whose effects cannot be rolled back, and that knows a repeated call by its key. */
export interface Provider {
  charge(
    order: TransferRequest['Body'],
    options: { readonly idempotencyKey: string },
  ): Promise<{ id: string }>
}

/** `POST /orders`: a call that every run makes with the same key, and a commit of what came of it. */
export function addOrders(app: FastifyInstance, provider: Provider): void {
  const config = {
    idempotency: { required: true, onUnknown: 'rerun', transaction: { lockTimeout: '500ms' } },
  } as const
  app.post<TransferRequest>('/orders', { config }, async (request, reply) => {
    const idempotencyKey = request.idempotency.deriveKey('charge')
    const charge = await provider.charge(request.body, { idempotencyKey })
    return request.idempotency.transaction(async (tx) => {
      await tx.query('insert into orders (charge) values ($1)', [charge.id])
      reply.code(201)
      return { charge: charge.id }
    })
  })
}
