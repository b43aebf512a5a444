import { PassThrough } from 'node:stream'
import cors from '@fastify/cors'
import formbody from '@fastify/formbody'
import Fastify, { type FastifyInstance } from 'fastify'
import { afterEach, describe, expect, it } from 'vitest'
import idempotency from '../../src/adapters/fastify.js'
import operatorConsole, { type ConsoleOptions } from '../../src/console/console.js'
import { memoryStore } from '../../src/stores/memory.js'
import { aConsoleWorld, type ConsoleWorld, change } from '../support/console-world.js'
import { aKey } from '../support/fastify-app.js'

const open: { close(): Promise<unknown> }[] = []
afterEach(async () => {
  await Promise.all(open.splice(0).map((world) => world.close()))
})

async function aWorld(...given: Parameters<typeof aConsoleWorld>): Promise<ConsoleWorld> {
  const world = await aConsoleWorld(...given)
  open.push(world)
  return world
}

/** A confirmed form that would release a record, as Ann's browser would send it. */
async function aConfirmedRelease(world: ConsoleWorld) {
  const id = await world.orphan(aKey())
  const path = `/console/records/${id}/release`
  const asked = await world.post(path, (await world.get(`/console/records/${id}`)).hidden('release'))
  const send = (headers: Parameters<ConsoleWorld['post']>[2]) =>
    world.post(path, asked.hidden('release'), headers)
  const isUntouched = async () => (await world.store.find(id))?.status === 'unknown'
  return { path, fields: asked.hidden('release'), send, isUntouched }
}

describe('a form that changes something', () => {
  it.each([
    ['another site sent it', { origin: 'https://evil.example', 'sec-fetch-site': 'cross-site' }],
    [
      'a neighbour of this site sent it',
      { origin: 'https://www.example.com', 'sec-fetch-site': 'same-site' },
    ],
    [
      'another site sent it, in a browser that says no more than its origin',
      { origin: 'https://evil.example', 'sec-fetch-site': undefined },
    ],
    ['it says that another site sent it, whatever the origin', { 'sec-fetch-site': 'cross-site' }],
    ['no page sent it', { 'sec-fetch-site': 'none' }],
    ['it has no origin', { origin: undefined }],
    ['its origin is hidden, as from a sandbox or a file', { origin: 'null' }],
    ['its origin is none', { origin: 'ops.example.com', 'sec-fetch-site': undefined }],
    ['it was sent to another host', { host: 'rebound.example' }],
    ['its port is another', { origin: 'https://ops.example.com:8443' }],
  ])('is refused when %s', async (_, headers) => {
    const world = await aWorld()
    const { send, isUntouched } = await aConfirmedRelease(world)
    const refused = await send(headers)
    expect(refused).toMatchObject({ status: 403 })
    expect(refused.text).toContain('This form was refused')
    expect(await isUntouched()).toBe(true)
    expect(world.audit).toEqual([])
    // The same form is fine where it belongs.
    expect(await send({})).toMatchObject({ status: 200 })
  })

  it('passes where a browser sends no more than an origin', async () => {
    const world = await aWorld()
    const { send } = await aConfirmedRelease(world)
    expect(await send({ 'sec-fetch-site': undefined })).toMatchObject({ status: 200 })
  })

  it.each(['text/plain', 'application/json', 'multipart/form-data; boundary=x', 'application/octet-stream'])(
    'is refused as %s, which a page of another site could send',
    async (type) => {
      const world = await aWorld()
      const { send, isUntouched } = await aConfirmedRelease(world)
      expect(await send({ 'content-type': type })).toMatchObject({ status: 415 })
      expect(await isUntouched()).toBe(true)
    },
  )

  it.each([
    ['another person', { 'x-operator': 'eve' }],
    ['another session of the same person', { 'x-operator': 'ann-elsewhere' }],
  ])('is refused with the proof of %s', async (_, headers) => {
    const world = await aWorld()
    const { send, isUntouched } = await aConfirmedRelease(world)
    expect(await send(headers)).toMatchObject({ status: 403 })
    expect(await isUntouched()).toBe(true)
  })

  it.each([
    ['nothing', ''],
    ['a guess', 'mimg5wfr.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'],
    ['no time', '.AAAA'],
    ['a time far off', 'zzzzzzzzzz.AAAA'],
  ])('is refused with %s for a proof', async (_, confirm) => {
    const world = await aWorld()
    const { path, fields, isUntouched } = await aConfirmedRelease(world)
    expect(await world.post(path, { ...fields, confirm })).toMatchObject({ status: 403 })
    expect(await isUntouched()).toBe(true)
  })

  it('changes nothing by GET, nor by another method in disguise', async () => {
    const world = await aWorld()
    const { path, fields, isUntouched } = await aConfirmedRelease(world)
    const query = new URLSearchParams(fields).toString()
    expect(await world.get(`${path}?${query}`)).toMatchObject({ status: 404 })
    const disguised = { 'x-http-method-override': 'POST' }
    expect(await world.get(`${path}?${query}&_method=POST`, disguised)).toMatchObject({ status: 404 })
    expect(await isUntouched()).toBe(true)
  })

  it('is refused when it is longer than anybody types', async () => {
    const world = await aWorld()
    const id = await world.orphan(aKey())
    const path = `/console/records/${id}/settle`
    expect(await world.post(path, { body: 'x'.repeat(300_000) })).toMatchObject({ status: 413 })
  })

  it('is taken by another process with the same secret, and not by one with another', async () => {
    const secret = 'of 16 bytes or more'
    const store = memoryStore()
    const one = await aWorld({ secret }, { store })
    const other = await aWorld({ secret }, { store })
    const stranger = await aWorld({}, { store })
    const { path, fields } = await aConfirmedRelease(one)
    expect(await stranger.post(path, fields)).toMatchObject({ status: 403 })
    expect(await other.post(path, fields)).toMatchObject({ status: 200 })
  })
})

