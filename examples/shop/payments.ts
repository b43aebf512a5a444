import type { PGlite, Transaction } from '@electric-sql/pglite'
import Fastify, { type FastifyInstance } from 'fastify'
import idempotency from 'oncekey/fastify'
import { pglite, postgresStore } from 'oncekey/postgres'
import type { Basket, ServiceParts } from './service.js'

/** Takes money. The payment and the answer are one commit: both are there, or neither. */
export async function buildPayments(
  db: PGlite,
  { heedsKeys, dieAt }: ServiceParts,
): Promise<FastifyInstance> {
  const store = postgresStore(pglite(db))
  await store.migrate()
  await db.exec(
    'create table if not exists payments (id serial primary key, basket text not null, price int not null)',
  )

  const app = Fastify()
  await app.register(idempotency, { store, scope: 'shared', lease: '2s' })

  app.post<{ Body: Omit<Basket, 'item'> }>(
    '/payments',
    { config: { idempotency: heedsKeys && { required: true, atomic: true } } },
    async (request, reply) => {
      const { basket, price } = request.body
      const paid = await request.idempotency.transaction(async (tx: Transaction) => {
        const { rows } = await tx.query<{ id: number }>(
          'insert into payments (basket, price) values ($1, $2) returning id',
          [basket, price],
        )
        reply.code(201)
        return { payment: rows[0]?.id ?? 0 }
      })
      // Committed, and nobody is told.
      dieAt(basket)
      return paid
    },
  )

  app.get('/payments', async () => {
    const { rows } = await db.query('select id, basket from payments order by id')
    return rows
  })
  return app
}
