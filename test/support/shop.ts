import { Readable } from 'node:stream'
import type { HttpTarget } from '../../src/testing/test-kit.js'

/** An answer of the shop, whatever the framework that sends it. */
export interface ShopAnswer {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: Buffer | Readable | undefined
}

/** What a route of the shop is asked. */
export interface ShopRequest {
  readonly amount: number
  readonly note: string
}

/** One route of the shop. */
export interface ShopRoute {
  readonly method: 'POST' | 'PATCH'
  readonly path: string
  run(request: ShopRequest): Promise<ShopAnswer>
}

/** An application with every kind of answer, which counts what it does. A server of any framework can offer it. */
export interface Shop {
  readonly routes: readonly ShopRoute[]
  /** How often a route has run. `GET /effects` answers with it. */
  readonly effects: number
}

/** Where the shop says what its refusals mean. */
export const SHOP_DOCS = 'https://shop.example/docs/idempotency'

/** What validation lets through: it stands before idempotency in every server of the shop. */
export function isValidOrder(body: unknown): body is ShopRequest {
  const { amount, note } = (body ?? {}) as Partial<ShopRequest>
  return typeof amount === 'number' && amount > 0 && typeof note === 'string'
}

/** Opens a shop. Its slow route takes `slowMs`. */
export function openShop({ slowMs = 1000 }: { readonly slowMs?: number } = {}): Shop {
  let effects = 0
  const route = (
    path: string,
    answer: (id: string, request: ShopRequest) => ShopAnswer | Promise<ShopAnswer>,
    method: 'POST' | 'PATCH' = 'POST',
  ): ShopRoute => ({
    method,
    path,
    async run(request) {
      effects += 1
      return answer(`p-${effects}`, request)
    },
  })
  return {
    get effects() {
      return effects
    },
    routes: [
      route('/payments', (id, { amount, note }) => ({
        status: 201,
        headers: {
          'content-type': 'application/json; charset=utf-8',
          'set-cookie': `last=${id}; Path=/`,
          location: `/payments/${id}`,
          etag: `"${id}"`,
        },
        body: Buffer.from(JSON.stringify({ id, amount, note })),
      })),
      route('/payments/p-0', (id, { amount }) => json(200, { id, amount }), 'PATCH'),
      route('/slow', async (id) => {
        await new Promise((resolve) => setTimeout(resolve, slowMs))
        return json(201, { id })
      }),
      route('/declined', (id) => json(402, { id, reason: 'declined' })),
      route('/crashed', (id) => json(500, { id, reason: 'crashed' })),
      route('/receipt', (id) => ({
        status: 200,
        headers: { 'content-type': 'application/pdf' },
        body: Buffer.concat([Buffer.from(id), Buffer.from(Array.from({ length: 256 }, (_, byte) => byte))]),
      })),
      route('/archive', () => ({ status: 204, headers: {}, body: undefined })),
      route('/export', (id) => ({
        status: 200,
        headers: { 'content-type': 'text/csv; charset=utf-8' },
        body: Readable.from([Buffer.from(`id\n`), Buffer.from(`${id}\n`), Buffer.from('end\n')]),
      })),
      route('/report', (id) => ({
        status: 200,
        headers: { 'content-type': 'application/octet-stream' },
        body: Buffer.alloc(300_000, id),
      })),
    ],
  }
}

/** The shop as the checks see it, served at `url`. */
export function shopTarget(url: string): HttpTarget {
  return {
    url: `${url}/payments`,
    body: { amount: '{{n}}', note: '{{uuid}}' },
    callers: [{ authorization: 'Bearer ada' }, { authorization: 'Bearer bob' }],
    effects: '/effects',
    required: true,
    operations: {
      slow: { url: '/slow' },
      patch: { url: '/payments/p-0' },
      clientError: { url: '/declined' },
      serverError: { url: '/crashed' },
      invalid: { body: { amount: -1, note: '{{uuid}}' } },
      binary: { url: '/receipt' },
      empty: { url: '/archive' },
      streamed: { url: '/export' },
      large: { url: '/report' },
    },
  }
}

function json(status: number, value: unknown): ShopAnswer {
  return {
    status,
    headers: { 'content-type': 'application/json; charset=utf-8' },
    body: Buffer.from(JSON.stringify(value)),
  }
}