describe('behind a proxy that changes the host', () => {
  const proxied = { host: 'internal:3000', origin: 'https://ops.example.com' }

  it('a form is taken where the option "origin" says where the console is', async () => {
    const world = await aWorld({ origin: 'https://ops.example.com' })
    const id = await world.orphan(aKey())
    const { send } = await aConfirmedRelease(world)
    expect(await send(proxied)).toMatchObject({ status: 200 })
    expect(
      await world.post('/console/search', { id }, { ...proxied, origin: 'http://ops.example.com' }),
    ).toMatchObject({
      status: 403,
    })
  })

  it('a form is taken where Fastify is told to trust the proxy', async () => {
    const world = await aWorld({}, { app: Fastify({ trustProxy: true }) })
    const { send } = await aConfirmedRelease(world)
    expect(await send({ ...proxied, 'x-forwarded-host': 'ops.example.com' })).toMatchObject({ status: 200 })
  })

  it('a form is refused otherwise, with the option that is missing', async () => {
    const world = await aWorld()
    const { send } = await aConfirmedRelease(world)
    const refused = await send({ ...proxied, 'x-forwarded-host': 'ops.example.com' })
    expect(refused).toMatchObject({ status: 403 })
    expect(refused.text).toContain('option &#34;origin&#34;')
  })
})

