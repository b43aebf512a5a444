import { once } from 'node:events'
import { createReadStream } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { request as httpRequest } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough, Readable } from 'node:stream'
import { gunzipSync } from 'node:zlib'
import compress from '@fastify/compress'
import cors from '@fastify/cors'
import serveStatic from '@fastify/static'
import Fastify, { type FastifyInstance, type RouteHandlerMethod } from 'fastify'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import idempotency from '../../src/adapters/fastify.js'
import { aKey, anApp, send } from '../support/fastify-app.js'
import { gate } from '../support/gate.js'

const ALL_BYTES = Buffer.from(Uint8Array.from({ length: 256 }, (_, byte) => byte))

/** Handlers, and the answer that the first request and every retry get. */
const ANSWERS: Readonly<
  Record<
    string,
    { readonly handler: RouteHandlerMethod; readonly status?: number; readonly body?: Buffer | string }
  >
> = {
  JSON: { handler: () => ({ a: 1 }), body: '{"a":1}' },
  'text in a callback': { handler: (_, reply) => void reply.send('text'), body: 'text' },
  'an empty text': { handler: (_, reply) => reply.send(''), body: '' },
  bytes: { handler: (_, reply) => reply.send(ALL_BYTES), body: ALL_BYTES },
  'bytes in a Uint8Array': { handler: (_, reply) => reply.send(new Uint8Array(ALL_BYTES)), body: ALL_BYTES },
  'nothing, with 204': { handler: async (_, reply) => void reply.code(204), status: 204, body: '' },
  null: { handler: async () => null, body: 'null' },
  'a stream': {
    handler: (_, reply) => reply.send(Readable.from([ALL_BYTES, ALL_BYTES])),
    body: Buffer.concat([ALL_BYTES, ALL_BYTES]),
  },
  'a stream of text': { handler: async () => Readable.from(['one ', 'two']), body: 'one two' },
  'a web stream': { handler: async () => new Blob([ALL_BYTES]).stream(), body: ALL_BYTES },
  'a Response': {
    handler: async () => new Response('hello', { status: 202, headers: { 'x-kept': 'yes' } }),
    status: 202,
    body: 'hello',
  },
  'a redirect': { handler: (_, reply) => reply.redirect('/elsewhere', 303), status: 303, body: '' },
  'a final failure': {
    handler: (_, reply) => reply.code(402).send({ error: 'declined' }),
    status: 402,
    body: '{"error":"declined"}',
  },
  'an error that was thrown': {
    handler: () => {
      throw new Error('boom')
    },
    status: 500,
    body: '{"statusCode":500,"error":"Internal Server Error","message":"boom"}',
  },
  'an error that was thrown later': { handler: () => Promise.reject(new Error('boom')), status: 500 },
  'a hijacked reply': {
    handler: (_, reply) => {
      reply.hijack()
      reply.raw.writeHead(201, 'Made', { 'x-kept': 'yes', 'content-type': 'text/plain' })
      reply.raw.write('one ')
      reply.raw.end('two')
    },
    status: 201,
    body: 'one two',
  },
  'a stream into a hijacked reply': {
    handler: (_, reply) => {
      reply.hijack()
      Readable.from([ALL_BYTES, ALL_BYTES]).pipe(reply.raw)
    },
    body: Buffer.concat([ALL_BYTES, ALL_BYTES]),
  },
  'no such thing': { handler: (_, reply) => void reply.callNotFound(), status: 404 },
  'its own serialization': {
    handler: (_, reply) =>
      reply
        .type('application/x-own')
        .serializer(() => 'own')
        .send({ a: 1 }),
    body: 'own',
  },
}

