import type { PGlite, Transaction } from '@electric-sql/pglite'
import Fastify, { type FastifyInstance } from 'fastify'
import idempotency from 'oncekey/fastify'
import { pglite, postgresStore } from 'oncekey/postgres'
import { ask } from './ask.js'
import type { Basket, ServiceParts } from './service.js'

/** What a customer gets: the numbers of the order, of its payment and of its reservation. */
export interface Receipt {
  readonly order: number
  readonly payment: number
  readonly reservation: number
}

/**
 * Takes orders: has them paid, has the goods put aside, and writes them down. The two calls go by derived keys, and the
 * order commits together with the answer. So a run that stopped anywhere may be run again: `onUnknown: 'rerun'`.
 */
export async function buildOrders(
  db: PGlite,
  { urls, secret, heedsKeys, dieAt }: ServiceParts,
): Promise<FastifyInstance> {
  const store = postgresStore(pglite(db))
  await store.migrate()
  await db.exec(`create table if not exists orders (
    id serial primary key, basket text not null, payment int not null, reservation int not null
  )`)

  const app = Fastify()
  await app.register(idempotency, { store, scope: 'shared', secret, lease: '2s' })

  app.post<{ Body: Basket }>(
    '/orders',
    { config: { idempotency: heedsKeys && { required: true, onUnknown: 'rerun' } } },
    async (request, reply) => {
      const { basket, item, price } = request.body
      const { payment } = await ask<{ payment: number }>(request, {
        url: `${urls.payments}/payments`,
        label: 'payment',
        body: { basket, price },
      })
      // Paid, and nothing is put aside yet.
      dieAt(basket)
      const { reservation } = await ask<{ reservation: number }>(request, {
        url: `${urls.inventory}/reservations`,
        label: 'reservation',
        body: { basket, item },
      })
      return request.idempotency.transaction(async (tx: Transaction): Promise<Receipt> => {
        const { rows } = await tx.query<{ id: number }>(
          'insert into orders (basket, payment, reservation) values ($1, $2, $3) returning id',
          [basket, payment, reservation],
        )
        reply.code(201)
        return { order: rows[0]?.id ?? 0, payment, reservation }
      })
    },
  )

  app.get('/orders', async () => {
    const { rows } = await db.query('select id, basket, payment, reservation from orders order by id')
    return rows
  })
  return app
}
