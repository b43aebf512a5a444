import { createHash } from 'node:crypto'
import { type AddressInfo, connect, type Socket } from 'node:net'
import { gunzipSync } from 'node:zlib'
import { type ServerType, serve } from '@hono/node-server'
import { Hono, type MiddlewareHandler, type Next } from 'hono'
import { compress } from 'hono/compress'
import { cors } from 'hono/cors'
import { requestId } from 'hono/request-id'
import { afterEach, describe, expect, it } from 'vitest'
import { idempotency, idempotencyOf, type WebOptions, type WebPolicyOptions } from '../../src/adapters/web.js'
import { memoryStore } from '../../src/stores/memory.js'
import { aKey } from '../support/fastify-app.js'
import { gate } from '../support/gate.js'
import { answered, aRequest, silent } from '../support/web-app.js'
import { ALL_BYTES, WEB_RESPONSE_KINDS } from '../support/web-response-kinds.js'

const servers: ServerType[] = []

afterEach(async () => {
  for (const server of servers.splice(0)) {
    if ('closeAllConnections' in server) server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
  }
})

/** Hono on Node's own http, on a free port. */
async function listening(app: Hono): Promise<string> {
  const server = await new Promise<ServerType>((resolve) => {
    const made = serve({ fetch: app.fetch, port: 0, hostname: '127.0.0.1' }, () => resolve(made))
  })
  servers.push(server)
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

function wrapper(options: Partial<WebOptions> = {}) {
  return idempotency({ store: memoryStore(), scope: 'shared', log: silent, ...options })
}

/** A handler of Hono that is wrapped by itself. */
function wrapped(make: () => Response | Promise<Response>, options?: Partial<WebOptions>): Hono {
  const handler = wrapper(options)((_request: Request) => make())
  const app = new Hono()
  app.post('/', (c) => handler(c.req.raw))
  return app
}

/** The middleware of `examples/web/hono.ts`. */
function protecting(options?: Partial<WebOptions>, own?: WebPolicyOptions): MiddlewareHandler {
  const rest = wrapper(options)(
    async (_request: Request, c: Parameters<MiddlewareHandler>[0], next: Next) => {
      await next()
      return c.res
    },
    own,
  )
  return async (c, next) => {
    void c.res
    const response = await rest(c.req.raw, c, next)
    c.res = response
    for (const [name, value] of response.headers) if (name !== 'set-cookie') c.res.headers.set(name, value)
  }
}

function middleware(make: () => Response | Promise<Response>): Hono {
  const app = new Hono()
  app.post('/', protecting(), () => make())
  return app
}

const DOORS = {
  'a handler, by app.request': async (make: () => Response | Promise<Response>) => {
    const app = wrapped(make)
    return async (request: Request) => app.request(request)
  },
  'a middleware, by app.request': async (make: () => Response | Promise<Response>) => {
    const app = middleware(make)
    return async (request: Request) => app.request(request)
  },
  "a handler, on Node's http": (make: () => Response | Promise<Response>) => onWire(wrapped(make)),
  "a middleware, on Node's http": (make: () => Response | Promise<Response>) => onWire(middleware(make)),
}

async function onWire(app: Hono): Promise<(request: Request) => Promise<Response>> {
  const url = await listening(app)
  return async ({ method, headers, body }) =>
    fetch(url, { method, headers, body, redirect: 'manual', duplex: 'half' })
}

/** What belongs to one exchange, and not to the answer. */
const EXCHANGE_HEADERS = ['date', 'connection', 'keep-alive', 'content-length', 'transfer-encoding']

describe.each(Object.entries(DOORS))('inside Hono, %s', (_, door) => {
  it.each(Object.keys(WEB_RESPONSE_KINDS))('replays %s byte for byte, with one effect', async (name) => {
    const { make, status = 200, body } = WEB_RESPONSE_KINDS[name] ?? expect.fail()
    let effects = 0
    const send = await door(() => {
      effects += 1
      return make()
    })
    const key = aKey()
    const request = () => aRequest({ key, url: 'http://localhost/' })
    const first = await answered(await send(request()))
    expect(first).toMatchObject({ status, isReplay: false })
    if (body !== undefined) expect(first.bytes).toEqual(Buffer.from(body))
    const kept = Object.entries(first.headers).filter(([header]) => !EXCHANGE_HEADERS.includes(header))
    for (let retry = 0; retry < 2; retry += 1) {
      const again = await answered(await send(request()))
      expect(again).toMatchObject({ status, isReplay: true, bytes: first.bytes })
      expect(again.headers).toMatchObject(Object.fromEntries(kept))
    }
    expect(effects).toBe(1)
  })
})

describe('inside Hono', () => {
  const post = (key: string, headers = {}) => ({ key, url: 'http://localhost/', headers })

  it('keeps bodies before compression, and gives every answer what earlier middleware has set', async () => {
    let runs = 0
    const app = new Hono()
    app.use(
      compress({ threshold: 0 }),
      cors({ origin: (origin) => origin, exposeHeaders: ['idempotent-replayed'] }),
    )
    app.use(requestId())
    app.post('/', protecting(), (c) => {
      c.header('set-cookie', 'a=1', { append: true })
      c.header('set-cookie', 'b=2', { append: true })
      c.header('x-kept', `run ${++runs}`)
      return c.json({ text: 'a long text '.repeat(50) })
    })
    const key = aKey()
    const first = await app.request(
      aRequest(post(key, { 'accept-encoding': 'gzip', origin: 'https://one.example' })),
    )
    expect(first.headers.getSetCookie()).toEqual(['a=1', 'b=2'])
    const unzipped = gunzipSync(Buffer.from(await first.arrayBuffer()))
    const plain = await app.request(aRequest(post(key, { origin: 'https://two.example' })))
    expect(plain.headers.has('content-encoding')).toBe(false)
    expect(plain.headers.get('access-control-allow-origin')).toBe('https://two.example')
    expect(plain.headers.get('access-control-expose-headers')).toBe('idempotent-replayed')
    expect(plain.headers.get('x-kept')).toBe('run 1')
    expect(plain.headers.getSetCookie()).toEqual([])
    expect(plain.headers.get('x-request-id')).not.toBe(first.headers.get('x-request-id'))
    expect(Buffer.from(await plain.arrayBuffer())).toEqual(unzipped)
    const zipped = await app.request(aRequest(post(key, { 'accept-encoding': 'gzip' })))
    expect(gunzipSync(Buffer.from(await zipped.arrayBuffer()))).toEqual(unzipped)
    const refused = await app.request(
      aRequest({ ...post(key, { origin: 'https://two.example' }), body: '{"amount":6}' }),
    )
    expect(refused.status).toBe(422)
    expect(refused.headers.get('access-control-allow-origin')).toBe('https://two.example')
  })

  it('keeps what onError made of an error', async () => {
    let effects = 0
    const app = new Hono()
    app.onError((error, c) => c.json({ error: error.message }, 500))
    app.post('/', protecting(), () => {
      effects += 1
      throw new Error('boom')
    })
    const key = aKey()
    const first = await answered(await app.request(aRequest(post(key))))
    expect(first).toMatchObject({ status: 500, bytes: Buffer.from('{"error":"boom"}') })
    expect(await answered(await app.request(aRequest(post(key))))).toMatchObject({
      status: 500,
      isReplay: true,
      bytes: first.bytes,
    })
    expect(effects).toBe(1)
  })

  it('compares a body that a validator has read before, where a function knows it', async () => {
    let runs = 0
    const app = new Hono()
    const validate: MiddlewareHandler = async (c, next) => {
      const { amount } = await c.req.json<{ amount: number }>()
      if (amount < 0) return c.text('no', 400)
      return next()
    }
    const fingerprint = (_request: Request, c: Parameters<MiddlewareHandler>[0]) => c.req.json()
    app.post('/', validate, protecting({}, { fingerprint }), async (c) => {
      const { amount } = await c.req.json<{ amount: number }>()
      return c.text(`run ${++runs} of ${amount}`)
    })
    app.post('/unknowing', validate, protecting(), (c) => c.text('ran'))
    const key = aKey()
    const send = async (amount: number, path = '/') =>
      answered(
        await app.request(
          aRequest({ key, url: `http://localhost${path}`, body: JSON.stringify({ amount }) }),
        ),
      )
    expect(await send(-1)).toMatchObject({ status: 400 })
    expect((await send(5)).bytes.toString()).toBe('run 1 of 5')
    expect(await send(5)).toMatchObject({ isReplay: true })
    expect(await send(6)).toMatchObject({ status: 422 })
    expect(await send(5, '/unknowing')).toMatchObject({ status: 500, code: 'IDEMPOTENCY_FINGERPRINT_FAILED' })
  })
})

/** What a server sends on a connection, until it closes it. */
async function spoken(url: string, ...parts: readonly string[]): Promise<string> {
  const { port } = new URL(url)
  const socket = connect(Number(port), '127.0.0.1')
  for (const part of parts) socket.write(part)
  return heard(socket)
}

async function heard(socket: Socket): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of socket) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks).toString('latin1')
}

