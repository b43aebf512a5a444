import type { FastifyInstance, FastifyRequest } from 'fastify'

/** A payment as the provider knows it. */
export interface Charge {
  readonly id: string
  readonly amount: number
}

/** The part of a payment provider's client that is used: it knows a repeated call by its key, and charges by your reference. */
export interface Provider {
  charge(
    charge: { readonly amount: number; readonly reference: string },
    options: { readonly idempotencyKey: string; readonly signal: AbortSignal },
  ): Promise<Charge>
  find(reference: string): Promise<Charge | undefined>
}

/**
 * Nobody knows whether the provider has charged: the connection failed, it answered 5xx, or not in time. 503 is never kept, so a
 * retry runs. It asks under the same key, and need not know either.
 */
export class NoAnswer extends Error {
  readonly statusCode = 503
}

/** `POST /payments`: one charge for a key, whoever dies or loses an answer. The plugin has the option `secret`. */
export function addPayments(
  app: FastifyInstance,
  provider: Provider,
  account: (request: FastifyRequest) => string,
) {
  app.post<{ Body: { readonly amount: number } }>(
    '/payments',
    {
      config: {
        idempotency: {
          required: true,
          ttl: '7d',
          // A process died in the middle. The provider says whether it charged; if not, the same key makes it safe to ask again.
          onUnknown: async ({ scope, key }) => {
            const charge = await provider.find(`${scope}/${key}`)
            return charge === undefined ? 'rerun' : { outcome: { status: 201, body: charge } }
          },
        },
      },
    },
    async (request, reply) => {
      const { idempotency, body } = request
      const charge = await provider.charge(
        { amount: body.amount, reference: `${account(request)}/${idempotency.key}` },
        { idempotencyKey: idempotency.deriveKey('charge'), signal: idempotency.signal },
      )
      return reply.code(201).send(charge)
    },
  )
}