describe('authorize', () => {
  it.each(['/', '/console.css', '/records', '/records/x', ''])('comes before %s', async (path) => {
    const world = await aWorld()
    const refused = await world.get(`/console${path}`, { 'x-operator': 'nobody' })
    expect(refused).toMatchObject({ status: 403 })
    expect(refused.text).not.toContain('Overview')
    expect(refused.text).not.toContain('--page')
  })

  it('comes before forms are read or looked at', async () => {
    const world = await aWorld()
    const body = { key: 'k', scope: 's' }
    const foreign = { 'x-operator': 'nobody', 'content-type': 'text/plain', origin: 'https://evil.example' }
    const refused = await world.post('/console/search', body, foreign)
    expect(refused).toMatchObject({ status: 403 })
    expect(refused.text).toContain('not allowed')
  })

  it.each([
    [
      'throws',
      () => {
        throw new Error('secret words')
      },
      500,
    ],
    ['rejects', () => Promise.reject(new Error('secret words')), 500],
    ['says yes, and not who', () => true, 500],
    ['gives a nameless person', () => ({ by: '', mayChange: true }), 500],
    ['gives nothing', () => undefined, 403],
    [
      'refuses with a status of its own',
      () => {
        throw Object.assign(new Error('secret words'), { statusCode: 401 })
      },
      401,
    ],
  ])('lets nobody in when it %s', async (_, authorize, status) => {
    const world = await aWorld({ authorize: authorize as unknown as ConsoleOptions['authorize'] })
    const refused = await world.get('/console/')
    expect(refused.status).toBe(status)
    expect(refused.text).not.toContain('Unknown outcomes')
    expect(refused.text).not.toContain('secret words')
  })

  it('comes after the hooks of the application, whose answers are left as they are', async () => {
    const app = Fastify()
    app.addHook('onRequest', async (request, reply) => {
      if (request.headers['x-operator'] === undefined)
        return reply.code(401).header('www-authenticate', 'Basic').send('who?')
    })
    const world = await aWorld({}, { app })
    const answer = await app.inject('/console/')
    expect(answer.statusCode).toBe(401)
    expect(answer.headers).not.toHaveProperty('content-security-policy')
    expect(await world.get('/console/')).toMatchObject({ status: 200 })
  })
})

describe('registration', () => {
  async function register(
    options: object,
    given: { readonly withEngine?: boolean; readonly app?: FastifyInstance } = {},
  ): Promise<FastifyInstance> {
    const { app = Fastify() } = given
    open.push(app)
    if (given.withEngine !== false) await app.register(idempotency, { store: memoryStore(), scope: 'shared' })
    await app.register(operatorConsole, { prefix: '/console', ...options } as ConsoleOptions & {
      prefix: string
    })
    return app
  }
  const authorize = () => ({ by: 'ann' })

  it.each([
    ['option "authorize" is required', {}],
    ['option "authorize" must be a function', { authorize: true }],
    ['option "actions" must be true or false', { authorize, actions: 'yes' }],
    ['option "secret" must be text or bytes, 16 bytes or more; got a string', { authorize, secret: 'short' }],
    ['option "origin" must be an origin', { authorize, origin: 'https://ops.example.com/console' }],
    ['option "origin" must be an origin', { authorize, origin: 'ops.example.com' }],
    ['option "logger" must be a logger', { authorize, logger: {} }],
    ['option "audit.key" must be', { authorize, audit: { key: 'yes' } }],
    ['option "idempotency" must be an engine', { authorize, idempotency: {} }],
    ['there is no option "readonly"', { authorize, readonly: false }],
  ])('is refused: %s', async (message, options) => {
    await expect(register(options)).rejects.toMatchObject({
      code: 'IDEMPOTENCY_OPTIONS_INVALID',
      message: expect.stringContaining(message),
    })
  })

  it('is refused where there is no engine', async () => {
    await expect(register({ authorize }, { withEngine: false })).rejects.toMatchObject({
      code: 'IDEMPOTENCY_OPTIONS_INVALID',
      message: expect.stringContaining('there is no app.idempotency'),
    })
  })

  it.each([
    ['no logger', {}],
    ['a logger that is silent', { logger: { level: 'silent' } }],
    ['a logger that leaves warnings out', { logger: { level: 'error' } }],
  ])(
    'is refused with actions in an application with %s, for nobody would know who changed what',
    async (_, own) => {
      const logged = () => Fastify({ ...own })
      await expect(register({ authorize, actions: true }, { app: logged() })).rejects.toMatchObject({
        code: 'IDEMPOTENCY_OPTIONS_INVALID',
        message: expect.stringContaining('give the option "logger"'),
      })
      const logger = { info() {}, warn() {} }
      await register({ authorize, actions: true, logger }, { app: logged() })
      await register({ authorize }, { app: logged() })
    },
  )

  it('takes the log of the application for actions, where it writes warnings', async () => {
    const stream = new PassThrough({ encoding: 'utf8' })
    const app = Fastify({ logger: { level: 'warn', stream } })
    const world = await aWorld({ logger: undefined } as object, { app })
    const { result } = await change(world, await world.orphan(aKey()), 'release')
    expect(result.status).toBe(200)
    const lines = String(stream.read())
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
    expect(lines).toMatchObject([
      { audit: 'oncekey', event: 'releasing', by: 'ann' },
      { audit: 'oncekey', event: 'released', by: 'ann' },
    ])
  })

  it('only shows, unless it is told otherwise', async () => {
    const app = await register({ authorize: () => ({ by: 'ann', mayChange: true }) })
    expect((await app.inject('/console/')).payload).toContain('read-only')
  })
})

