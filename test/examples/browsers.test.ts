import { readdirSync, readFileSync } from 'node:fs'
import cors, { type FastifyCorsOptions } from '@fastify/cors'
import Fastify, { type FastifyInstance } from 'fastify'
import { createFetch } from 'oncekey/client'
import { afterEach, describe, expect, it } from 'vitest'
import idempotency from '../../src/adapters/fastify.js'
import { memoryStore } from '../../src/stores/memory.js'
import { aPageOf } from '../support/browser.js'
import { aKey } from '../support/fastify-app.js'
import { gate } from '../support/gate.js'

const ROOT = new URL('../../', import.meta.url)
const SHOP = 'https://shop.example'
const ADMIN = 'https://admin.example'

const apps: FastifyInstance[] = []
afterEach(async () => {
  await Promise.all(apps.splice(0).map((app) => app.close()))
})

/** The set-up of `examples/browsers/server.ts`, with other routes. */
async function aBank(
  define: (app: FastifyInstance) => void,
  options: FastifyCorsOptions = {},
  order: 'cors first' | 'plugin first' = 'cors first',
): Promise<string> {
  const app = Fastify({ forceCloseConnections: true })
  apps.push(app)
  const registrations = [
    async () =>
      app.register(cors, {
        origin: [SHOP, ADMIN],
        methods: ['GET', 'HEAD', 'POST', 'PATCH'],
        allowedHeaders: ['authorization', 'content-type', 'idempotency-key'],
        exposedHeaders: ['idempotent-replayed', 'retry-after'],
        ...options,
      }),
    async () => app.register(idempotency, { store: memoryStore(), scope: 'shared', required: true }),
  ]
  for (const register of order === 'cors first' ? registrations : registrations.reverse()) await register()
  define(app)
  return app.listen({ port: 0, host: '127.0.0.1' })
}

const json = { 'content-type': 'application/json' }
const post = (key: string, body = '{"amount":5}') => ({
  method: 'POST',
  headers: { ...json, 'idempotency-key': key },
  body,
})

describe('examples/browsers', () => {
  it('is what docs/browsers.md shows', () => {
    const folder = new URL('examples/browsers/', ROOT)
    const files = readdirSync(folder).map((name) => readFileSync(new URL(name, folder), 'utf8'))
    const page = readFileSync(new URL('docs/browsers.md', ROOT), 'utf8')
    const blocks = [...page.matchAll(/```ts\n(.*?)```/gs)].map(([, code]) => code ?? '')
    expect(blocks).toHaveLength(2)
    for (const block of blocks) expect(files.some((file) => file.includes(block)) ? '' : block).toBe('')
  })

  it('pays once from a page of an origin that it knows, and not at all from another', async () => {
    const { app } = await import('../../examples/browsers/server.js')
    apps.push(app)
    const url = await app.listen({ port: 0, host: '127.0.0.1' })
    const page = aPageOf(SHOP)
    const globalFetch = globalThis.fetch
    Object.assign(globalThis, { fetch: loseFirstAnswer(page.fetch) })
    const { pay } = await import('../../examples/browsers/pay.js')
    try {
      expect(await pay(url, 5)).toBe('p-1, and a retry told us so')
    } finally {
      Object.assign(globalThis, { fetch: globalFetch })
    }
    expect(page.sent).toBe(2)
    const stranger = aPageOf('https://evil.example')
    await expect(stranger.fetch(`${url}/payments`, post(aKey()))).rejects.toThrow('Failed to fetch')
    expect(stranger).toMatchObject({ sent: 0, preflights: { length: 1 } })
  })
})

/** Sends on as `send` does, and loses the first answer after it has come. */
function loseFirstAnswer(send: typeof fetch): typeof fetch {
  let calls = 0
  return async (input, init) => {
    calls += 1
    const answer = await send(input, init)
    if (calls > 1) return answer
    await answer.arrayBuffer()
    throw new TypeError('Failed to fetch')
  }
}

