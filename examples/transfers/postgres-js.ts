import type { FastifyInstance } from 'fastify'
import type { TransactionSql } from 'postgres'
import { ATOMIC, InsufficientFunds, type TransferRequest } from './transfer.js'

/** `POST /transfers` in a transaction of the store, with `postgresJs(sql)`: the money and the answer are one commit. */
export function addTransfers(app: FastifyInstance): void {
  app.post<TransferRequest>('/transfers', ATOMIC, async (request, reply) => {
    const { from, to, amount } = request.body
    return request.idempotency.transaction(async (sql: TransactionSql) => {
      const taken = await sql`
        update accounts set balance = balance - ${amount} where id = ${from} and balance >= ${amount} returning id`
      if (taken.length === 0) throw new InsufficientFunds()
      await sql`update accounts set balance = balance + ${amount} where id = ${to}`
      const [made] = await sql`
        insert into transfers (from_account, to_account, amount) values (${from}, ${to}, ${amount}) returning id`

      reply.code(201)
      return { id: made?.id, from, to, amount }
    })
  })
}
