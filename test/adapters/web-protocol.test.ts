import { describe, expect, it, vi } from 'vitest'
import { idempotency, idempotencyOf } from '../../src/adapters/web.js'
import { OptionsError } from '../../src/contract/errors.js'
import { memoryStore } from '../../src/stores/memory.js'
import { disturbed } from '../support/disturbed-store.js'
import { aKey } from '../support/fastify-app.js'
import { gate } from '../support/gate.js'
import { aHandler, answered, aRequest, silent } from '../support/web-app.js'

/** A handler that counts its runs, and reads what it was sent. */
function counting() {
  const seen: string[] = []
  return {
    seen,
    handler: async (request: Request) => {
      seen.push(await request.text())
      return new Response(`run ${seen.length}`)
    },
  }
}

describe('web handler › problems', () => {
  it('refuses a request without a key where one is required, and lets it pass elsewhere', async () => {
    const { seen, handler } = counting()
    const { send } = aHandler(handler, {}, { required: true })
    expect(await send()).toMatchObject({ status: 400, code: 'IDEMPOTENCY_KEY_MISSING' })
    expect(seen).toEqual([])
    const free = aHandler(handler)
    await free.send()
    expect(await free.send()).toMatchObject({ status: 200, isReplay: false })
    expect(seen).toEqual(['{"amount":5}', '{"amount":5}'])
  })

  it('lets other methods pass', async () => {
    const { seen, handler } = counting()
    const { send } = aHandler(handler, { required: true })
    for (const method of ['GET', 'PUT', 'DELETE'])
      expect(await send({ method, key: 'k' })).toMatchObject({ status: 200 })
    expect(seen).toHaveLength(3)
    expect(await send({ method: 'PATCH' })).toMatchObject({ status: 400 })
  })

  it.each([
    ['malformed', 'two words'],
    ['empty', '""'],
    ['too long', 'k'.repeat(256)],
    ['sent twice', 'a, a'],
    ['in two halves', '"a, b"'],
    ['made of two by a proxy', 'a,b'],
  ])('refuses a key that is %s, and runs nothing', async (_, key) => {
    const { seen, handler } = counting()
    const { send } = aHandler(handler)
    expect(await send({ key })).toMatchObject({ status: 400, code: 'IDEMPOTENCY_KEY_INVALID' })
    expect(seen).toEqual([])
  })

  it('takes quoted and bare values for one key, and several names of the header where they agree', async () => {
    const { handler } = counting()
    const { send } = aHandler(handler, { header: ['Idempotency-Key', 'PayPal-Request-Id'] })
    const key = aKey()
    await send({ key: `"${key}";v=1` })
    expect(await send({ headers: { 'paypal-request-id': key } })).toMatchObject({ isReplay: true })
    expect(await send({ key, headers: { 'paypal-request-id': 'other' } })).toMatchObject({
      code: 'IDEMPOTENCY_KEY_INVALID',
    })
  })

  it('refuses a duplicate while the first is running, or lets it wait', async () => {
    const { opened, open } = gate()
    const started = gate()
    let runs = 0
    const store = memoryStore()
    const { once } = aHandler(() => new Response(), { store })
    const slow = async () => {
      started.open()
      await opened
      return new Response(`run ${++runs}`)
    }
    const [hasty, patient] = [once(slow), once(slow, { whenBusy: { wait: '20s' } })]
    const key = aKey()
    const first = hasty(aRequest({ key }))
    await started.opened
    const second = await answered(await hasty(aRequest({ key })))
    expect(second).toMatchObject({ status: 409, code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
    expect(second.headers).toMatchObject({ 'retry-after': '1', 'cache-control': 'no-store' })
    const third = patient(aRequest({ key }))
    open()
    expect(await (await first).text()).toBe('run 1')
    expect(await answered(await third)).toMatchObject({ isReplay: true, bytes: Buffer.from('run 1') })
    expect(runs).toBe(1)
  })

  it('answers 503 while the store is away, and runs nothing, or runs unprotected where it may', async () => {
    const { seen, handler } = counting()
    const line = disturbed(memoryStore())
    const options = { store: line.store, storeTimeout: '50ms' } as const
    line.disturb('claim', 'stalls')
    expect(await aHandler(handler, options).send({ key: aKey() })).toMatchObject({
      status: 503,
      code: 'IDEMPOTENCY_STORE_UNAVAILABLE',
    })
    expect(seen).toEqual([])
    const careless = aHandler(handler, { ...options, onStoreOutage: 'run' })
    expect(await careless.send({ key: aKey() })).toMatchObject({ status: 200 })
    expect(seen).toHaveLength(1)
  })

  it('can be shaped by the application, which is told of the request and what came with it', async () => {
    const once = idempotency({
      store: memoryStore(),
      scope: 'shared',
      required: true,
      log: silent,
      docsUrl: 'https://bank.example/retries',
      onProblem: ({ code }, request, context: { name: string }) => ({
        body: `${code} at ${new URL(request.url).pathname} for ${context.name}`,
      }),
    })
    const wrapped = once((_request: Request, _context: { name: string }) => new Response())
    const answer = await wrapped(aRequest(), { name: 'ada' })
    expect(await answer.text()).toBe('IDEMPOTENCY_KEY_MISSING at /payments for ada')
    expect(answer.headers.get('link')).toContain('https://bank.example/retries')
  })

  it.each([
    ['gives nothing', () => undefined as never],
    ['gives an empty name', () => ''],
    ['throws', () => expect.fail('nobody is logged in')],
  ])('answers 500, and runs nothing, when the scope function %s', async (_, scope) => {
    const { seen, handler } = counting()
    const { send } = aHandler(handler, { scope })
    expect(await send({ key: aKey() })).toMatchObject({ status: 500, code: 'IDEMPOTENCY_SCOPE_MISSING' })
    expect(seen).toEqual([])
  })
})

describe('web handler › the request', () => {
  it('is handed on as it is, with all that came with it, and its body unread', async () => {
    const { once } = aHandler(() => new Response())
    const given: unknown[] = []
    const wrapped = once(async (request: Request, context: { params: string }, env: object) => {
      given.push(request, context, env, await request.json())
      return new Response()
    })
    const [request, context, env] = [aRequest({ key: aKey() }), { params: 'p' }, {}]
    await wrapped(request, context, env)
    expect(given[0]).toBe(request)
    expect(given[1]).toBe(context)
    expect(given[2]).toBe(env)
    expect(given[3]).toEqual({ amount: 5 })
  })

  it('may be long, and slow, and empty, up to its limit', async () => {
    const { seen, handler } = counting()
    const { send } = aHandler(handler, { maxRequestBytes: 300_000 })
    const long = 'x'.repeat(300_000)
    const slowly = new ReadableStream<Uint8Array>({
      async start(controller) {
        for (let at = 0; at < long.length; at += 100_000) {
          await new Promise((resolve) => setImmediate(resolve))
          controller.enqueue(Buffer.from(long.slice(at, at + 100_000)))
        }
        controller.close()
      },
    })
    expect(await send({ key: aKey(), body: slowly })).toMatchObject({ status: 200 })
    expect(await send({ key: aKey(), body: null })).toMatchObject({ status: 200 })
    expect(await send({ key: aKey(), body: '' })).toMatchObject({ status: 200 })
    expect(seen).toEqual([long, '', ''])
  })

  it.each([
    ['says so', {}, () => 'x'.repeat(1001)],
    ['does not say so', {}, () => new Blob(['x'.repeat(600), 'x'.repeat(600)]).stream()],
    ['lies about it', { 'content-length': '5' }, () => new Blob(['x'.repeat(1001)]).stream()],
  ])('is refused when it is longer, and %s', async (_, headers, body) => {
    const { seen, handler } = counting()
    const { send } = aHandler(handler, {}, { maxRequestBytes: 1000 })
    const key = aKey()
    expect(await send({ key, headers, body: body() })).toMatchObject({
      status: 413,
      code: 'IDEMPOTENCY_REQUEST_TOO_LARGE',
    })
    expect(seen).toEqual([])
    // Nothing was claimed, and nothing is read where nothing is compared.
    expect(await send({ key, body: 'short' })).toMatchObject({ status: 200 })
    expect(await send({ body: body() })).toMatchObject({ status: 200 })
    const unread = aHandler(handler, {}, { maxRequestBytes: 1000, fingerprint: false })
    expect(await unread.send({ key: aKey(), body: body() })).toMatchObject({ status: 200 })
  })

  it('stops reading at the limit', async () => {
    let pulled = 0
    const endless = new ReadableStream<Uint8Array>(
      {
        pull(controller) {
          pulled += 1
          controller.enqueue(Buffer.alloc(400))
        },
      },
      { highWaterMark: 0 },
    )
    const { send } = aHandler(() => new Response(), { maxRequestBytes: 1000 })
    const saysSo = { 'content-length': '1001' }
    expect(await send({ key: aKey(), headers: saysSo, body: endless })).toMatchObject({ status: 413 })
    expect(pulled).toBe(0)
    expect(await send({ key: aKey(), body: endless })).toMatchObject({ status: 413 })
    expect(pulled).toBeLessThan(6)
  })

  it('is refused with 500 when somebody has read it before', async () => {
    const { once } = aHandler(() => new Response('ran'))
    const wrapped = once(() => new Response('ran'))
    const request = aRequest({ key: aKey() })
    await request.text()
    expect(await answered(await wrapped(request))).toMatchObject({
      status: 500,
      code: 'IDEMPOTENCY_FINGERPRINT_FAILED',
    })
    const unread = once(() => new Response('ran'), { fingerprint: false })
    const again = aRequest({ key: aKey() })
    await again.text()
    expect(await (await unread(again)).text()).toBe('ran')
  })
})

describe('web handler › scope', () => {
  it('runs the same key and body of another caller on its own', async () => {
    const { handler } = counting()
    const { send } = aHandler(handler)
    const key = aKey()
    const ours = await send({ key })
    const theirs = await send({ key, headers: { 'x-tenant': 'other' } })
    expect(theirs).toMatchObject({ isReplay: false, bytes: Buffer.from('run 2') })
    expect(await send({ key })).toMatchObject({ bytes: ours.bytes, isReplay: true })
  })

  it('may be asked for asynchronously, of the request and what came with it', async () => {
    const once = idempotency({
      store: memoryStore(),
      log: silent,
      scope: async (_request, context: { user: string }) => context.user,
    })
    let runs = 0
    const wrapped = once((_request: Request, _context: { user: string }) => new Response(`run ${++runs}`))
    const key = aKey()
    for (const user of ['ada', 'bob', 'ada']) await wrapped(aRequest({ key }), { user })
    expect(runs).toBe(2)
  })
})

describe('web handler › fingerprint', () => {
  it.each([
    ['body', { body: '{"amount":6}' }],
    ['query', { url: 'http://localhost/payments?x=2' }],
    ['path', { url: 'http://localhost/payments/' }],
    ['method', { method: 'PATCH' }],
    ['absence of a body', { body: null }],
  ])('refuses the key with another %s, and still replays the first answer', async (_, given) => {
    const { send } = aHandler(counting().handler)
    const key = aKey()
    const first = await send({ key })
    expect(await send({ key, ...given })).toMatchObject({ status: 422, code: 'IDEMPOTENCY_KEY_REUSED' })
    expect(await send({ key })).toMatchObject({ isReplay: true, bytes: first.bytes })
  })

  it('is that of JSON where the request says that it is, and of bytes elsewhere', async () => {
    const { send } = aHandler(counting().handler)
    for (const type of [
      'application/json',
      'application/json; charset=utf-8',
      'application/vnd.bank+json',
      'APPLICATION/JSON',
    ]) {
      const headers = { 'content-type': type }
      const key = aKey()
      await send({ key, headers, body: '{"a":1,"b":{"c":2,"d":3}}' })
      expect(await send({ key, headers, body: '{ "b":{"d":3,"c":2}, "a":1 }' })).toMatchObject({
        isReplay: true,
      })
    }
    for (const [type, body, other] of [
      ['text/plain', '{"a":1}', '{ "a":1}'],
      ['application/jsonlines', '{"a":1}', '{ "a":1}'],
      ['application/json', 'not json', 'not  json'],
    ] as const) {
      const headers = { 'content-type': type }
      const key = aKey()
      await send({ key, headers, body })
      expect(await send({ key, headers, body: other })).toMatchObject({ status: 422 })
      expect(await send({ key, headers, body })).toMatchObject({ isReplay: true })
    }
  })

  it("compares the received bytes where it is 'raw'", async () => {
    const { seen, handler } = counting()
    const { send } = aHandler(handler, { fingerprint: 'raw' })
    const key = aKey()
    await send({ key, body: '{"a":1}' })
    expect(await send({ key, body: '{"a":1}' })).toMatchObject({ isReplay: true })
    expect(await send({ key, body: '{"a": 1}' })).toMatchObject({ status: 422 })
    expect(seen).toEqual(['{"a":1}'])
  })

  it('compares the fields that a function chooses of a copy, and never another path', async () => {
    const { seen, handler } = counting()
    const { send } = aHandler(
      handler,
      {},
      { fingerprint: async (request) => ((await request.json()) as { amount: number }).amount },
    )
    const key = aKey()
    await send({ key, body: '{"amount":1,"at":1}' })
    expect(await send({ key, body: '{"amount":1,"at":2}' })).toMatchObject({ isReplay: true })
    expect(await send({ key, body: '{"amount":2,"at":1}' })).toMatchObject({ status: 422 })
    expect(await send({ key, body: '{"amount":1}', url: 'http://localhost/refunds' })).toMatchObject({
      status: 422,
    })
    expect(seen).toEqual(['{"amount":1,"at":1}'])
  })

  it('answers 500 when that function fails, and runs nothing', async () => {
    const { seen, handler } = counting()
    const { send } = aHandler(handler, { fingerprint: async (request) => request.json() })
    expect(await send({ key: aKey(), body: 'no json' })).toMatchObject({
      status: 500,
      code: 'IDEMPOTENCY_FINGERPRINT_FAILED',
    })
    expect(seen).toEqual([])
  })

  it.each([false, 'body', 'raw'] as const)(
    "of a registration is replaced by a handler's: %s",
    async (fingerprint) => {
      const general = vi.fn(() => 'always the same')
      const { send } = aHandler(counting().handler, { fingerprint: general }, { fingerprint })
      const key = aKey()
      await send({ key, body: '{"a":1}' })
      const other = await send({ key, body: '{"a":2}' })
      expect(other).toMatchObject(fingerprint === false ? { isReplay: true } : { status: 422 })
      expect(general).not.toHaveBeenCalled()
    },
  )

  it('answers 400 to a body that nests too deep to be compared', async () => {
    const { send } = aHandler(counting().handler)
    const body = `${'['.repeat(200_000)}${']'.repeat(200_000)}`
    expect(await send({ key: aKey(), body })).toMatchObject({ code: 'IDEMPOTENCY_FINGERPRINT_FAILED' })
  })
})

describe('web handler › a key from the request itself', () => {
  const key = async (request: Request) => ((await request.json()) as { id?: string }).id

  it('is taken from a copy', async () => {
    const { seen, handler } = counting()
    const { send } = aHandler(handler, {}, { key, required: true })
    const id = aKey()
    await send({ body: `{"id":"${id}"}` })
    expect(await send({ body: `{"id":"${id}"}` })).toMatchObject({ isReplay: true })
    expect(await send({ body: '{"id":""}' })).toMatchObject({ code: 'IDEMPOTENCY_KEY_INVALID' })
    expect(await send({ body: '{}' })).toMatchObject({ code: 'IDEMPOTENCY_KEY_MISSING' })
    expect(seen).toEqual([`{"id":"${id}"}`])
  })

  it('throws on what its function throws, and runs nothing', async () => {
    const { seen, handler } = counting()
    const { send } = aHandler(handler, { key })
    await expect(send({ body: 'no json' })).rejects.toThrow(SyntaxError)
    expect(seen).toEqual([])
  })
})

describe('idempotencyOf', () => {
  it('knows the operation of the request that the handler got', async () => {
    const { once } = aHandler(() => new Response(), { secret: 'sixteen bytes or more' })
    const derived: string[] = []
    const wrapped = once((request) => {
      const { key, fence, replayed, signal } = idempotencyOf(request)
      expect({ key, fence, replayed, aborted: signal.aborted }).toEqual({
        key: 'k-1',
        fence: 1,
        replayed: false,
        aborted: false,
      })
      const operation = idempotencyOf(request)
      derived.push(operation.deriveKey('psp'), operation.deriveKey('mail'))
      if (derived.length < 4) operation.forget()
      return new Response()
    })
    for (let run = 0; run < 2; run += 1) await wrapped(aRequest({ key: 'k-1' }))
    expect(derived.slice(2)).toEqual(derived.slice(0, 2))
    expect(derived[0]).not.toBe(derived[1])
    const retried = aRequest({ key: 'k-1' })
    await wrapped(retried)
    expect(idempotencyOf(retried).replayed).toBe(true)
  })

  it.each([
    ['without a key', {}],
    ['of an unprotected method', { method: 'PUT', key: 'k' }],
  ])('is inert for a request %s', async (_, given) => {
    const { once } = aHandler(() => new Response())
    let made: string[] = []
    const wrapped = once(async (request) => {
      const operation = idempotencyOf(request)
      const { key, fence, replayed } = operation
      expect({ key, fence, replayed }).toEqual({ key: undefined, fence: 0, replayed: false })
      operation.forget()
      await operation.saveIn(() => expect.fail('nothing to save'), { status: 200 })
      expect(operation.signal).toBe(idempotencyOf(request).signal)
      made = [operation.deriveKey('a'), idempotencyOf(request).deriveKey('a'), operation.deriveKey('b')]
      return new Response()
    })
    await wrapped(aRequest(given))
    expect(made[0]).toBe(made[1])
    expect(made[0]).not.toBe(made[2])
  })

  it('throws for a request that no wrapped handler got, as for a copy', async () => {
    expect(() => idempotencyOf(aRequest())).toThrow(OptionsError)
    const { once } = aHandler(() => new Response())
    const wrapped = once((request) => {
      expect(() => idempotencyOf(request.clone())).toThrow('not a copy')
      return new Response('ran')
    })
    expect(await (await wrapped(aRequest({ key: aKey() }))).text()).toBe('ran')
  })
})

describe('web handler › within another one', () => {
  it('is an error that frees the key, and runs nothing', async () => {
    const { seen, handler } = counting()
    const { once } = aHandler(handler)
    const inner = once(handler)
    const outer = once((request: Request) => inner(request))
    const key = aKey()
    await expect(outer(aRequest({ key }))).rejects.toThrow(OptionsError)
    expect(seen).toEqual([])
    expect(await answered(await inner(aRequest({ key })))).toMatchObject({ status: 200, isReplay: false })
    expect(await (await outer(aRequest())).text()).toBe('run 2')
  })

  it('of another engine keeps its own answer', async () => {
    const { seen, handler } = counting()
    const wrapped = aHandler(handler).once(aHandler(handler).once(handler))
    const key = aKey()
    for (const isReplay of [false, true])
      expect(await answered(await wrapped(aRequest({ key })))).toMatchObject({ status: 200, isReplay })
    expect(seen).toHaveLength(1)
  })
})

describe('idempotency › options', () => {
  it.each([
    [{}, 'option "scope" is required'],
    [{ scope: 7 }, 'option "scope" must be a function'],
    [{ scope: 'shared', fingerprint: 'some' }, 'option "fingerprint"'],
    [{ scope: 'shared', key: 'id' }, 'option "key" must be a function'],
    [{ scope: 'shared', maxRequestBytes: -1 }, 'option "maxRequestBytes"'],
    [{ scope: 'shared', onError: 'none' }, 'option "onError"'],
    [{ scope: 'shared', route: 7 }, 'option "route"'],
    [{ scope: 'shared', log: {} }, 'option "log"'],
    [{ scope: 'shared', global: true }, 'there is no option "global"'],
    [{ scope: 'shared', atomic: true }, 'option "atomic" needs a store with transactions'],
    [undefined, 'option "scope" is required'],
  ])('are checked at start: %j', (options, message) => {
    expect(() =>
      idempotency(options === undefined ? (undefined as never) : ({ log: silent, ...options } as never)),
    ).toThrow(message)
  })

  it('of a handler are checked when it is wrapped, and named by it', () => {
    const { once } = aHandler(() => new Response())
    const handler = () => new Response()
    expect(() => once(handler, { ttl: 'soon' as never })).toThrow('the handler handler: option "ttl"')
    expect(() => once(handler, { atomic: true, route: '/pay' })).toThrow('the handler /pay: option "atomic"')
    expect(() => once(handler, { scope: 'shared' } as never)).toThrow('there is no option "scope"')
    expect(() => once(handler, { log: silent } as never)).toThrow('there is no option "log"')
  })

  it('name the route for operators, and never the path', async () => {
    const routes: string[] = []
    const { once } = aHandler(() => new Response())
    once.engine.on((event) => {
      if (event.type === 'claimed') routes.push(event.operation.route)
    })
    const handler = (_request: Request, _context?: string) => new Response()
    await once(handler)(aRequest({ key: aKey() }))
    await once(handler, { route: '/orders/:id' })(aRequest({ key: aKey() }))
    await once(handler, { route: (_, context: string) => context })(aRequest({ key: aKey() }), '/of/:context')
    expect(routes).toEqual(['POST *', 'POST /orders/:id', 'POST /of/:context'])
  })
})
