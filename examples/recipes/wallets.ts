import type { FastifyInstance, FastifyRequest } from 'fastify'

/** The tables of the recipe. The sum of a wallet's entries is its balance, always. */
export const WALLET_TABLES = `
create table if not exists wallets (owner text primary key, cents bigint not null check (cents >= 0));
create table if not exists entries (
  id serial primary key, owner text not null references wallets, cents bigint not null, reason text not null
);
`

interface Amount {
  Body: { readonly cents: number }
}

const SCHEMA = {
  body: {
    type: 'object',
    required: ['cents'],
    properties: { cents: { type: 'integer', minimum: 1, maximum: 1_000_000 } },
  },
}

/** `POST /top-ups` and `POST /purchases`: the entry, the balance and the answer are one commit. */
export function addWallets(app: FastifyInstance, owner: (request: FastifyRequest) => string): void {
  const route = {
    schema: SCHEMA,
    config: { idempotency: { required: true, atomic: true, ttl: '7d' } },
  } as const

  app.post<Amount>('/top-ups', route, (request) => change(request, request.body.cents, 'top-up'))
  app.post<Amount>('/purchases', route, (request) => change(request, -request.body.cents, 'purchase'))

  function change(request: FastifyRequest, cents: number, reason: string) {
    return request.idempotency.transaction(async (tx) => {
      // The condition keeps two purchases with two keys from spending one cent; the key keeps one from being made twice.
      const { rows } = await tx.query(
        'update wallets set cents = cents + $2 where owner = $1 and cents + $2 >= 0 returning cents',
        [owner(request), cents],
      )
      if (rows.length === 0) throw Object.assign(new Error('insufficient funds'), { statusCode: 402 })
      await tx.query('insert into entries (owner, cents, reason) values ($1, $2, $3)', [
        owner(request),
        cents,
        reason,
      ])
      return { balance: Number(rows[0].cents) }
    })
  }
}