describe.each(['cors first', 'plugin first'] as const)('a page of another origin, %s', (order) => {
  it('may send the key, after it has asked, and only then', async () => {
    let runs = 0
    const url = await aBank((app) => void app.post('/', () => ({ run: ++runs })), {}, order)
    const page = aPageOf(SHOP)
    const answer = await page.fetch(url, post(aKey()))
    expect(await answer.json()).toEqual({ run: 1 })
    const [preflight] = page.preflights
    expect(preflight?.status).toBe(204)
    expect(preflight?.headers.get('access-control-allow-headers')).toContain('idempotency-key')
    expect(runs).toBe(1)
    const strict = await aBank(
      (app) => void app.post('/', () => ({ run: ++runs })),
      { allowedHeaders: ['content-type'] },
      order,
    )
    await expect(aPageOf(SHOP).fetch(strict, post(aKey()))).rejects.toThrow('Failed to fetch')
    expect(runs).toBe(1)
  })

  it('sees that an answer is a replay, which bears the headers of its own origin', async () => {
    const url = await aBank((app) => void app.post('/', () => 'done'), {}, order)
    const key = aKey()
    const [shop, admin] = [aPageOf(SHOP), aPageOf(ADMIN)]
    expect((await shop.fetch(url, post(key))).headers.has('idempotent-replayed')).toBe(false)
    const replay = await admin.fetch(url, post(key))
    expect(replay.headers.get('idempotent-replayed')).toBe('true')
    expect(await replay.text()).toBe('done')
    for (const origin of [ADMIN, SHOP, undefined]) {
      const { headers } = await fetch(url, {
        ...post(key),
        headers: { ...post(key).headers, ...(origin !== undefined && { origin }) },
      })
      expect(headers.get('access-control-allow-origin')).toBe(origin ?? null)
      expect(headers.get('vary')).toBe('Origin')
      expect(headers.get('idempotent-replayed')).toBe('true')
    }
  })

  it('can read refusals, and how long to wait', async () => {
    const started = gate()
    const { opened, open } = gate()
    const url = await aBank(
      (app) =>
        void app.post('/', async () => {
          started.open()
          await opened
          return 'done'
        }),
      {},
      order,
    )
    const page = aPageOf(SHOP)
    const key = aKey()
    const first = page.fetch(url, post(key))
    await started.opened
    const busy = await page.fetch(url, post(key))
    expect(busy.status).toBe(409)
    expect(busy.headers.get('retry-after')).toBe('1')
    expect(await busy.json()).toMatchObject({ code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
    open()
    await first
    expect((await page.fetch(url, post(key, '{"amount":6}'))).status).toBe(422)
    const { 'idempotency-key': _, ...headers } = post(key).headers
    expect((await page.fetch(url, { ...post(key), headers })).status).toBe(400)
  })

  it('gets a kept failure at its first retry where the marker is exposed, and asks on where it is not', async () => {
    for (const [exposedHeaders, attempts] of [
      [['idempotent-replayed', 'retry-after'], 2],
      [['retry-after'], 4],
    ] as const) {
      let runs = 0
      const url = await aBank(
        (app) => void app.post('/', (_request, reply) => reply.code(500).send({ run: ++runs })),
        { exposedHeaders: [...exposedHeaders] },
        order,
      )
      const page = aPageOf(SHOP)
      const call = createFetch({ fetch: page.fetch, retries: 3, backoff: { base: '1ms', max: '5ms' } })
      const answer = call(url, { method: 'POST', headers: json, body: '{"amount":5}' })
      if (attempts === 2) expect(await (await answer).json()).toEqual({ run: 1 })
      else await expect(answer).rejects.toMatchObject({ code: 'IDEMPOTENCY_RETRIES_EXHAUSTED' })
      expect(page.sent).toBe(attempts)
      expect(runs).toBe(1)
    }
  })
})
