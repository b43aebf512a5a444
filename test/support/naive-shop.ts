import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { isValidOrder, openShop } from './shop.js'
import type { ServedShop } from './shop-servers.js'

/**
 * Serves a shop with idempotency as one writes it in an afternoon: a map from the header to whatever was answered. It is
 * kept here to be caught: no callers, no payloads, no running state, validation behind it, and everything is replayed.
 */
export async function serveNaively(): Promise<ServedShop> {
  const shop = openShop({ slowMs: 500 })
  const answers = new Map<string, { status: number; headers: Record<string, string>; body: string }>()

  const server = createServer(async (request, reply) => {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk)
    if (request.url === '/effects') return void reply.end(String(shop.effects))

    const key = String(request.headers['idempotency-key'])
    const known = answers.get(key)
    if (known !== undefined) return void reply.writeHead(known.status, known.headers).end(known.body)

    const order: unknown = JSON.parse(Buffer.concat(chunks).toString())
    const route = shop.routes.find(({ method, path }) => method === request.method && path === request.url)
    if (!isValidOrder(order) || route === undefined) return answer(reply, key, 400, {}, 'invalid')
    const { status, headers, body } = await route.run(order)
    let text = ''
    for await (const chunk of Buffer.isBuffer(body) ? [body] : (body ?? [])) text += chunk
    answer(reply, key, status, headers, text)
  })

  function answer(
    reply: ServerResponse,
    key: string,
    status: number,
    headers: Readonly<Record<string, string>>,
    body: string,
  ): void {
    const kept = { status, headers: { ...headers, date: new Date().toUTCString() }, body }
    answers.set(key, kept)
    reply.writeHead(status, kept.headers).end(body)
  }

  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    shop,
    close() {
      server.closeAllConnections()
      return new Promise((resolve) => server.close(() => resolve()))
    },
  }
}