describe('the application', () => {
  it('keeps its own parsers, and the console its own', async () => {
    const app = Fastify()
    await app.register(formbody)
    app.addContentTypeParser('text/plain', { parseAs: 'string' }, (_request, body, done) => done(null, body))
    const world = await aWorld({}, { app })
    app.post('/echo', (request) => ({ body: request.body }))
    const form = { 'content-type': 'application/x-www-form-urlencoded' }
    const echoed = await app.inject({ method: 'POST', url: '/echo', headers: form, payload: 'a=1' })
    expect(echoed.json()).toEqual({ body: { a: '1' } })
    const { send } = await aConfirmedRelease(world)
    expect(await send({ 'content-type': 'text/plain' })).toMatchObject({ status: 415 })
    expect(await send({})).toMatchObject({ status: 200 })
  })

  it('is not taught to read forms', async () => {
    const world = await aWorld()
    const form = { 'content-type': 'application/x-www-form-urlencoded' }
    const answer = await world.app.inject({ method: 'POST', url: '/payments', headers: form, payload: 'a=1' })
    expect(answer.statusCode).toBe(415)
  })

  it('may require a key everywhere: the console sends none', async () => {
    const app = Fastify()
    open.push(app)
    await app.register(idempotency, { store: memoryStore(), scope: 'shared', required: true })
    await app.register(operatorConsole, { prefix: '/console', authorize: () => ({ by: 'ann' }) })
    const answer = await app.inject({
      method: 'POST',
      url: '/console/search',
      headers: {
        host: 'ops',
        origin: 'http://ops',
        'content-type': 'application/x-www-form-urlencoded',
      },
      payload: 'key=k&scope=shared',
    })
    expect(answer.statusCode).toBe(404)
    expect(answer.payload).toContain('No such record')
  })
})

describe('every answer', () => {
  it.each(['/', '/console.css', '/records', '/records/none'])(
    'forbids browsers what it does not need: %s',
    async (path) => {
      const app = Fastify()
      // A hook for the application's own pages must not loosen those of the console.
      app.addHook('onSend', async (_request, reply) => {
        reply.headers({
          'content-security-policy': "default-src *; script-src 'unsafe-inline'",
          'x-frame-options': 'SAMEORIGIN',
        })
      })
      const world = await aWorld({}, { app })
      for (const operator of ['ann', 'nobody'])
        expect((await world.get(`/console${path}`, { 'x-operator': operator })).headers).toMatchObject({
          'content-security-policy':
            "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
          'x-frame-options': 'DENY',
          'x-content-type-options': 'nosniff',
          'referrer-policy': 'same-origin',
          'cache-control': 'no-store',
        })
    },
  )

  it('lets no other site read it, though the application lets them read its API', async () => {
    const app = Fastify()
    await app.register(cors, { origin: true, credentials: true })
    const world = await aWorld({}, { app })
    for (const path of ['/', '/console.css', '/records/none']) {
      const { headers } = await world.get(`/console${path}`, { origin: 'https://evil.example' })
      expect(headers).not.toHaveProperty('access-control-allow-origin')
      expect(headers).not.toHaveProperty('access-control-allow-credentials')
    }
  })

  it('has no script, no style of its own, and nothing from elsewhere', async () => {
    const world = await aWorld()
    const id = await world.orphan(aKey())
    const pages = ['/', '/records?status=unknown', '/records?status=running', `/records/${id}`]
    for (const path of pages) {
      const { text } = await world.get(`/console${path}`)
      expect(text).not.toMatch(
        /<script|<style|\son\w+=|\sstyle=|javascript:|(?:src|href|action)="(?:https?:)?\/\//i,
      )
    }
  })
})

