import { type IncomingMessage, request } from 'node:http'
import { describe, expect, it } from 'vitest'
import { memoryStore } from '../../src/stores/memory.js'
import { disturbed } from '../support/disturbed-store.js'
import { aKey, anApp } from '../support/fastify-app.js'
import { gate } from '../support/gate.js'

describe('fastify plugin › problems', () => {
  it('refuses a request without a key where one is required', async () => {
    let runs = 0
    const { send } = await anApp((app) => {
      app.post('/payments', { config: { idempotency: { required: true } } }, () => `run ${++runs}`)
    })
    expect(await send('/payments')).toMatchObject({ status: 400, code: 'IDEMPOTENCY_KEY_MISSING' })
    expect(runs).toBe(0)
  })

  it('lets a request without a key pass where none is required', async () => {
    let runs = 0
    const { send } = await anApp((app) => {
      app.post('/payments', () => `run ${++runs}`)
    })
    await send('/payments')
    expect(await send('/payments')).toMatchObject({ status: 200, isReplay: false })
    expect(runs).toBe(2)
  })

  it.each([
    ['malformed', { key: 'two words' }],
    ['empty', { key: '""' }],
    ['too long', { key: 'k'.repeat(256) }],
  ])('refuses a key that is %s, and runs nothing', async (_, given) => {
    let runs = 0
    const { send } = await anApp((app) => {
      app.post('/payments', () => `run ${++runs}`)
    })
    expect(await send('/payments', given)).toMatchObject({ status: 400, code: 'IDEMPOTENCY_KEY_INVALID' })
    expect(runs).toBe(0)
  })

  it.each([
    ['as two keys', ['a', 'b']],
    ['as one key', ['a', 'a']],
    ['as the halves of a string', ['"a', 'b"']],
  ])('refuses a key that is sent twice, %s', async (_, lines) => {
    let runs = 0
    const { app } = await anApp((app) => {
      app.post('/payments', () => `run ${++runs}`)
    })
    const url = await app.listen({ port: 0, host: '127.0.0.1' })
    const answer = await new Promise<IncomingMessage>((resolve, reject) => {
      const options = { method: 'POST', headers: { 'idempotency-key': lines } }
      request(`${url}/payments`, options, resolve).once('error', reject).end()
    })
    answer.resume()
    expect(answer.statusCode).toBe(400)
    expect(runs).toBe(0)
    await app.close()
  })

  it('refuses another body under the key, while the first runs and after, and still replays the first answer', async () => {
    const { opened, open } = gate()
    const started = gate()
    const { send } = await anApp((app) => {
      app.post('/payments', async (_request, reply) => {
        started.open()
        await opened
        return reply.code(201).send({ id: 'p-1' })
      })
    })
    const key = aKey()
    const first = send('/payments', { key })
    await started.opened
    const changed = { key, payload: { amount: 6 } }
    expect(await send('/payments', changed)).toMatchObject({ status: 422, code: 'IDEMPOTENCY_KEY_REUSED' })
    open()
    const answer = await first
    expect(await send('/payments', changed)).toMatchObject({ status: 422, code: 'IDEMPOTENCY_KEY_REUSED' })
    expect(await send('/payments', { key })).toMatchObject({
      status: 201,
      bytes: answer.bytes,
      isReplay: true,
    })
  })

  it.each([
    ['query', '/payments?x=2'],
    ['path', '/payments/'],
    ['route', '/refunds'],
  ])('refuses the key with another %s', async (_, url) => {
    const { send } = await anApp((app) => {
      for (const path of ['/payments', '/payments/', '/refunds']) app.post(path, () => 'done')
    })
    const key = aKey()
    await send('/payments', { key })
    expect(await send(url, { key })).toMatchObject({ status: 422 })
  })

  it('refuses a duplicate while the first is running, and tells it to come again', async () => {
    const { opened, open } = gate()
    const started = gate()
    let runs = 0
    const { send } = await anApp((app) => {
      app.post('/payments', async () => {
        started.open()
        await opened
        return `run ${++runs}`
      })
    })
    const key = aKey()
    const first = send('/payments', { key })
    await started.opened
    const second = await send('/payments', { key })
    expect(second).toMatchObject({ status: 409, code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
    expect(second.headers['retry-after']).toBe('1')
    open()
    await first
    expect(runs).toBe(1)
  })

  it('answers 503 while the store is away, tells to come again, and runs nothing', async () => {
    let runs = 0
    const line = disturbed(memoryStore())
    const { send } = await anApp(
      (app) => {
        app.post('/payments', () => `run ${++runs}`)
      },
      { store: line.store, storeTimeout: '50ms' },
    )
    line.disturb('claim', 'stalls')
    const answer = await send('/payments', { key: aKey() })
    expect(answer).toMatchObject({ status: 503, code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
    expect(answer.headers['retry-after']).toBe('1')
    expect(runs).toBe(0)
  })

  it("runs unprotected while the store is away, where the route says 'run'", async () => {
    const line = disturbed(memoryStore())
    const { send } = await anApp(
      (app) => {
        app.post('/payments', (request) => ({ fence: request.idempotency.fence }))
      },
      { store: line.store, onStoreOutage: 'run' },
    )
    line.disturb('claim', 'fails')
    const answer = await send('/payments', { key: aKey() })
    expect(answer).toMatchObject({ status: 200, isReplay: false })
    expect(answer.bytes.toString()).toBe('{"fence":0}')
  })

  it('is problem+json that says nothing about the stored request', async () => {
    const { app } = await anApp((app) => {
      app.post('/payments', () => 'done')
    })
    const headers = { 'idempotency-key': 'k-1' }
    await app.inject({ method: 'POST', url: '/payments', headers, payload: { card: 'secret' } })
    const answer = await app.inject({ method: 'POST', url: '/payments', headers, payload: {} })
    expect(answer.headers).toMatchObject({
      'content-type': 'application/problem+json; charset=utf-8',
      'cache-control': 'no-store',
    })
    expect(answer.headers).not.toHaveProperty('link')
    expect(answer.json()).toEqual({
      type: 'urn:oncekey:problem:IDEMPOTENCY_KEY_REUSED',
      title: 'Idempotency key reused',
      detail: 'This key stands for a different request. Send a new key for a new operation.',
      status: 422,
      code: 'IDEMPOTENCY_KEY_REUSED',
      retryable: false,
    })
  })

  it("names the application's page where it has one", async () => {
    const { app } = await anApp(
      (app) => {
        app.post('/payments', () => 'done')
      },
      { required: true, docsUrl: 'https://bank.example/docs/retries' },
    )
    const answer = await app.inject({ method: 'POST', url: '/payments' })
    expect(answer.headers.link).toBe('<https://bank.example/docs/retries>; rel="describedby"')
    expect(answer.json().type).toBe('https://bank.example/docs/retries#IDEMPOTENCY_KEY_MISSING')
  })

  it('can be shaped by the application', async () => {
    const { app } = await anApp(
      (app) => {
        app.post('/payments', () => 'done')
      },
      {
        required: true,
        onProblem: ({ code }, request) => ({
          headers: { 'content-type': 'text/plain' },
          body: `${code} at ${request.url}`,
        }),
      },
    )
    const answer = await app.inject({ method: 'POST', url: '/payments' })
    expect(answer.statusCode).toBe(400)
    expect(answer.payload).toBe('IDEMPOTENCY_KEY_MISSING at /payments')
    expect(answer.headers['content-type']).toContain('text/plain')
  })

  it.each([
    ['throws', () => expect.fail('nothing to say')],
    ['makes something that cannot be sent', () => ({ status: 9000 })],
  ])('are a 500 when the function that shapes them %s', async (_, onProblem) => {
    const { send } = await anApp((app) => void app.post('/payments', () => 'done'), { onProblem })
    const key = aKey()
    await send('/payments', { key })
    expect(await send('/payments', { key, payload: {} })).toMatchObject({ status: 500 })
    expect(await send('/payments', { key: 'two words' })).toMatchObject({ status: 500 })
    expect(await send('/payments', { key })).toMatchObject({ status: 200, isReplay: true })
  })

  it.each([
    ['gives nothing', () => undefined as never],
    ['gives an empty name', () => ''],
    ['gives something else', () => 7 as never],
    [
      'throws',
      () => {
        throw new Error('nobody is logged in')
      },
    ],
  ])('answers 500, and runs nothing, when the scope function %s', async (_, scope) => {
    let runs = 0
    const { send } = await anApp(
      (app) => {
        app.post('/payments', () => `run ${++runs}`)
      },
      { scope },
    )
    expect(await send('/payments', { key: aKey() })).toMatchObject({
      status: 500,
      code: 'IDEMPOTENCY_SCOPE_MISSING',
    })
    expect(runs).toBe(0)
  })

  it('answers 400 to a body that nests too deep to be compared', async () => {
    const { send } = await anApp((app) => {
      app.post('/payments', () => 'done')
    })
    const payload = `${'['.repeat(200_000)}${']'.repeat(200_000)}`
    const headers = { 'content-type': 'application/json' }
    expect(await send('/payments', { key: aKey(), payload, headers })).toMatchObject({
      status: 400,
      code: 'IDEMPOTENCY_FINGERPRINT_FAILED',
    })
  })
})

describe('fastify plugin › large bodies', () => {
  const lines = Array.from({ length: 20_000 }, (_, index) => ({ sku: `A-${index}`, amount: index / 100 }))

  it('answers a retry whose fields come in another order, and refuses another body', async () => {
    const { send } = await anApp((app) => void app.post('/orders', () => 'done'))
    const key = aKey()
    await send('/orders', { key, payload: { lines } })
    const turned = lines.map(({ sku, amount }) => ({ amount, sku }))
    expect(await send('/orders', { key, payload: { lines: turned } })).toMatchObject({ isReplay: true })
    const other = [...lines.slice(0, -1), { sku: 'A-19999', amount: 200 }]
    expect(await send('/orders', { key, payload: { lines: other } })).toMatchObject({
      status: 422,
      code: 'IDEMPOTENCY_KEY_REUSED',
    })
  })

  it('give the event loop back before the handler runs', async () => {
    const steps: string[] = []
    const { send } = await anApp(
      (app) => {
        app.post('/orders', () => {
          steps.push('handler')
          return 'done'
        })
      },
      {
        fingerprint: (request) => {
          steps.push('compared')
          setImmediate(() => steps.push('others'))
          return request.body
        },
      },
    )
    expect(await send('/orders', { key: aKey(), payload: { lines } })).toMatchObject({ status: 200 })
    expect(steps).toEqual(['compared', 'others', 'handler'])
  })

  it('are answered 400 where they nest too deep behind their first lines', async () => {
    const { send } = await anApp((app) => void app.post('/orders', () => 'done'))
    const deep = `${'['.repeat(2000)}${']'.repeat(2000)}`
    const payload = `{"lines":${JSON.stringify(lines.slice(0, 1000))},"more":${deep}}`
    const headers = { 'content-type': 'application/json' }
    expect(await send('/orders', { key: aKey(), payload, headers })).toMatchObject({
      status: 400,
      code: 'IDEMPOTENCY_FINGERPRINT_FAILED',
    })
  })
})

describe('fastify plugin › scope', () => {
  it('runs the same key and body of another caller on its own', async () => {
    let runs = 0
    const { send } = await anApp((app) => {
      app.post('/payments', () => `run ${++runs}`)
    })
    const key = aKey()
    const ours = await send('/payments', { key })
    const theirs = await send('/payments', { key, headers: { 'x-tenant': 'other' } })
    expect(theirs).toMatchObject({ isReplay: false })
    expect(theirs.bytes).not.toEqual(ours.bytes)
    expect(await send('/payments', { key })).toMatchObject({ bytes: ours.bytes, isReplay: true })
  })

  it('may be asked for asynchronously, or be shared by everybody', async () => {
    for (const scope of [async () => 'acme', 'shared'] as const) {
      const { send } = await anApp((app) => void app.post('/payments', () => 'done'), { scope })
      const key = aKey()
      await send('/payments', { key })
      expect(await send('/payments', { key, headers: { 'x-tenant': 'other' } })).toMatchObject({
        isReplay: true,
      })
    }
  })
})

describe('fastify plugin › fingerprint', () => {
  it('does not care for the order of fields, nor for what the handler does to the body', async () => {
    const { send } = await anApp((app) => {
      app.post('/payments', (request) => {
        Object.assign(request.body as object, { mutated: true })
        return 'done'
      })
    })
    const key = aKey()
    await send('/payments', { key, payload: { a: 1, b: { c: 2, d: 3 } } })
    expect(await send('/payments', { key, payload: { b: { d: 3, c: 2 }, a: 1 } })).toMatchObject({
      isReplay: true,
    })
  })

  it("compares the received bytes where it is 'raw'", async () => {
    const { send } = await anApp(
      (app) => {
        app.post('/payments', (request) => request.body)
      },
      { fingerprint: 'raw' },
    )
    const key = aKey()
    const headers = { 'content-type': 'application/json' }
    const first = await send('/payments', { key, headers, payload: '{"a":1}' })
    expect(first.bytes.toString()).toBe('{"a":1}')
    expect(await send('/payments', { key, headers, payload: '{"a":1}' })).toMatchObject({ isReplay: true })
    expect(await send('/payments', { key, headers, payload: '{"a": 1}' })).toMatchObject({ status: 422 })
  })

  it('compares the fields that a function chooses, and never another path', async () => {
    const { send } = await anApp(
      (app) => {
        app.post('/payments', () => 'done')
        app.post('/refunds', () => 'done')
      },
      { fingerprint: (request) => (request.body as { amount: number }).amount },
    )
    const key = aKey()
    await send('/payments', { key, payload: { amount: 1, at: 1 } })
    expect(await send('/payments', { key, payload: { amount: 1, at: 2 } })).toMatchObject({ isReplay: true })
    expect(await send('/payments', { key, payload: { amount: 2, at: 1 } })).toMatchObject({ status: 422 })
    expect(await send('/refunds', { key, payload: { amount: 1, at: 1 } })).toMatchObject({ status: 422 })
  })

  it('answers 500 when that function fails', async () => {
    const { send } = await anApp((app) => void app.post('/payments', () => 'done'), {
      fingerprint: () => {
        throw new Error('no such field')
      },
    })
    expect(await send('/payments', { key: aKey() })).toMatchObject({
      status: 500,
      code: 'IDEMPOTENCY_FINGERPRINT_FAILED',
    })
  })

  it('compares nothing where it is false', async () => {
    const { send } = await anApp((app) => void app.post('/payments', () => 'done'), { fingerprint: false })
    const key = aKey()
    await send('/payments', { key, payload: { a: 1 } })
    expect(await send('/payments', { key, payload: { a: 2 } })).toMatchObject({ isReplay: true })
  })
})

describe('fastify plugin › key', () => {
  it('reads quoted and bare values as one key', async () => {
    const { send } = await anApp((app) => void app.post('/payments', () => 'done'))
    const key = aKey()
    await send('/payments', { key: `"${key}";v=1` })
    expect(await send('/payments', { key })).toMatchObject({ isReplay: true })
    expect(await send('/payments', { key: key.toUpperCase() })).toMatchObject({ isReplay: false })
  })

  it('may come under several names of the header, if they agree', async () => {
    const { send } = await anApp((app) => void app.post('/payments', () => 'done'), {
      header: ['Idempotency-Key', 'PayPal-Request-Id'],
    })
    const key = aKey()
    await send('/payments', { key })
    expect(await send('/payments', { headers: { 'paypal-request-id': key } })).toMatchObject({
      isReplay: true,
    })
    expect(await send('/payments', { key, headers: { 'paypal-request-id': 'other' } })).toMatchObject({
      status: 400,
      code: 'IDEMPOTENCY_KEY_INVALID',
    })
  })

  it('is a 500 when the function that takes it fails', async () => {
    const { send } = await anApp((app) => void app.post('/payments', () => 'done'), {
      key: () => expect.fail('no such field'),
    })
    expect(await send('/payments')).toMatchObject({ status: 500 })
  })

  it('may come from the request itself', async () => {
    const { send } = await anApp((app) => void app.post('/payments', () => 'done'), {
      key: (request) => (request.body as { id?: string }).id,
      required: true,
    })
    await send('/payments', { payload: { id: 'k 1' } })
    expect(await send('/payments', { payload: { id: 'k 1' } })).toMatchObject({ isReplay: true })
    expect(await send('/payments', { payload: { id: '' } })).toMatchObject({
      code: 'IDEMPOTENCY_KEY_INVALID',
    })
    expect(await send('/payments', { payload: {} })).toMatchObject({ code: 'IDEMPOTENCY_KEY_MISSING' })
  })
})

describe('fastify plugin › unknown outcomes', () => {
  it.each([
    ['reject', 409, 'IDEMPOTENCY_OUTCOME_UNKNOWN', ''],
    ['rerun', 200, undefined, 'fence 2'],
  ] as const)("are treated by 'onUnknown: %s'", async (onUnknown, status, code, text) => {
    const store = memoryStore()
    const line = disturbed(store)
    const { opened } = gate()
    const define = (app: Parameters<Parameters<typeof anApp>[0]>[0]) => {
      app.post('/payments', async (request) => {
        if (request.idempotency.fence === 1) await opened
        return `fence ${request.idempotency.fence}`
      })
    }
    const dying = await anApp(define, { store: line.store, lease: '100ms' })
    const key = aKey()
    line.disturb('renew', 'stalls')
    void dying.send('/payments', { key })
    await expect.poll(() => line.calls.renew).toBeGreaterThan(0)
    const living = await anApp(define, { store, onUnknown })
    await expect
      .poll(async () => (await living.send('/payments', { key })).code)
      .not.toBe('IDEMPOTENCY_KEY_IN_PROGRESS')
    const answer = await living.send('/payments', { key })
    expect(answer).toMatchObject({ status, code })
    expect(answer.headers['retry-after']).toBeUndefined()
    if (code === undefined) expect(answer.bytes.toString()).toBe(text)
  })

  it('are answered with what the application finds out', async () => {
    const store = memoryStore()
    const line = disturbed(store)
    const { opened } = gate()
    const dying = await anApp((app) => void app.post('/payments', () => opened), {
      store: line.store,
      lease: '100ms',
    })
    const key = aKey()
    line.disturb('renew', 'stalls')
    void dying.send('/payments', { key })
    await expect.poll(() => line.calls.renew).toBeGreaterThan(0)
    const living = await anApp((app) => void app.post('/payments', () => 'a second run'), {
      store,
      onUnknown: ({ scope }) => ({
        outcome: { status: 201, headers: { 'X-Scope': scope }, body: { paid: true } },
      }),
    })
    await expect.poll(async () => (await living.send('/payments', { key })).status).toBe(201)
    const answer = await living.send('/payments', { key })
    expect(answer).toMatchObject({ isReplay: true, headers: { 'x-scope': 'acme' } })
    expect(answer.headers['content-type']).toContain('application/json')
    expect(JSON.parse(answer.bytes.toString())).toEqual({ paid: true })
  })
})