describe('fastify plugin › answers', () => {
  it.each(Object.keys(ANSWERS))('replays %s byte for byte, with one effect', async (name) => {
    const { handler, status = 200, body } = ANSWERS[name] ?? expect.fail()
    let effects = 0
    const { send } = await anApp((app) => {
      app.post('/', function (request, reply) {
        effects += 1
        reply.header('x-made', String(effects))
        return handler.call(this, request, reply)
      })
    })
    const key = aKey()
    const first = await send('/', { key })
    expect(first).toMatchObject({ status, isReplay: false })
    if (body !== undefined) expect(first.bytes).toEqual(Buffer.from(body))
    for (let retry = 0; retry < 2; retry += 1) {
      const replay = await send('/', { key })
      expect(replay).toMatchObject({ status, isReplay: true, bytes: first.bytes })
      const {
        date: _,
        connection: __,
        'content-length': ___,
        'transfer-encoding': ____,
        ...kept
      } = first.headers
      expect(replay.headers).toMatchObject(kept)
      expect(replay.headers['content-type']).toBe(first.headers['content-type'])
    }
    expect(effects).toBe(1)
  })

  it('serialises once, by the schema of the response', async () => {
    const schema = { response: { 201: { type: 'object', properties: { id: { type: 'string' } } } } }
    const { send } = await anApp((app) => {
      app.post('/', { schema }, (_, reply) => reply.code(201).send({ id: 'p-1', secret: 'x' }))
    })
    const key = aKey()
    expect((await send('/', { key })).bytes.toString()).toBe('{"id":"p-1"}')
    expect((await send('/', { key })).bytes.toString()).toBe('{"id":"p-1"}')
  })

  it('passes hooks of the application on a replay too, and still gives the bytes that were kept', async () => {
    const { send } = await anApp((app) => {
      app.addHook('onSend', async (_request, reply, payload) => {
        reply.header('x-seen', 'yes')
        return `[${String(payload)}]`
      })
      app.post('/', () => 'body')
    })
    const key = aKey()
    expect((await send('/', { key })).bytes.toString()).toBe('[body]')
    const replay = await send('/', { key })
    expect(replay.bytes.toString()).toBe('[body]')
    expect(replay.headers['x-seen']).toBe('yes')
  })
})

