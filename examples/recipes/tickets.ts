import type { Transaction } from '@electric-sql/pglite'
import type { FastifyInstance } from 'fastify'
import type { IdempotencyStore } from 'oncekey'
import idempotency from 'oncekey/fastify'

/** The tables of the recipe. */
export const TICKET_TABLES = `
create table if not exists seats (seat text primary key, holder text, is_paid boolean not null default false);
`

/** An event of the payment provider. It sends each at least once, with another `attempt` every time. */
interface PaymentEvent {
  readonly id: string
  readonly attempt: number
  readonly data: { readonly seat: string; readonly status: 'paid' | 'failed' }
}

/** `POST /seats/:seat`: a seat has one holder, and the holder's retry gets the seat again. */
export async function addSeats(app: FastifyInstance, store: IdempotencyStore): Promise<void> {
  const customer = (request: { readonly headers: object }) =>
    String((request.headers as { 'x-account'?: string })['x-account'] ?? '')
  await app.register(idempotency, { store, scope: customer, namespace: 'customers' })

  app.post<{ Params: { readonly seat: string } }>(
    '/seats/:seat',
    { config: { idempotency: { required: true, atomic: true } } },
    (request, reply) =>
      request.idempotency.transaction(async (tx: Transaction) => {
        const { seat } = request.params
        const taken = await tx.query(
          'update seats set holder = $2 where seat = $1 and holder is null returning seat',
          [seat, customer(request)],
        )
        // Final, and kept: the retry of a loser stays a loser, even when the seat has become free.
        if (taken.rows.length === 0) throw Object.assign(new Error('this seat is taken'), { statusCode: 409 })
        reply.code(201)
        return { seat }
      }),
  )
}

/** `POST /webhooks/payments`: each event of the provider takes effect once. `isGenuine` checks its signature. */
export async function addWebhooks(
  app: FastifyInstance,
  store: IdempotencyStore,
  isGenuine: (request: { readonly headers: object; readonly body: unknown }) => boolean,
): Promise<void> {
  await app.register(idempotency, { store, scope: () => 'payment-provider', namespace: 'webhooks' })
  app.addHook('preHandler', async (request, reply) => {
    if (!isGenuine(request)) return reply.code(401).send()
  })

  app.post<{ Body: PaymentEvent }>(
    '/webhooks/payments',
    {
      config: {
        idempotency: {
          required: true,
          atomic: true,
          ttl: '30d',
          key: (request) => (request.body as PaymentEvent).id,
          // `attempt` is another in each delivery of the same event.
          fingerprint: (request) => (request.body as PaymentEvent).data,
        },
      },
    },
    (request) =>
      request.idempotency.transaction(async (tx: Transaction) => {
        const { seat, status } = request.body.data
        if (status === 'paid') await tx.query('update seats set is_paid = true where seat = $1', [seat])
        else await tx.query('update seats set holder = null where seat = $1 and not is_paid', [seat])
        return { received: true }
      }),
  )
}
