import type { FastifyInstance } from 'fastify'

/** An order as the customer sends it. */
interface OrderRequest {
  Body: { readonly lines: readonly { readonly item: string; readonly count: number }[] }
}

/** The tables of the recipe. `outbox` is read by whatever publishes its rows, at least once each. */
export const ORDER_TABLES = `
create table if not exists orders (id serial primary key, lines jsonb not null, cents int not null);
create table if not exists prices (item text primary key, cents int not null);
create table if not exists outbox (id text primary key, topic text not null, payload jsonb not null);
`

/** `POST /orders`: the order, its event and the answer are one commit. A second click waits for the first one's answer. */
export function addOrders(app: FastifyInstance): void {
  const config = { idempotency: { required: true, atomic: true, whenBusy: { wait: '5s' } } } as const
  app.post<OrderRequest>('/orders', { config }, (request, reply) =>
    request.idempotency.transaction(async (tx) => {
      const lines = JSON.stringify(request.body.lines)
      const { rows: priced } = await tx.query(
        `select count(p.item)::int as known, sum(p.cents * l.count)::int as cents
         from json_to_recordset($1::json) as l(item text, count int) left join prices p using (item)`,
        [lines],
      )
      const { known, cents } = priced[0]
      if (known !== request.body.lines.length)
        throw Object.assign(new Error('no such item'), { statusCode: 422 })

      const { rows } = await tx.query('insert into orders (lines, cents) values ($1, $2) returning id', [
        lines,
        cents,
      ])
      const order = { id: rows[0].id as number, cents }
      // The same id in every run: whoever publishes the row twice publishes one message.
      await tx.query('insert into outbox (id, topic, payload) values ($1, $2, $3)', [
        request.idempotency.deriveKey('placed'),
        'orders.placed',
        JSON.stringify(order),
      ])
      reply.code(201)
      return order
    }),
  )
}
