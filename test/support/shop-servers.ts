import { Readable } from 'node:stream'
import Fastify, { type FastifyRequest } from 'fastify'
import { idempotency as expressIdempotency } from '../../src/adapters/express.js'
import idempotency, { type FastifyIdempotencyOptions } from '../../src/adapters/fastify.js'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { EXPRESS_VERSIONS, type ExpressVersion, listening } from './express-versions.js'
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
export const SHOP_SERVERS: Readonly<Record<string, ServeShop>> = {
  fastify: serveByFastify,
  ...Object.fromEntries(
    EXPRESS_VERSIONS.map((version) => [
      version.name,
      (store, options) => serveByExpress(version, store, options),
    ]),
  ),
}

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

async function serveByExpress(
  { express }: ExpressVersion,
  store: IdempotencyStore,
  options: ShopServerOptions = {},
): Promise<ServedShop> {
  const shop = openShop()
  const app = express()
  const once = expressIdempotency({
    store,
    scope: (request) => request.headers.authorization ?? 'nobody',
    required: true,
    docsUrl: SHOP_DOCS,
    log: { warn: () => {}, error: () => {} },
    ...options,
  })
  app.use(express.json())
  app.use((request, response, next) => {
    if (request.method === 'GET' || isValidOrder(request.body)) next()
    else response.status(400).json({ reason: 'invalid' })
  })
  app.get('/effects', (_request, response) => void response.json({ effects: shop.effects }))
  for (const { method, path, run } of shop.routes)
    app[method === 'POST' ? 'post' : 'patch'](path, once(), (request, response, next) => {
      run(request.body).then(({ status, headers, body }) => {
        response.status(status).set(headers)
        if (body instanceof Readable) body.pipe(response)
        else response.end(body)
      }, next)
    })
  const server = await listening(app)
  return {
    url: server.url,
    shop,
    async close() {
      await server.close()
      await once.engine.close()
    },
  }
}
