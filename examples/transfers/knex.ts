import type { FastifyInstance } from 'fastify'
import type { Knex } from 'knex'
import { ATOMIC, InsufficientFunds, type TransferRequest } from './transfer.js'

/** `POST /transfers` with Knex: the money and the answer are one commit. */
export function addTransfers(app: FastifyInstance, knex: Knex): void {
  app.post<TransferRequest>('/transfers', ATOMIC, async (request, reply) => {
    const { from, to, amount } = request.body
    const transfer = await knex.transaction(async (tx) => {
      const taken = await tx('accounts')
        .where({ id: from })
        .andWhere('balance', '>=', amount)
        .decrement('balance', amount)
      if (taken === 0) throw new InsufficientFunds()
      await tx('accounts').where({ id: to }).increment('balance', amount)
      const [made] = await tx('transfers')
        .insert({ from_account: from, to_account: to, amount })
        .returning('id')

      const body = { id: made.id, from, to, amount }
      await request.idempotency.saveIn((_text, values, strings) => tx.raw(strings.join('?'), values), {
        status: 201,
        body,
      })
      return body
    })
    return reply.code(201).send(transfer)
  })
}