function lines(key: string, more: readonly string[] = [], body = '{"amount":5}'): string {
  return [
    'POST / HTTP/1.1',
    'host: localhost',
    'connection: close',
    'content-type: application/json',
    `content-length: ${body.length}`,
    `idempotency-key: ${key}`,
    ...more,
    '',
    body,
  ].join('\r\n')
}

describe("inside Hono on Node's http, on the wire", () => {
  it('refuses a key that is sent twice, in two lines', async () => {
    let runs = 0
    const url = await listening(wrapped(() => new Response(`run ${++runs}`)))
    for (const [one, other] of [
      ['a', 'b'],
      ['a', 'a'],
      ['"a', 'b"'],
    ] as const)
      expect(await spoken(url, lines(one, [`Idempotency-Key: ${other}`]))).toMatch(/^HTTP\/1\.1 400 /)
    expect(runs).toBe(0)
  })

  it('sends a replay with its length, in one piece, with every byte', async () => {
    const url = await listening(wrapped(() => new Response(ALL_BYTES, { headers: { 'x-kept': 'yes' } })))
    const key = aKey()
    const bodies = []
    for (let request = 0; request < 2; request += 1) {
      const [head = '', body = ''] = (await spoken(url, lines(key))).split(/\r\n\r\n(.*)/s)
      expect(head).toMatch(/^HTTP\/1\.1 200 /)
      expect(head).toMatch(/content-length: 256/i)
      expect(head).toMatch(/x-kept: yes/i)
      expect(/idempotent-replayed: true/i.test(head)).toBe(request === 1)
      bodies.push(body)
    }
    expect(Buffer.from(bodies[0] ?? '', 'latin1')).toEqual(ALL_BYTES)
    expect(bodies[1]).toBe(bodies[0])
  })

  it('sends cookies on lines of their own', async () => {
    const url = await listening(
      wrapped(
        () =>
          new Response('x', {
            headers: [
              ['set-cookie', 'a=1'],
              ['set-cookie', 'b=2; Expires=Wed, 21 Oct 2026'],
            ],
          }),
      ),
    )
    const answer = await spoken(url, lines(aKey()))
    expect(answer.match(/^set-cookie: .*$/gim)).toHaveLength(2)
  })

  it('streams what is longer than the limit, as fast as the client reads and no faster', async () => {
    const CHUNK = 64 * 1024
    const CHUNKS = 400
    let pulled = 0
    const url = await listening(
      wrapped(
        () =>
          new Response(
            new ReadableStream<Uint8Array>(
              {
                pull(controller) {
                  pulled += 1
                  controller.enqueue(Buffer.alloc(CHUNK, pulled % 251))
                  if (pulled === CHUNKS) controller.close()
                },
              },
              { highWaterMark: 0 },
            ),
          ),
      ),
    )
    const expected = createHash('sha256')
    for (let chunk = 1; chunk <= CHUNKS; chunk += 1) expected.update(Buffer.alloc(CHUNK, chunk % 251))
    const key = aKey()
    const answer = await fetch(url, {
      method: 'POST',
      headers: { 'idempotency-key': key },
    })
    // Nobody reads: the sender stops when the buffers between are full.
    let before = -1
    await expect
      .poll(
        () => {
          const stands = pulled === before
          before = pulled
          return stands
        },
        { interval: 200, timeout: 20_000 },
      )
      .toBe(true)
    expect(pulled).toBeLessThan(CHUNKS)
    const hash = createHash('sha256').update(Buffer.from(await answer.arrayBuffer()))
    expect(hash.digest('hex')).toBe(expected.digest('hex'))
    expect(pulled).toBe(CHUNKS)
    const retry = await fetch(url, { method: 'POST', headers: { 'idempotency-key': key } })
    expect(await answered(retry)).toMatchObject({ code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
  })

  it('goes on with a handler whose client has hung up, and answers its retry', async () => {
    const started = gate()
    const gone = gate()
    let effects = 0
    const handler = wrapper()(async (request: Request) => {
      effects += 1
      request.signal.addEventListener('abort', () => gone.open())
      started.open()
      await gone.opened
      expect(idempotencyOf(request).signal.aborted).toBe(false)
      return new Response('done', { status: 201 })
    })
    const app = new Hono()
    app.post('/', (c) => handler(c.req.raw))
    const url = await listening(app)
    const key = aKey()
    const socket = connect(Number(new URL(url).port), '127.0.0.1')
    socket.write(lines(key))
    await started.opened
    socket.destroy()
    await expect.poll(async () => /idempotent-replayed/i.test(await spoken(url, lines(key)))).toBe(true)
    expect(await spoken(url, lines(key))).toMatch(/^HTTP\/1\.1 201 [\s\S]*done$/)
    expect(effects).toBe(1)
  })

  it('runs nothing for a request that breaks off in the middle', async () => {
    let effects = 0
    const app = wrapped(() => {
      effects += 1
      return new Response('ran')
    })
    // Hono's own would write the error to the console of the tests.
    app.onError((_, c) => c.text('broken', 500))
    const url = await listening(app)
    const key = aKey()
    const socket = connect(Number(new URL(url).port), '127.0.0.1')
    socket.write(lines(key).slice(0, -4))
    await new Promise<void>((resolve) => socket.end(resolve))
    await heard(socket).catch(() => '')
    expect(effects).toBe(0)
    expect(await spoken(url, lines(key))).toMatch(/200 [\s\S]*ran$/)
  })

  it('keeps a connection open for the next request', async () => {
    const url = await listening(wrapped(() => new Response('done')))
    const open = lines('k-1').replace('connection: close', 'connection: keep-alive')
    const answers = await spoken(url, open, open, lines('k-1'))
    expect(answers.match(/HTTP\/1\.1 200/g)).toHaveLength(3)
    expect(answers.match(/idempotent-replayed: true/gi)).toHaveLength(2)
  })
})
