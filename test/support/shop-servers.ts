import Fastify, { type FastifyRequest } from 'fastify'
import idempotency, { type FastifyIdempotencyOptions } from '../../src/adapters/fastify.js'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { isValidOrder, openShop, SHOP_DOCS, type Shop } from './shop.js'

/** A shop that is served on a port of the loopback interface. */
export interface ServedShop {
  readonly url: string
  readonly shop: Shop
  close(): Promise<void>
}

/** Serves a shop by one framework, with our adapter. */
export type ServeShop = (store: IdempotencyStore, options?: ShopServerOptions) => Promise<ServedShop>

/** What a test asks of a server besides. */
export type ShopServerOptions = Pick<FastifyIdempotencyOptions, 'namespace' | 'maxBodyBytes' | 'whenBusy'>

/** Every framework that we have an adapter for. */
export const SHOP_SERVERS: Readonly<Record<string, ServeShop>> = { fastify: serveByFastify }

async function serveByFastify(store: IdempotencyStore, options: ShopServerOptions = {}): Promise<ServedShop> {
  const shop = openShop()
  const app = Fastify({ forceCloseConnections: true })
  await app.register(idempotency, {
    store,
    scope: (request: FastifyRequest) => request.headers.authorization ?? 'nobody',
    required: true,
    docsUrl: SHOP_DOCS,
    ...options,
  })
  app.addHook('preValidation', async (request, reply) => {
    if (request.method !== 'GET' && !isValidOrder(request.body))
      return reply.code(400).send({ reason: 'invalid' })
  })
  app.get('/effects', () => ({ effects: shop.effects }))
  for (const { method, path, run } of shop.routes)
    app.route({
      method,
      url: path,
      async handler(request, reply) {
        const answer = await run(request.body as Parameters<typeof run>[0])
        return reply.code(answer.status).headers(answer.headers).send(answer.body)
      },
    })
  const url = await app.listen({ port: 0, host: '127.0.0.1' })
  return { url, shop, close: () => app.close() }
}
