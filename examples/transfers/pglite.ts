import type { Transaction } from '@electric-sql/pglite'
import type { FastifyInstance } from 'fastify'
import { ATOMIC, InsufficientFunds, type TransferRequest } from './transfer.js'

/** `POST /transfers` in a transaction of the store, with `pglite(db)`: the money and the answer are one commit. */
export function addTransfers(app: FastifyInstance): void {
  app.post<TransferRequest>('/transfers', ATOMIC, async (request, reply) => {
    const { from, to, amount } = request.body
    return request.idempotency.transaction(async (tx: Transaction) => {
      const taken = await tx.sql`
        update accounts set balance = balance - ${amount} where id = ${from} and balance >= ${amount} returning id`
      if (taken.rows.length === 0) throw new InsufficientFunds()
      await tx.sql`update accounts set balance = balance + ${amount} where id = ${to}`
      const made = await tx.sql<{ id: number }>`
        insert into transfers (from_account, to_account, amount) values (${from}, ${to}, ${amount}) returning id`

      reply.code(201)
      return { id: made.rows[0]?.id, from, to, amount }
    })
  })
}
