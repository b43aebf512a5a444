import type { FastifyInstance } from 'fastify'
import { CompiledQuery, type Generated, type Kysely } from 'kysely'
import { ATOMIC, InsufficientFunds, type TransferRequest } from './transfer.js'

/** The tables of the example. */
export interface Tables {
  readonly accounts: { readonly id: string; readonly balance: number }
  readonly transfers: {
    readonly id: Generated<number>
    readonly from_account: string
    readonly to_account: string
    readonly amount: number
  }
}

/** `POST /transfers` with Kysely: the money and the answer are one commit. */
export function addTransfers(app: FastifyInstance, db: Kysely<Tables>): void {
  app.post<TransferRequest>('/transfers', ATOMIC, async (request, reply) => {
    const { from, to, amount } = request.body
    const transfer = await db.transaction().execute(async (tx) => {
      const taken = await tx
        .updateTable('accounts')
        .set((account) => ({ balance: account('balance', '-', amount) }))
        .where('id', '=', from)
        .where('balance', '>=', amount)
        .executeTakeFirst()
      if (taken.numUpdatedRows === 0n) throw new InsufficientFunds()
      await tx
        .updateTable('accounts')
        .set((account) => ({ balance: account('balance', '+', amount) }))
        .where('id', '=', to)
        .execute()
      const { id } = await tx
        .insertInto('transfers')
        .values({ from_account: from, to_account: to, amount })
        .returning('id')
        .executeTakeFirstOrThrow()

      const body = { id, from, to, amount }
      await request.idempotency.saveIn((text, values) => tx.executeQuery(CompiledQuery.raw(text, values)), {
        status: 201,
        body,
      })
      return body
    })
    return reply.code(201).send(transfer)
  })
}
