import { Agent, request as httpRequest, type IncomingMessage } from 'node:http'
import { afterEach, describe, expect, it } from 'vitest'
import { noteReceivedBytes } from '../../src/adapters/express.js'
import { memoryStore } from '../../src/stores/memory.js'
import { disturbed } from '../support/disturbed-store.js'
import { aKey, anExpress, closeExpressApps } from '../support/express-app.js'
import { EXPRESS_VERSIONS } from '../support/express-versions.js'
import { gate } from '../support/gate.js'

afterEach(closeExpressApps)

describe.each(EXPRESS_VERSIONS)('middleware of $name › problems', (version) => {
  it('refuses a request without a key where one is required, and lets it pass elsewhere', async () => {
    let runs = 0
    const { send } = await anExpress(version, (app, once) => {
      app.post('/required', once({ required: true }), (_, res) => res.send(`run ${++runs}`))
      app.post('/optional', once(), (_, res) => res.send(`run ${++runs}`))
    })
    expect(await send('/required')).toMatchObject({ status: 400, code: 'IDEMPOTENCY_KEY_MISSING' })
    expect(runs).toBe(0)
    for (const run of ['run 1', 'run 2'])
      expect(await send('/optional')).toMatchObject({ status: 200, bytes: Buffer.from(run), isReplay: false })
  })

  it.each([
    ['malformed', 'two words'],
    ['empty', '""'],
    ['too long', 'k'.repeat(256)],
  ])('refuses a key that is %s, and runs nothing', async (_, key) => {
    let runs = 0
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), (_req, res) => res.send(`run ${++runs}`))
    })
    expect(await send('/', { key })).toMatchObject({ status: 400, code: 'IDEMPOTENCY_KEY_INVALID' })
    expect(runs).toBe(0)
  })

  it('refuses a key that is sent twice', async () => {
    let runs = 0
    const { url } = await anExpress(version, (app, once) => {
      app.post('/', once(), (_req, res) => res.send(`run ${++runs}`))
    })
    const answer = await new Promise<IncomingMessage>((resolve, reject) => {
      const options = { method: 'POST', headers: { 'idempotency-key': ['a', 'a'] } }
      httpRequest(url, options, resolve).once('error', reject).end()
    })
    answer.resume()
    expect(answer.statusCode).toBe(400)
    expect(runs).toBe(0)
  })

  it('refuses another body under the key, while the first runs and after, and still replays the first answer', async () => {
    const { opened, open } = gate()
    const started = gate()
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), async (_req, res) => {
        started.open()
        await opened
        res.status(201).json({ id: 'p-1' })
      })
    })
    const key = aKey()
    const first = send('/', { key })
    await started.opened
    const changed = { key, body: { amount: 6 } }
    expect(await send('/', changed)).toMatchObject({ status: 422, code: 'IDEMPOTENCY_KEY_REUSED' })
    const duplicate = await send('/', { key })
    expect(duplicate).toMatchObject({ status: 409, code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
    expect(duplicate.headers['retry-after']).toBe('1')
    open()
    const { bytes } = await first
    expect(await send('/', changed)).toMatchObject({ status: 422, code: 'IDEMPOTENCY_KEY_REUSED' })
    expect(await send('/', { key })).toMatchObject({ status: 201, bytes, isReplay: true })
  })

  it('answers 503 while the store is away, tells to come again, and runs nothing', async () => {
    let runs = 0
    const line = disturbed(memoryStore())
    const { send } = await anExpress(
      version,
      (app, once) => void app.post('/', once(), (_req, res) => res.send(`run ${++runs}`)),
      { store: line.store, storeTimeout: '50ms' },
    )
    line.disturb('claim', 'stalls')
    const answer = await send('/', { key: aKey() })
    expect(answer).toMatchObject({ status: 503, code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
    expect(answer.headers['retry-after']).toBe('1')
    expect(runs).toBe(0)
  })

  it("runs unprotected while the store is away, where it is told to 'run', and says so", async () => {
    const line = disturbed(memoryStore())
    const { send, log } = await anExpress(
      version,
      (app, once) =>
        void app.post('/', once(), (req, res) => void res.json({ fence: req.idempotency.fence })),
      { store: line.store, onStoreOutage: 'run' },
    )
    line.disturb('claim', 'fails')
    const answer = await send('/', { key: 'a-secret-key' })
    expect(answer).toMatchObject({ status: 200, isReplay: false, bytes: Buffer.from('{"fence":0}') })
    expect(log).toContainEqual(
      expect.objectContaining({ details: expect.objectContaining({ event: 'unprotected' }) }),
    )
    expect(JSON.stringify(log)).not.toContain('a-secret-key')
  })

  it('are problem+json that says nothing about the stored request, and that the application can shape', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), (_req, res) => res.send('done'))
      app.post(
        '/shaped',
        once({
          required: true,
          docsUrl: 'https://bank.example/docs',
          onProblem: ({ code }, request) => ({
            headers: { 'content-type': 'text/plain' },
            body: `${code} at ${request.originalUrl}`,
          }),
        }),
        (_req, res) => res.send('done'),
      )
    })
    await send('/', { key: 'k-1', body: { card: 'secret' } })
    const answer = await send('/', { key: 'k-1', body: {} })
    expect(answer.headers).toMatchObject({
      'content-type': 'application/problem+json; charset=utf-8',
      'cache-control': 'no-store',
    })
    expect(JSON.parse(answer.bytes.toString())).toEqual({
      type: 'urn:oncekey:problem:IDEMPOTENCY_KEY_REUSED',
      title: 'Idempotency key reused',
      detail: 'This key stands for a different request. Send a new key for a new operation.',
      status: 422,
      code: 'IDEMPOTENCY_KEY_REUSED',
      retryable: false,
    })
    expect((await send('/shaped')).bytes.toString()).toBe('IDEMPOTENCY_KEY_MISSING at /shaped')
  })

  it.each([
    ['throws', () => expect.fail('nothing to say')],
    ['makes something that cannot be sent', () => ({ status: 9000 })],
  ])('are a 500 when the function that shapes them %s', async (_, onProblem) => {
    const { send } = await anExpress(
      version,
      (app, once) => void app.post('/', once(), (_req, res) => res.send('done')),
      { onProblem },
    )
    const key = aKey()
    await send('/', { key })
    expect(await send('/', { key, body: {} })).toMatchObject({ status: 500 })
    expect(await send('/', { key: 'two words' })).toMatchObject({ status: 500 })
    expect(await send('/', { key })).toMatchObject({ status: 200, isReplay: true })
  })

  it.each([
    ['gives nothing', () => undefined as never],
    [
      'throws',
      () => {
        throw new Error('nobody is logged in')
      },
    ],
  ])('are a 500 that is logged, and nothing runs, when the scope function %s', async (_, scope) => {
    let runs = 0
    const { send, log } = await anExpress(
      version,
      (app, once) => void app.post('/', once(), (_req, res) => res.send(`run ${++runs}`)),
      { scope },
    )
    expect(await send('/', { key: aKey() })).toMatchObject({ status: 500, code: 'IDEMPOTENCY_SCOPE_MISSING' })
    expect(log).toMatchObject([{ level: 'error', details: { err: { code: 'IDEMPOTENCY_SCOPE_MISSING' } } }])
    expect(runs).toBe(0)
  })
})

