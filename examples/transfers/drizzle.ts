import { and, eq, gte, sql } from 'drizzle-orm'
import type { NodePgDatabase } from 'drizzle-orm/node-postgres'
import { integer, pgTable, serial, text } from 'drizzle-orm/pg-core'
import type { FastifyInstance } from 'fastify'
import { ATOMIC, InsufficientFunds, type TransferRequest } from './transfer.js'

const accounts = pgTable('accounts', {
  id: text().primaryKey(),
  balance: integer().notNull(),
})

const transfers = pgTable('transfers', {
  id: serial().primaryKey(),
  from: text('from_account').notNull(),
  to: text('to_account').notNull(),
  amount: integer().notNull(),
})

/** `POST /transfers` with Drizzle: the money and the answer are one commit. */
export function addTransfers(app: FastifyInstance, db: NodePgDatabase): void {
  app.post<TransferRequest>('/transfers', ATOMIC, async (request, reply) => {
    const transfer = await db.transaction(async (tx) => {
      const made = await moveMoney(tx, request.body)

      await request.idempotency.saveIn((_text, values, strings) => tx.execute(sql(strings, ...values)), {
        status: 201,
        body: made,
      })
      return made
    })
    return reply.code(201).send(transfer)
  })
}

/** Moves the money in a transaction. */
export async function moveMoney(
  tx: Pick<NodePgDatabase, 'update' | 'insert'>,
  { from, to, amount }: TransferRequest['Body'],
) {
  const taken = await tx
    .update(accounts)
    .set({ balance: sql`${accounts.balance} - ${amount}` })
    .where(and(eq(accounts.id, from), gte(accounts.balance, amount)))
    .returning({ id: accounts.id })
  if (taken.length === 0) throw new InsufficientFunds()
  await tx
    .update(accounts)
    .set({ balance: sql`${accounts.balance} + ${amount}` })
    .where(eq(accounts.id, to))
  const [made] = await tx.insert(transfers).values({ from, to, amount }).returning()
  return made
}