describe('fastify plugin › answers that are not kept', () => {
  it.each([401, 403, 407, 408, 425, 429, 503])('releases the key after %i', async (status) => {
    let runs = 0
    const { send } = await anApp((app) => {
      app.post('/', (_, reply) => reply.code(status).send({ run: ++runs }))
    })
    const key = aKey()
    await send('/', { key })
    expect(await send('/', { key })).toMatchObject({ status, isReplay: false })
    expect(runs).toBe(2)
  })

  it('releases the key after what the route does not keep', async () => {
    let runs = 0
    const keep = ({ status }: { readonly status: number }) => status !== 500
    const { send } = await anApp((app) => {
      app.post('/', { config: { idempotency: { keep } } }, (_, reply) => {
        runs += 1
        return runs === 1 ? reply.code(500).send('failed') : 'done'
      })
    })
    const key = aKey()
    await send('/', { key })
    expect(await send('/', { key })).toMatchObject({ status: 200, isReplay: false })
    expect(await send('/', { key })).toMatchObject({ status: 200, isReplay: true })
  })

  it('keeps an answer when the keep function fails', async () => {
    const { send } = await anApp((app) => void app.post('/', () => 'done'), {
      keep: () => {
        throw new Error('no opinion')
      },
    })
    const key = aKey()
    await send('/', { key })
    expect(await send('/', { key })).toMatchObject({ isReplay: true })
  })

  it('releases the key when the handler says that nothing happened', async () => {
    let runs = 0
    const { send } = await anApp((app) => {
      app.post('/', (request) => {
        runs += 1
        if (runs === 1) request.idempotency.forget()
        return `run ${runs}`
      })
    })
    const key = aKey()
    await send('/', { key })
    expect((await send('/', { key })).bytes.toString()).toBe('run 2')
    expect((await send('/', { key })).bytes.toString()).toBe('run 2')
  })

  it.each([
    ['text', (size: number) => 'x'.repeat(size)],
    ['bytes', (size: number) => Buffer.alloc(size, 1)],
    ['a stream', (size: number) => Readable.from([Buffer.alloc(size / 2, 1), Buffer.alloc(size / 2, 2)])],
    ['a web stream', (size: number) => new Blob([Buffer.alloc(size, 1)]).stream()],
  ])('sends %s over the limit untouched, and keeps a tombstone', async (_, make) => {
    let effects = 0
    const { send } = await anApp(
      (app) => {
        app.post('/', (_request, reply) => {
          effects += 1
          return reply.code(201).send(make(4000))
        })
      },
      { maxBodyBytes: 1000 },
    )
    const key = aKey()
    const first = await send('/', { key })
    expect(first).toMatchObject({ status: 201 })
    expect(first.bytes).toHaveLength(4000)
    const retry = await send('/', { key })
    expect(retry).toMatchObject({ status: 409, code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
    expect(JSON.parse(retry.bytes.toString())).toMatchObject({ originalStatus: 201, retryable: false })
    expect(effects).toBe(1)
  })

  it.each([
    [
      'grows past the limit',
      (raw: NodeJS.WritableStream) => Readable.from([Buffer.alloc(900), Buffer.alloc(900)]).pipe(raw),
    ],
    [
      'is a stream of events',
      (raw: NodeJS.WritableStream & { setHeader?: (name: string, value: string) => void }) => {
        raw.setHeader?.('content-type', 'text/event-stream')
        raw.write('data: 1\n\n')
        raw.end('data: 2\n\n')
      },
    ],
  ])('keeps a tombstone of a hijacked reply that %s', async (_, write) => {
    const { send } = await anApp(
      (app) => {
        app.post('/', (_request, reply) => {
          reply.hijack()
          write(reply.raw)
        })
      },
      { maxBodyBytes: 1000 },
    )
    const key = aKey()
    const first = await send('/', { key })
    expect(first.status).toBe(200)
    expect(first.bytes.length).toBeGreaterThan(15)
    expect(await send('/', { key })).toMatchObject({ code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
  })

  it('keeps a tombstone of an answer that went past Fastify', async () => {
    let effects = 0
    const { send } = await anApp((app) => {
      app.post('/', async (_request, reply) => {
        effects += 1
        reply.raw.statusCode = 202
        reply.raw.end('raw')
      })
    })
    const key = aKey()
    expect(await send('/', { key })).toMatchObject({ status: 202 })
    await expect.poll(async () => (await send('/', { key })).code).toBe('IDEMPOTENCY_RESPONSE_NOT_KEPT')
    expect(effects).toBe(1)
  })

  it('keeps a tombstone of one that had left before the handler came to its end', async () => {
    let effects = 0
    const { app } = await anApp((routes) => {
      routes.post('/', async (_request, reply) => {
        effects += 1
        reply.raw.statusCode = 202
        const hasLeft = once(reply.raw, 'finish')
        reply.raw.end('raw')
        await hasLeft
        return { said: 'too late' }
      })
    })
    // Over a socket: what is injected finishes in another order.
    const url = await app.listen({ port: 0, host: '127.0.0.1' })
    const headers = { 'idempotency-key': aKey() }
    expect(await fetch(url, { method: 'POST', headers })).toMatchObject({ status: 202 })
    const retry = async () => (await fetch(url, { method: 'POST', headers })).json()
    await expect.poll(retry).toMatchObject({ code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
    expect(effects).toBe(1)
    await app.close()
  })

  it('keeps the failure of a stream that breaks before it was sent', async () => {
    const { send } = await anApp((app) => {
      app.post('/', (_request, reply) => {
        const stream = new PassThrough()
        stream.write('half')
        stream.destroy(new Error('the disk is gone'))
        return reply.send(stream)
      })
    })
    const key = aKey()
    expect(await send('/', { key })).toMatchObject({ status: 500 })
    expect(await send('/', { key })).toMatchObject({ status: 500, isReplay: true })
  })
})

describe('fastify plugin › headers', () => {
  it('replays what belongs to the answer, and nothing of the exchange', async () => {
    let runs = 0
    const { send } = await anApp((app) => {
      app.addHook('onRequest', async (_request, reply) => {
        reply.header('x-request-id', `r-${++runs}`)
      })
      app.post('/', (_request, reply) =>
        reply
          .headers({ location: '/p/1', etag: '"1"', 'set-cookie': 's=1', 'ratelimit-remaining': '9' })
          .send({}),
      )
    })
    const key = aKey()
    const first = await send('/', { key })
    expect(first.headers).toMatchObject({ 'set-cookie': 's=1', 'x-request-id': 'r-1' })
    const { headers } = await send('/', { key })
    expect(headers).toMatchObject({ location: '/p/1', etag: '"1"', 'x-request-id': 'r-2' })
    expect(headers).not.toHaveProperty('set-cookie')
    expect(headers).not.toHaveProperty('ratelimit-remaining')
  })
})

describe('fastify plugin › beside other plugins', () => {
  let folder: string
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'oncekey-static-'))
    await writeFile(join(folder, 'receipt.txt'), 'a receipt')
  })
  afterAll(() => rm(folder, { recursive: true }))

  async function appWith(order: 'before' | 'after'): Promise<FastifyInstance> {
    const app = Fastify()
    const others = async () => {
      await app.register(compress, { threshold: 0 })
      await app.register(cors, { origin: true })
      await app.register(serveStatic, { root: folder, serve: false })
    }
    if (order === 'before') await others()
    await app.register(idempotency, { scope: 'shared' })
    if (order === 'after') await others()
    app.post('/json', () => ({ text: 'a long text '.repeat(50) }))
    app.post('/file', (_, reply) => reply.sendFile('receipt.txt'))
    app.post('/stream', (_, reply) =>
      reply.type('text/plain').send(createReadStream(join(folder, 'receipt.txt'))),
    )
    return app
  }

  it.each(['before', 'after'] as const)(
    'keeps bodies before compression, which was registered %s',
    async (order) => {
      const app = await appWith(order)
      const key = aKey()
      const first = await send(app, '/json', { key, headers: { 'accept-encoding': 'gzip' } })
      expect(first.headers['content-encoding']).toBe('gzip')
      const plain = await send(app, '/json', { key, headers: { 'accept-encoding': 'identity' } })
      expect(plain).toMatchObject({ isReplay: true, bytes: gunzipSync(first.bytes) })
      expect(plain.headers).not.toHaveProperty('content-encoding')
      const again = await send(app, '/json', { key, headers: { 'accept-encoding': 'gzip' } })
      expect(gunzipSync(again.bytes)).toEqual(plain.bytes)
    },
  )

  it.each(['/file', '/stream'])('replays %s', async (url) => {
    const app = await appWith('before')
    const key = aKey()
    expect((await send(app, url, { key })).bytes.toString()).toBe('a receipt')
    expect(await send(app, url, { key })).toMatchObject({ isReplay: true, bytes: Buffer.from('a receipt') })
  })

  it('gives every replay the CORS headers of its own request', async () => {
    const app = await appWith('before')
    const key = aKey()
    await send(app, '/json', { key, headers: { origin: 'https://one.example' } })
    const { headers } = await send(app, '/json', { key, headers: { origin: 'https://two.example' } })
    expect(headers['access-control-allow-origin']).toBe('https://two.example')
  })
})

describe('fastify plugin › a client that goes away', () => {
  it.each(['JSON', 'nothing, with 204', 'a stream', 'a hijacked reply', 'an error that was thrown'])(
    'gets %s from a retry, with one effect',
    async (name) => {
      const { handler, status = 200 } = ANSWERS[name] ?? expect.fail()
      const started = gate()
      const gone = gate()
      let effects = 0
      const { app } = await anApp((app) => {
        app.post('/', async function (request, reply) {
          effects += 1
          reply.raw.once('close', gone.open)
          started.open()
          await gone.opened
          return handler.call(this, request, reply)
        })
      })
      const url = await app.listen({ port: 0, host: '127.0.0.1' })
      const key = aKey()
      const headers = { 'idempotency-key': key, 'content-type': 'application/json' }
      const leaving = httpRequest(url, { method: 'POST', headers })
      leaving.once('error', () => {})
      leaving.end('{"amount":5}')
      await started.opened
      leaving.destroy()
      await expect.poll(async () => (await send(app, '/', { key })).isReplay).toBe(true)
      expect(await send(app, '/', { key })).toMatchObject({ status, isReplay: true })
      expect(effects).toBe(1)
      await app.close()
    },
  )
})

describe("fastify plugin › Fastify's handlerTimeout", () => {
  it('does not free the key of a handler that still runs', async () => {
    const { opened, open } = gate()
    let effects = 0
    const { send } = await anApp((app) => {
      app.post('/', { handlerTimeout: 30 }, async () => {
        await opened
        effects += 1
        return 'done'
      })
    })
    const key = aKey()
    expect(await send('/', { key })).toMatchObject({ status: 503 })
    expect(await send('/', { key })).toMatchObject({ status: 409, code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
    open()
    await expect.poll(async () => (await send('/', { key })).code).toBe('IDEMPOTENCY_RESPONSE_NOT_KEPT')
    expect(effects).toBe(1)
  })
})

describe('a storm of retries', () => {
  it('gets the first answer each time, whatever the hooks of the application do with one of them', async () => {
    const { send } = await anApp((app) => {
      app.addHook('onSend', async (_request, reply, payload) => {
        const links: unknown = reply.getHeader('link')
        if (Array.isArray(links)) links.push('<https://c.example>; rel="other"')
        if (Buffer.isBuffer(payload)) payload.fill('x')
        reply.header('x-kept', 'changed')
        return 'another body'
      })
      app.post('/', async (_request, reply) => {
        reply.headers({ link: ['<https://a.example>; rel="next"'], 'x-kept': 'yes' })
        return { a: 1 }
      })
    })
    const key = aKey()
    const first = await send('/', { key })
    // Hooks of the application come before the answer is kept.
    expect(first.headers).toMatchObject({
      link: [expect.any(String), expect.any(String)],
      'x-kept': 'changed',
    })
    for (let retry = 0; retry < 4; retry += 1) {
      const answer = await send('/', { key })
      expect(answer.isReplay).toBe(true)
      expect(answer.headers.link).toEqual(first.headers.link)
      expect(answer.headers['x-kept']).toBe('changed')
      expect(answer.bytes).toEqual(first.bytes)
    }
  })
})
