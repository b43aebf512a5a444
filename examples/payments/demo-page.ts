import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import fastifyStatic from '@fastify/static'
import type { FastifyInstance } from 'fastify'
import type { Feed } from './feed.js'
import type { Ledger } from './ledger.js'

const require = createRequire(import.meta.url)
const ROOT = dirname(require.resolve('oncekey/package.json'))
const PAGE = join(ROOT, 'examples/payments/page')
const FONTS = dirname(require.resolve('@fontsource-variable/inter/files/inter-latin-wght-normal.woff2'))

const HEADERS = {
  'content-security-policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
  'cache-control': 'no-cache',
}

/** The addresses that a browser asks for before anybody has said who they are. */
export const PAGE_ADDRESSES = /^\/($|page\/|oncekey\/|demo\/events$)/

/**
 * For the demo only: the page at `/` with its files, and what it is told. Anybody who reaches the bank may read its
 * events, keys included: it listens on the loopback interface, and its money is not worth more.
 */
export async function servePage(
  app: FastifyInstance,
  { feed, ledger }: { readonly feed: Feed; readonly ledger: Ledger },
): Promise<void> {
  app.addHook('onRequest', async (request, reply) => {
    // Browsers send a POST again by themselves when a connection breaks that had served before. That is a retry, too, but
    // one that a page cannot show: so no connection of a browser serves twice.
    if (request.headers['sec-fetch-mode'] !== undefined) reply.header('connection', 'close')
  })
  await app.register(fastifyStatic, {
    // Its markup and style are served as they are, its script as tsc made it: nothing is bundled.
    root: [PAGE, join(ROOT, '.build/examples/payments/page'), FONTS],
    prefix: '/page/',
    allowedPath: (path) =>
      /^\/?(index\.html|[\w-]+\.(css|js|svg)|inter-latin-wght-normal\.woff2)$/.test(path),
    cacheControl: false,
    setHeaders: (reply) => reply.headers(HEADERS),
  })
  await app.register(fastifyStatic, {
    // The client as it is published: in a browser, too, it is a module like any other.
    root: join(ROOT, 'dist'),
    prefix: '/oncekey/',
    allowedPath: (path) => /^\/(client|contract)\/[\w-]+\.js$/.test(path),
    decorateReply: false,
    cacheControl: false,
    setHeaders: (reply) => reply.headers(HEADERS),
  })
  app.get('/', (_request, reply) => reply.sendFile('index.html', PAGE))

  app.get('/demo/events', (request, reply) => {
    const stream = feed.follow(Number(request.headers['last-event-id']) || 0)
    request.raw.once('close', () => stream.destroy())
    return reply.headers({ ...HEADERS, 'content-type': 'text/event-stream' }).send(stream)
  })

  app.post('/demo/start-over', { config: { idempotency: false } }, async (_request, reply) => {
    await ledger.startOver()
    feed.tell({ type: 'ledger' })
    return reply.code(204).send()
  })
}