describe('what clients sent', () => {
  const ATTACKS = [
    '<script>alert(1)</script>',
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '</title></textarea></dl><svg onload=alert(1)>',
    '` {{alert(1)}} `',
    '&lt;script&gt;',
    'javascript:alert(1)',
    '\u202Egnp.exe',
  ]

  it.each(ATTACKS)('stays text wherever it is shown: %s', async (attack) => {
    const world = await aWorld()
    const meta = { key: attack, route: `POST /${attack}`, scope: attack, firstSeenAt: Date.now() }
    const id = `id-${attack.replaceAll('/', '')}`
    const claim = { id, fingerprint: 'f', ttlMs: 600_000, takeOver: false, mayBeLost: false, meta }
    await world.store.claim({ ...claim, token: 't', leaseMs: 0 })
    await world.store.claim({ ...claim, id: `${id}2`, token: 't', leaseMs: 600_000 })
    const path = `/console/records/${encodeURIComponent(id)}`
    const { fence, firstSeenAt } = { fence: '1', firstSeenAt: String(meta.firstSeenAt) }
    const fields = { fence, seen: firstSeenAt }
    const sent = { status: attack, answer: attack, body: attack }
    const pages = [
      await world.get('/console/'),
      await world.get(
        `/console/records?status=unknown&route=${encodeURIComponent(attack)}&older=${encodeURIComponent(attack)}`,
      ),
      await world.get(path),
      await world.get(`${path}2`),
      await world.post('/console/search', { key: attack, scope: attack }),
      await world.post(`${path}/settle`, { ...fields, ...sent }),
      await world.post(`${path}/settle`, { ...fields, status: '201', answer: 'text', body: attack }),
      await world.post(`${path}/release`, fields),
      await world.get('/console/', { 'x-operator': attack.replace(/[^ -~]/g, '') }),
      (await change(world, encodeURIComponent(id), 'release')).result,
    ]
    for (const { text, status } of pages) {
      expect([200, 403, 404, 422]).toContain(status)
      expect(tagsOf(text).filter((tag) => !OUR_TAGS.has(tag))).toEqual([])
      expect(handlersOf(text)).toEqual([])
      expect(text).not.toMatch(/(?:href|action|src)="javascript:/)
    }
    expect(pages.filter(({ text }) => text.includes('<bdi>')).length).toBeGreaterThan(4)
  })

  it('is not put into addresses: a key is looked for by POST, and found under a hash', async () => {
    const world = await aWorld()
    const key = aKey()
    await world.pay(key)
    const found = await world.post('/console/search', { key: `"${key}"`, scope: 'acme' })
    expect(found.status).toBe(303)
    expect(String(found.headers.location)).not.toContain(key)
    const { text } = await world.get('/console/records?status=unknown')
    expect(text).not.toMatch(new RegExp(`(?:href|action)="[^"]*${key}`))
  })
})

const OUR_TAGS = new Set(
  `!doctype html head meta title link body a header p span nav ul li main h1 h2 h3 section table caption thead tr th tbody td bdi time
  dl div dt dd figure figcaption svg desc line rect details summary form label input button select option textarea fieldset legend
  strong code pre`.split(/\s+/),
)

/** The names of all tags of a page, as a browser reads them. */
function tagsOf(text: string): readonly string[] {
  return Array.from(text.matchAll(/<\/?([!a-z][a-z0-9-]*)/gi), ([, name = '']) => name.toLowerCase())
}

/** The attributes of all tags that a browser would run, or that stand without quotes. */
function handlersOf(text: string): readonly string[] {
  const tags = text.match(/<[^>]*>/g) ?? []
  const names = tags.map((tag) => tag.replaceAll(/"[^"]*"/g, '""'))
  return names.filter((tag) => /\son\w+|\sstyle|=[^"]|'/i.test(tag))
}
