import type { PGlite, Transaction } from '@electric-sql/pglite'
import Fastify, { type FastifyInstance } from 'fastify'
import idempotency from 'oncekey/fastify'
import { pglite, postgresStore } from 'oncekey/postgres'
import type { Basket, ServiceParts } from './service.js'

/** How many lamps there are at first. */
export const LAMPS = 1000

/** Puts goods aside. The stock, the reservation and the answer are one commit. */
export async function buildInventory(
  db: PGlite,
  { heedsKeys, dieAt }: ServiceParts,
): Promise<FastifyInstance> {
  const store = postgresStore(pglite(db))
  await store.migrate()
  await db.exec(`
    create table if not exists stock (item text primary key, count int not null check (count >= 0));
    insert into stock values ('lamp', ${LAMPS}) on conflict do nothing;
    create table if not exists reservations (
      id serial primary key, basket text not null, item text not null references stock
    );
  `)

  const app = Fastify()
  await app.register(idempotency, { store, scope: 'shared', lease: '2s' })

  app.post<{ Body: Omit<Basket, 'price'> }>(
    '/reservations',
    { config: { idempotency: heedsKeys && { required: true, atomic: true } } },
    async (request, reply) => {
      const { basket, item } = request.body
      return request.idempotency.transaction(async (tx: Transaction) => {
        await tx.query('update stock set count = count - 1 where item = $1', [item])
        // In the middle of a transaction: Postgres takes the stock's change back.
        dieAt(basket)
        const { rows } = await tx.query<{ id: number }>(
          'insert into reservations (basket, item) values ($1, $2) returning id',
          [basket, item],
        )
        reply.code(201)
        return { reservation: rows[0]?.id ?? 0 }
      })
    },
  )

  app.get('/reservations', async () => {
    const { rows } = await db.query('select id, basket from reservations order by id')
    return rows
  })

  app.get('/stock', async () => {
    const { rows } = await db.query<{ count: number }>(`select count from stock where item = 'lamp'`)
    return rows[0]
  })
  return app
}
