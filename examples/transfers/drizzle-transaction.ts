import { drizzle } from 'drizzle-orm/node-postgres'
import type { FastifyInstance } from 'fastify'
import type { PoolClient } from 'pg'
import { moveMoney } from './drizzle.js'
import { ATOMIC, type TransferRequest } from './transfer.js'

/** `POST /transfers` with Drizzle in a transaction of the store: the money and the answer are one commit. */
export function addTransfers(app: FastifyInstance): void {
  app.post<TransferRequest>('/transfers', ATOMIC, async (request, reply) =>
    request.idempotency.transaction(async (client: PoolClient) => {
      const transfer = await moveMoney(drizzle({ client }), request.body)

      reply.code(201)
      return transfer
    }),
  )
}
