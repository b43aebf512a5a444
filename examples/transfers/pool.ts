import type { FastifyInstance } from 'fastify'
import { ATOMIC, InsufficientFunds, type TransferRequest } from './transfer.js'

/** `POST /transfers` in a transaction of the store, with a Pool of `pg`: the money and the answer are one commit. */
export function addTransfers(app: FastifyInstance): void {
  app.post<TransferRequest>('/transfers', ATOMIC, async (request, reply) => {
    const { from, to, amount } = request.body
    return request.idempotency.transaction(async (tx) => {
      const taken = await tx.query(
        'update accounts set balance = balance - $2 where id = $1 and balance >= $2 returning id',
        [from, amount],
      )
      if (taken.rows.length === 0) throw new InsufficientFunds()
      await tx.query('update accounts set balance = balance + $2 where id = $1', [to, amount])
      const made = await tx.query(
        'insert into transfers (from_account, to_account, amount) values ($1, $2, $3) returning id',
        [from, to, amount],
      )

      reply.code(201)
      return { id: made.rows[0].id, from, to, amount }
    })
  })
}