describe.each(EXPRESS_VERSIONS)('middleware of $name › scope and path', (version) => {
  it('runs the same key and body of another caller on its own', async () => {
    let runs = 0
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), (_req, res) => res.send(`run ${++runs}`))
    })
    const key = aKey()
    await send('/', { key })
    const theirs = await send('/', { key, headers: { 'x-tenant': 'other' } })
    expect(theirs).toMatchObject({ isReplay: false, bytes: Buffer.from('run 2') })
    expect(await send('/', { key })).toMatchObject({ isReplay: true, bytes: Buffer.from('run 1') })
  })

  it('takes the whole path of a mounted router, and its query', async () => {
    const { express } = version
    const routes: string[] = []
    const { send, once } = await anExpress(version, (app, once) => {
      const router = express.Router({ mergeParams: true })
      router.post('/:id', once(), (req, res) => res.send(req.originalUrl))
      app.use('/tenants/a', router)
      app.use('/tenants/b', router)
    })
    once.engine.on((event) => {
      if (event.type === 'claimed') routes.push(event.operation.route)
    })
    const key = aKey()
    expect((await send('/tenants/a/7?x=1', { key })).bytes.toString()).toBe('/tenants/a/7?x=1')
    for (const path of ['/tenants/b/7?x=1', '/tenants/a/8?x=1', '/tenants/a/7?x=2', '/tenants/a/7/?x=1'])
      expect(await send(path, { key })).toMatchObject({ status: 422, code: 'IDEMPOTENCY_KEY_REUSED' })
    expect(await send('/tenants/a/7?x=1', { key })).toMatchObject({ isReplay: true })
    expect(routes).toEqual(['POST /tenants/a/:id'])
  })

  it('protects a router, or an application inside of another', async () => {
    const { express } = version
    let runs = 0
    const { send } = await anExpress(version, (app, once) => {
      const inner = express()
      inner.use(once())
      inner.post('/orders', (_req, res) => res.json({ run: ++runs }))
      app.use('/v1', inner)
    })
    const key = aKey()
    const { bytes } = await send('/v1/orders', { key })
    expect(await send('/v1/orders', { key })).toMatchObject({ isReplay: true, bytes })
    expect(runs).toBe(1)
  })

  it('protects an application behind it, which changes the prototype of the response again', async () => {
    const { express } = version
    let runs = 0
    const { send } = await anExpress(version, (app, once) => {
      const inner = express()
      inner.post('/orders', (req, res) => res.json({ key: req.idempotency.key, run: ++runs }))
      app.use(once())
      app.use('/v1', inner)
    })
    const key = aKey()
    const { bytes } = await send('/v1/orders', { key })
    expect(bytes.toString()).toBe(JSON.stringify({ key, run: 1 }))
    expect(await send('/v1/orders', { key })).toMatchObject({ isReplay: true, bytes })
    expect(runs).toBe(1)
  })
})

