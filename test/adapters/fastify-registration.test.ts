import Fastify, { type FastifyInstance } from 'fastify'
import { describe, expect, it } from 'vitest'
import idempotency from '../../src/adapters/fastify.js'
import { memoryStore } from '../../src/stores/memory.js'
import { disturbed } from '../support/disturbed-store.js'
import { aKey, anApp, send } from '../support/fastify-app.js'

describe('fastify plugin › registration', () => {
  it.each([
    [{}, /option "scope" is required: a function of the request .* or 'shared'/],
    [{ scope: 'acme' }, /option "scope" must be a function .* got "acme"/],
    [{ scope: 'shared', ttl: 'long' }, /option "ttl" must be a duration .* got "long"/],
    [{ scope: 'shared', methods: [] }, /option "methods" must name at least one method/],
    [{ scope: 'shared', methods: ['post'] }, /option "methods/],
    [{ scope: 'shared', header: 'not a name' }, /option "header" must be a header name/],
    [{ scope: 'shared', key: 'body.id' }, /option "key" must be a function of the request; got "body.id"/],
    [{ scope: 'shared', required: 'yes' }, /option "required" must be true or false; got "yes"/],
    [
      { scope: 'shared', fingerprint: true },
      /option "fingerprint" must be 'body', 'raw', false or a function/,
    ],
    [{ scope: 'shared', keep: [200] }, /option "keep" must be a function of the response; got an array/],
    [{ scope: 'shared', headers: { keep: 'etag' } }, /option "headers/],
    [
      { scope: 'shared', maxBodyBytes: -1 },
      /option "maxBodyBytes" must be a whole number of at least 0; got -1/,
    ],
    [{ scope: 'shared', docsUrl: 'docs' }, /option "docsUrl" must be an absolute URL; got "docs"/],
    [{ scope: 'shared', onProblem: {} }, /option "onProblem" must be a function/],
    [{ scope: 'shared', global: 'no' }, /option "global" must be true or false; got no/],
    [{ scope: 'shared', store: 'redis' }, /option "store" must be a store/],
    [{ scope: 'shared', ttll: '1d' }, /there is no option "ttll"/],
  ])('refuses %o', async (options, message) => {
    const app = Fastify()
    await expect(app.register(idempotency, options as never)).rejects.toThrow(message)
  })

  it.each([
    [{ ttl: -1 }, /route POST \/payments: option "ttl"/],
    [{ scope: 'shared' }, /route POST \/payments: there is no option "scope"/],
    [{ methods: ['PUT'] }, /route POST \/payments: option "methods" protects PUT only/],
    ['yes', /route POST \/payments/],
  ])('refuses the route options %o', async (options, message) => {
    const app = Fastify()
    await app.register(idempotency, { scope: 'shared' })
    expect(() => app.post('/payments', { config: { idempotency: options as never } }, () => '')).toThrow(
      message,
    )
  })

  it('refuses to protect a route whose method it leaves alone', async () => {
    const app = Fastify()
    await app.register(idempotency, { scope: 'shared' })
    expect(() => app.get('/', { config: { idempotency: true } }, () => '')).toThrow(/option "methods"/)
    app.put('/', { config: { idempotency: { methods: ['PUT'] } } }, () => '')
    const key = aKey()
    await send(app, '/', { key, method: 'PUT' })
    expect(await send(app, '/', { key, method: 'PUT' })).toMatchObject({ isReplay: true })
  })

  it('refuses to be registered twice in one context', async () => {
    const app = Fastify()
    await app.register(idempotency, { scope: 'shared' })
    await expect(app.register(idempotency, { scope: 'shared' })).rejects.toThrow(/registered already/)
  })

  it('warns about routes that were there before it', async () => {
    const app = Fastify()
    app.post('/payments', () => 'done')
    const warned = new Promise<Error>((resolve) => process.once('warning', resolve))
    await app.register(idempotency, { scope: 'shared' })
    expect(await warned).toMatchObject({ code: 'ONCEKEY_ROUTES_BEFORE_PLUGIN' })
  })

  it('does not start on a store that is unfit', async () => {
    const { StoreUnfitError } = await import('../../src/contract/errors.js')
    const store = {
      ...memoryStore(),
      check: () => Promise.reject(new StoreUnfitError('The table is unlogged')),
    }
    const { app } = await anApp((app) => void app.post('/', () => ''), { store })
    await expect(app.ready()).rejects.toThrow('The table is unlogged')
  })

  it('starts while its store is away, and checks it before the first claim', async () => {
    let isAway = true
    const inner = memoryStore()
    const store = {
      ...inner,
      check: async () => {
        if (isAway) throw new Error('connection refused')
        return []
      },
    }
    const { app, send } = await anApp((app) => void app.post('/', () => ''), { store })
    await app.ready()
    expect(await send('/', { key: aKey() })).toMatchObject({ status: 503 })
    isAway = false
    expect(await send('/', { key: aKey() })).toMatchObject({ status: 200 })
  })
})

describe('fastify plugin › routes', () => {
  it('leaves other methods alone, and takes PATCH', async () => {
    const line = disturbed(memoryStore())
    const { send } = await anApp(
      (app) => {
        app.route({ method: ['GET', 'PUT', 'DELETE', 'PATCH'], url: '/', handler: () => 'done' })
      },
      { store: line.store },
    )
    for (const method of ['GET', 'PUT', 'DELETE'] as const) {
      const payload = method === 'GET' ? {} : { payload: { amount: 5 } }
      expect(await send('/', { key: aKey(), method, ...payload })).toMatchObject({ status: 200 })
    }
    expect(line.calls.claim).toBe(0)
    const key = aKey()
    await send('/', { key, method: 'PATCH' })
    expect(await send('/', { key, method: 'PATCH' })).toMatchObject({ isReplay: true })
  })

  it('can be turned off, and pay nothing then', async () => {
    const hooks: Record<string, unknown> = {}
    const { send } = await anApp((app) => {
      app.addHook('onRoute', (route) => {
        hooks[route.url] = [route.preHandler, route.onSend, route.onError, route.preParsing]
      })
      app.post('/search', { config: { idempotency: false } }, () => 'found')
      app.post('/payments', () => 'paid')
    })
    expect(hooks['/search']).toEqual([undefined, undefined, undefined, undefined])
    expect(hooks['/payments']).toEqual([expect.any(Array), expect.any(Array), expect.any(Array), undefined])
    const key = aKey()
    await send('/search', { key })
    expect(await send('/search', { key })).toMatchObject({ isReplay: false })
  })

  it('opt in where protection is not global', async () => {
    const { send } = await anApp(
      (app) => {
        app.post('/search', () => 'found')
        app.post('/payments', { config: { idempotency: true } }, () => 'paid')
        app.post('/orders', { config: { idempotency: { required: true } } }, () => 'ordered')
      },
      { global: false },
    )
    const key = aKey()
    for (const [url, isReplay] of [
      ['/search', false],
      ['/payments', true],
    ] as const) {
      await send(url, { key: `${key}${url}` })
      expect(await send(url, { key: `${key}${url}` })).toMatchObject({ isReplay })
    }
    expect(await send('/orders')).toMatchObject({ code: 'IDEMPOTENCY_KEY_MISSING' })
  })

  it('have a ttl of their own', async () => {
    const { send } = await anApp((app) => {
      app.post('/short', { config: { idempotency: { ttl: 30 } } }, () => 'done')
      app.post('/long', () => 'done')
    })
    const key = aKey()
    await send('/short', { key: `${key}-short` })
    await send('/long', { key: `${key}-long` })
    await expect.poll(async () => (await send('/short', { key: `${key}-short` })).isReplay).toBe(false)
    expect(await send('/long', { key: `${key}-long` })).toMatchObject({ isReplay: true })
  })

  it('come after what authentication and validation refuse', async () => {
    const line = disturbed(memoryStore())
    const { send } = await anApp(
      (app) => {
        app.addHook('preHandler', async (request, reply) => {
          if (request.headers.authorization === undefined) return reply.code(402).send('who are you')
        })
        const schema = { body: { type: 'object', required: ['amount'] } }
        app.post('/payments', { schema }, () => 'paid')
      },
      { store: line.store },
    )
    const key = aKey()
    expect(await send('/payments', { key, payload: {} })).toMatchObject({ status: 400 })
    expect(await send('/payments', { key })).toMatchObject({ status: 402 })
    expect(line.calls.claim).toBe(0)
    expect(await send('/payments', { key, headers: { authorization: 'me' } })).toMatchObject({ status: 200 })
  })

  it('under a prefix are protected with and without a trailing slash', async () => {
    const app = Fastify()
    await app.register(idempotency, { scope: 'shared' })
    await app.register(async (inner) => void inner.post('/', () => 'done'), { prefix: '/payments' })
    for (const url of ['/payments', '/payments/']) {
      const key = aKey()
      await send(app, url, { key })
      expect(await send(app, url, { key })).toMatchObject({ isReplay: true })
    }
  })
})

describe('fastify plugin › contexts', () => {
  async function context(app: FastifyInstance, prefix: string, header: string): Promise<void> {
    await app.register(
      async (inner) => {
        await inner.register(idempotency, { scope: 'shared', store: memoryStore(), header })
        inner.post('/', (request) => request.idempotency.key ?? 'none')
      },
      { prefix },
    )
  }

  it('beside each other have options and keys of their own', async () => {
    const app = Fastify()
    await context(app, '/a', 'Key-A')
    await context(app, '/b', 'Key-B')
    app.post('/bare', (request) => String(request.idempotency))
    const headers = { 'key-a': 'a', 'key-b': 'b' }
    expect((await send(app, '/a', { headers })).bytes.toString()).toBe('a')
    expect((await send(app, '/b', { headers })).bytes.toString()).toBe('b')
    expect((await send(app, '/bare', { headers })).bytes.toString()).toBe('undefined')
  })

  it('inside each other obey the inner registration', async () => {
    const app = Fastify()
    await app.register(idempotency, { scope: 'shared', header: 'Outer' })
    app.post('/outer', (request) => request.idempotency.key ?? 'none')
    await context(app, '/inner', 'Inner')
    const headers = { outer: 'o', inner: 'i' }
    expect((await send(app, '/outer', { headers })).bytes.toString()).toBe('o')
    expect((await send(app, '/inner', { headers })).bytes.toString()).toBe('i')
  })
})

describe('fastify plugin › request.idempotency', () => {
  it('tells a handler about its operation', async () => {
    const { send } = await anApp((app) => {
      app.post('/', ({ idempotency }) => {
        const { key, fence, replayed, signal } = idempotency
        return { key, fence, replayed, aborted: signal.aborted, same: idempotency.signal === signal }
      })
    })
    const key = aKey()
    expect(JSON.parse((await send('/', { key })).bytes.toString())).toEqual({
      key,
      fence: 1,
      replayed: false,
      aborted: false,
      same: true,
    })
  })

  it('is inert without a key', async () => {
    const { send } = await anApp((app) => {
      app.post('/', ({ idempotency }) => {
        idempotency.forget()
        const { key, fence, replayed, signal } = idempotency
        return { key: key ?? null, fence, replayed, aborted: signal.aborted }
      })
    })
    expect(JSON.parse((await send('/')).bytes.toString())).toEqual({
      key: null,
      fence: 0,
      replayed: false,
      aborted: false,
    })
  })

  it('tells hooks about a replay', async () => {
    const seen: boolean[] = []
    const { send } = await anApp((app) => {
      app.addHook('onResponse', async ({ idempotency }) => void seen.push(idempotency.replayed))
      app.post('/', () => 'done')
    })
    const key = aKey()
    await send('/', { key })
    await send('/', { key })
    await expect.poll(() => seen).toEqual([false, true])
  })
})

describe('fastify plugin › app.idempotency', () => {
  it('runs plain functions, and reports what routes do', async () => {
    const { app, send } = await anApp((app) => void app.post('/payments/:id', () => 'done'))
    const routes: string[] = []
    app.idempotency.on((event) => {
      if (event.type === 'claimed') routes.push(event.operation.route)
    })
    await send('/payments/7', { key: aKey() })
    expect(await app.idempotency.run({ scope: 'acme', key: aKey(), name: 'invoice' }, () => 1)).toBe(1)
    expect(routes).toEqual(['POST /payments/:id', 'invoice'])
  })

  it('writes to the log what an operator should know, without the key', async () => {
    const lines: string[] = []
    const app = Fastify({ logger: { level: 'warn', stream: { write: (line) => void lines.push(line) } } })
    const line = disturbed(memoryStore())
    await app.register(idempotency, { scope: 'shared', store: line.store, onStoreOutage: 'run' })
    app.post('/', () => 'done')
    line.disturb('claim', 'fails')
    await send(app, '/', { key: 'a-secret-key' })
    expect(lines.map((text) => JSON.parse(text).event)).toContain('unprotected')
    expect(lines.join('')).not.toContain('a-secret-key')
  })
})