describe.each(EXPRESS_VERSIONS)('middleware of $name › fingerprint', (version) => {
  const { express } = version

  it('does not care for the order of fields, nor for what the handler does to the body', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), (req, res) => {
        req.body.mutated = true
        res.send('done')
      })
    })
    const key = aKey()
    await send('/', { key, body: { a: 1, b: { c: 2, d: 3 } } })
    expect(await send('/', { key, body: { b: { d: 3, c: 2 }, a: 1 } })).toMatchObject({ isReplay: true })
  })

  it('reads the body ahead where no parser has read it, and leaves all of it to those that come', async () => {
    const { send } = await anExpress(
      version,
      (app, once) => {
        app.use(once())
        app.use(express.json(), express.text())
        app.post('/', (req, res) => res.json(req.body ?? null))
      },
      { parses: false },
    )
    const big = { text: 'x'.repeat(90_000) }
    for (const body of [{ amount: 1, to: 'bob' }, big]) {
      const key = aKey()
      const first = await send('/', { key, body })
      expect(JSON.parse(first.bytes.toString())).toEqual(body)
      expect(await send('/', { key, body: { ...body, amount: 2 } })).toMatchObject({ status: 422 })
      expect(await send('/', { key, body })).toMatchObject({ isReplay: true, bytes: first.bytes })
    }
    const key = aKey()
    await send('/', { key, body: { a: 1, b: 2 } })
    expect(await send('/', { key, body: { b: 2, a: 1 } })).toMatchObject({ isReplay: true })
    const text = { 'content-type': 'text/plain' }
    const other = aKey()
    expect((await send('/', { key: other, body: 'a text', headers: text })).bytes.toString()).toBe('"a text"')
    expect(await send('/', { key: other, body: 'another', headers: text })).toMatchObject({ status: 422 })
  })

  it('compares nothing that somebody else has begun to read: it answers 500, and runs nothing', async () => {
    for (const fingerprint of ['body', 'raw'] as const) {
      let effects = 0
      const { send } = await anExpress(
        version,
        (app, once) => {
          app.use(
            (req, _res, next) => {
              req.on('data', () => {})
              next()
            },
            once({ fingerprint }),
            express.json(),
          )
          app.post('/', (_req, res) => {
            effects += 1
            res.end()
          })
        },
        { parses: false },
      )
      for (const text of ['short', 'long'.repeat(50_000)])
        expect(await send('/', { key: aKey(), body: { text } })).toMatchObject({
          status: 500,
          code: 'IDEMPOTENCY_FINGERPRINT_FAILED',
        })
      expect(effects).toBe(0)
    }
  })

  it('reads ahead for those that read text, too', async () => {
    const { send } = await anExpress(
      version,
      (app, once) => {
        app.use((req, _res, next) => {
          req.setEncoding('utf8')
          next()
        }, once())
        app.post('/', async (req, res) => {
          let text = ''
          for await (const piece of req) text += piece
          res.type('text').send(text)
        })
      },
      { parses: false },
    )
    const key = aKey()
    for (const body of ['"äöü €"', JSON.stringify('€'.repeat(30_000)), '']) {
      const each = { key: `${key}-${body.length}`, body }
      expect((await send('/', each)).bytes.toString()).toBe(body)
      expect(await send('/', each)).toMatchObject({ isReplay: true })
    }
  })

  it('reads ahead what comes in pieces, with no length, or is nothing at all', async () => {
    const { url, send } = await anExpress(
      version,
      (app, once) => {
        app.use(once(), express.text({ type: () => true }))
        app.post('/', (req, res) => res.json({ body: typeof req.body === 'string' ? req.body : '' }))
      },
      { parses: false },
    )
    async function inPieces(key: string, pieces: readonly string[]): Promise<string> {
      return new Promise((resolve, reject) => {
        const sent = httpRequest(url, {
          method: 'POST',
          headers: { 'idempotency-key': key, 'content-type': 'text/plain', 'transfer-encoding': 'chunked' },
        })
        sent.once('error', reject).once('response', async (answer) => {
          let text = ''
          for await (const chunk of answer) text += String(chunk)
          resolve(`${answer.statusCode} ${text}`)
        })
        const left = [...pieces]
        const next = (): void => {
          const piece = left.shift()
          if (piece === undefined) sent.end()
          else sent.write(piece, () => setImmediate(next))
        }
        sent.flushHeaders()
        setImmediate(next)
      })
    }
    const key = aKey()
    expect(await inPieces(key, ['one ', 'two ', 'three'])).toBe('200 {"body":"one two three"}')
    expect(await inPieces(key, ['one two three'])).toBe('200 {"body":"one two three"}')
    expect(await inPieces(key, ['one ', 'two '])).toMatch(/^422 /)
    expect(await inPieces(aKey(), [])).toBe('200 {"body":""}')
    expect((await send('/', { key: aKey(), body: null })).bytes.toString()).toBe('{"body":""}')
  })

  it('leaves a body that it has read ahead to a handler that streams it', async () => {
    const { send } = await anExpress(
      version,
      (app, once) => {
        app.post('/', once(), async (req, res) => {
          let size = 0
          for await (const chunk of req) size += (chunk as Buffer).byteLength
          res.json({ size })
        })
      },
      { parses: false },
    )
    const body = Buffer.alloc(700_000, 7)
    const key = aKey()
    expect((await send('/', { key, body })).bytes.toString()).toBe('{"size":700000}')
    expect(await send('/', { key, body })).toMatchObject({ isReplay: true })
    expect(await send('/', { key, body: Buffer.alloc(700_000, 8) })).toMatchObject({ status: 422 })
  })

  it.each([
    ['says its length', true],
    ['does not', false],
  ])(
    'refuses a body that is too long to be read ahead and %s, and the connection goes on',
    async (_, saysLength) => {
      let runs = 0
      const { send } = await anExpress(
        version,
        (app, once) => void app.post('/', once(), (_req, res) => res.send(`run ${++runs}`)),
        { parses: false },
      )
      const agent = new Agent({ keepAlive: true, maxSockets: 1 })
      const answer = await send('/', { key: aKey(), body: Buffer.alloc(3_000_000, 1), agent, saysLength })
      expect(answer).toMatchObject({ status: 413, code: 'IDEMPOTENCY_REQUEST_TOO_LARGE' })
      expect(runs).toBe(0)
      expect(await send('/', { key: aKey(), agent })).toMatchObject({ status: 200 })
      agent.destroy()
    },
  )

  it('forgets a client that leaves in the middle of its request', async () => {
    const line = disturbed(memoryStore())
    const { url, send } = await anExpress(
      version,
      (app, once) => void app.post('/', once(), (_req, res) => res.send('done')),
      { parses: false, store: line.store },
    )
    const headers = { 'idempotency-key': aKey(), 'content-type': 'text/plain', 'content-length': '100' }
    const leaving = httpRequest(url, { method: 'POST', headers })
    leaving.once('error', () => {})
    await new Promise<void>((resolve) => leaving.write('a beginning', () => resolve()))
    leaving.destroy()
    expect(await send('/', { key: aKey() })).toMatchObject({ status: 200 })
    expect(line.calls.claim).toBe(1)
  })

  it('refuses to compare a body that somebody has read away', async () => {
    let runs = 0
    const { send, log } = await anExpress(
      version,
      (app, once) => {
        app.use((req, _res, next) => void req.resume().once('end', next))
        app.post('/', once(), (_req, res) => res.send(`run ${++runs}`))
        app.post('/chosen', once({ fingerprint: () => 'nothing' }), (_req, res) => res.send('done'))
      },
      { parses: false },
    )
    expect(await send('/', { key: aKey() })).toMatchObject({
      status: 500,
      code: 'IDEMPOTENCY_FINGERPRINT_FAILED',
    })
    expect(log).toMatchObject([{ level: 'error', details: { err: { statusCode: 500 } } }])
    expect(runs).toBe(0)
    expect(await send('/chosen', { key: aKey() })).toMatchObject({ status: 200 })
  })

  it.each([
    ['a parser has noted', [express.json({ verify: noteReceivedBytes })]],
    ['nobody has read yet', []],
    ['a parser has left on the request', [express.raw({ type: () => true })]],
  ])("compares the received bytes that %s, where it is 'raw'", async (_, parsers) => {
    const { send } = await anExpress(
      version,
      (app, once) => {
        for (const parser of parsers) app.use(parser)
        app.post('/', once(), (_req, res) => res.send('done'))
      },
      { parses: false, fingerprint: 'raw' },
    )
    const key = aKey()
    await send('/', { key, body: '{"a":1}' })
    expect(await send('/', { key, body: '{"a":1}' })).toMatchObject({ isReplay: true })
    expect(await send('/', { key, body: '{"a": 1}' })).toMatchObject({ status: 422 })
    const empty = aKey()
    await send('/', { key: empty, body: null })
    expect(await send('/', { key: empty, body: null })).toMatchObject({ isReplay: true })
    expect(await send('/', { key: empty, body: '{}' })).toMatchObject({ status: 422 })
  })

  it("refuses to compare received bytes that are gone, where it is 'raw', and says what to do", async () => {
    let runs = 0
    const { send, log } = await anExpress(
      version,
      (app, once) => void app.post('/', once(), (_req, res) => res.send(`run ${++runs}`)),
      { fingerprint: 'raw' },
    )
    expect(await send('/', { key: aKey() })).toMatchObject({
      status: 500,
      code: 'IDEMPOTENCY_FINGERPRINT_FAILED',
    })
    expect(log).toMatchObject([
      { details: { err: { message: expect.stringContaining('noteReceivedBytes') } } },
    ])
    expect(runs).toBe(0)
  })

  it('compares the fields that a function chooses, or nothing where it is false', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.post('/chosen', once({ fingerprint: (req) => req.body.amount }), (_req, res) => res.send('done'))
      app.post('/unchecked', once({ fingerprint: false }), (_req, res) => res.send('done'))
    })
    const key = aKey()
    await send('/chosen', { key, body: { amount: 1, at: 1 } })
    expect(await send('/chosen', { key, body: { amount: 1, at: 2 } })).toMatchObject({ isReplay: true })
    expect(await send('/chosen', { key, body: { amount: 2, at: 1 } })).toMatchObject({ status: 422 })
    const other = aKey()
    await send('/unchecked', { key: other, body: { a: 1 } })
    expect(await send('/unchecked', { key: other, body: { a: 2 } })).toMatchObject({ isReplay: true })
  })

  it('may take the key from the body', async () => {
    const { send } = await anExpress(
      version,
      (app, once) => void app.post('/', once(), (_req, res) => res.send('done')),
      { key: (req) => req.body.id, required: true },
    )
    await send('/', { body: { id: 'k 1' } })
    expect(await send('/', { body: { id: 'k 1' } })).toMatchObject({ isReplay: true })
    expect(await send('/', { body: {} })).toMatchObject({ code: 'IDEMPOTENCY_KEY_MISSING' })
  })
})
