import { randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { Agent, createServer, request as httpRequest } from 'node:http'
import type { AddressInfo } from 'node:net'
import { PassThrough, pipeline, Readable } from 'node:stream'
import { setFlagsFromString } from 'node:v8'
import { brotliDecompressSync, createGunzip, gunzipSync, gzipSync } from 'node:zlib'
import compression from 'compression'
import type { NextFunction, Request, Response } from 'express'
import { afterEach, describe, expect, it } from 'vitest'
import { idempotency } from '../../src/adapters/express.js'
import { NothingHappenedError } from '../../src/contract/errors.js'
import { memoryStore } from '../../src/stores/memory.js'
import { disturbed } from '../support/disturbed-store.js'
import { aKey, anExpress, closeExpressApps } from '../support/express-app.js'
import { EXPRESS_VERSIONS } from '../support/express-versions.js'
import { gate } from '../support/gate.js'
import { rawRequest } from '../support/raw-request.js'
import { ALL_BYTES, FILE, LONG_TEXT } from '../support/response-kinds/kinds.js'

afterEach(closeExpressApps)

type Handler = (request: Request, response: Response, next: NextFunction) => unknown

describe.each(EXPRESS_VERSIONS)('middleware of $name › what is kept', (version) => {
  it.each([401, 403, 407, 408, 425, 429, 503])('releases the key after %i', async (status) => {
    let runs = 0
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), (_req, res) => void res.status(status).json({ run: ++runs }))
    })
    const key = aKey()
    await send('/', { key })
    expect(await send('/', { key })).toMatchObject({ status, isReplay: false })
    expect(runs).toBe(2)
  })

  it('releases the key after what the route does not keep, or the handler forgets', async () => {
    let runs = 0
    const { send } = await anExpress(version, (app, once) => {
      app.post('/keep', once({ keep: ({ status }) => status !== 500 }), (_req, res) => {
        runs += 1
        res.status(runs === 1 ? 500 : 200).send(`run ${runs}`)
      })
      app.post('/forget', once(), (req, res) => {
        runs += 1
        if (runs === 1) req.idempotency.forget()
        res.send(`run ${runs}`)
      })
    })
    for (const path of ['/keep', '/forget']) {
      runs = 0
      const key = aKey()
      await send(path, { key })
      for (const isReplay of [false, true])
        expect(await send(path, { key })).toMatchObject({ isReplay, bytes: Buffer.from('run 2') })
    }
  })

  it('keeps no body where there can be none', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), (_req, res) => {
        res.statusCode = 204
        res.end('not sent')
      })
    })
    const key = aKey()
    for (const isReplay of [false, true]) {
      const answer = await send('/', { key })
      expect(answer).toMatchObject({ status: 204, isReplay, bytes: Buffer.alloc(0) })
      expect(answer.headers).not.toHaveProperty('content-length')
    }
  })

  it('releases the key when the application says that nothing happened', async () => {
    let runs = 0
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), (_req, res, next) => {
        runs += 1
        if (runs === 1) next(new NothingHappenedError('the provider did not answer'))
        else res.send(`run ${runs}`)
      })
    })
    const key = aKey()
    expect(await send('/', { key })).toMatchObject({ status: 503, isReplay: false })
    for (const isReplay of [false, true])
      expect(await send('/', { key })).toMatchObject({ isReplay, bytes: Buffer.from('run 2') })
  })

  it('replays what belongs to the answer, and nothing of the exchange', async () => {
    let runs = 0
    const { send } = await anExpress(version, (app, once) => {
      app.use((req, res, next) => {
        res.set({ 'x-request-id': `r-${++runs}`, 'access-control-allow-origin': req.headers.origin ?? '' })
        next()
      })
      app.post('/', once(), (_req, res) => {
        res.set({ location: '/p/1', etag: '"1"', 'set-cookie': 's=1', 'ratelimit-remaining': '9' }).json({})
      })
    })
    const key = aKey()
    const first = await send('/', { key, headers: { origin: 'https://one.example' } })
    expect(first.headers).toMatchObject({ 'set-cookie': ['s=1'], 'x-request-id': 'r-1' })
    const { headers } = await send('/', { key, headers: { origin: 'https://two.example' } })
    expect(headers).toMatchObject({
      location: '/p/1',
      etag: '"1"',
      'x-request-id': 'r-2',
      'access-control-allow-origin': 'https://two.example',
    })
    expect(headers).not.toHaveProperty('set-cookie')
    expect(headers).not.toHaveProperty('ratelimit-remaining')
  })

  it.each<[string, Handler]>([
    ['ends', (_, res) => res.json({ a: 1 })],
    ['is piped', (_, res) => Readable.from(['one ', 'two']).pipe(res)],
    ['grows past the limit', (_, res) => Readable.from([Buffer.alloc(900), Buffer.alloc(900)]).pipe(res)],
  ])('sends nothing of an answer that %s before its outcome is kept', async (_, handler) => {
    const inner = memoryStore()
    const asked = gate()
    const kept = gate()
    const store = {
      ...inner,
      async complete(...args: Parameters<typeof inner.complete>) {
        asked.open()
        await kept.opened
        return inner.complete(...args)
      },
    }
    const { send } = await anExpress(
      version,
      (app, once) => void app.post('/', once(), (req, res, next) => void handler(req, res, next)),
      { store, storeTimeout: '30s', maxBodyBytes: 1000 },
    )
    let isAnswered = false
    const answer = send('/', { key: aKey() }).then((got) => {
      isAnswered = true
      return got
    })
    await asked.opened
    // Another whole exchange with the same server: what had been sent would be here by now.
    await send('/nowhere', { method: 'GET' })
    expect(isAnswered).toBe(false)
    kept.open()
    expect(await answer).toMatchObject({ status: 200 })
  })

  it('lets the answer go when its outcome cannot be kept', async () => {
    const line = disturbed(memoryStore())
    const { send } = await anExpress(
      version,
      (app, once) => void app.post('/', once(), (_req, res) => void res.status(201).send('done')),
      { store: line.store, storeTimeout: '50ms' },
    )
    line.disturb('complete', 'fails')
    const key = aKey()
    expect(await send('/', { key })).toMatchObject({ status: 201, bytes: Buffer.from('done') })
    line.heal()
    await expect.poll(async () => (await send('/', { key })).isReplay).toBe(true)
  })
})

describe.each(EXPRESS_VERSIONS)('middleware of $name › what goes on as it is written', (version) => {
  const LONG: Readonly<Record<string, Handler>> = {
    json: (_, res) => res.status(201).json('x'.repeat(3998)),
    bytes: (_, res) => res.status(201).send(Buffer.alloc(4000, 1)),
    'a stream': (_, res) =>
      Readable.from([Buffer.alloc(2000, 1), Buffer.alloc(2000, 2)]).pipe(res.status(201)),
    'chunks of an explicit head': (_, res) => {
      res.writeHead(201, { 'x-own': 'yes' })
      for (let chunk = 0; chunk < 40; chunk += 1) res.write(Buffer.alloc(100, chunk))
      res.end()
    },
  }

  it.each(Object.keys(LONG))('sends %s over the limit untouched, and keeps a tombstone', async (name) => {
    let effects = 0
    const { send } = await anExpress(
      version,
      (app, once) =>
        void app.post('/', once(), (req, res, next) => {
          effects += 1
          LONG[name]?.(req, res, next)
        }),
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
    ['with compression', true],
    ['without', false],
  ])('keeps backpressure: a source is not read faster than its client reads, %s', async (_, compresses) => {
    const total = 64 * 1024 * 1024
    let read = 0
    const { url } = await anExpress(
      version,
      (app, once) => {
        if (compresses) app.use(compression({ filter: () => true, threshold: 0 }))
        app.post('/', once(), (_req, res) => {
          new Readable({
            read() {
              read += 65_536
              this.push(read > total ? null : Buffer.alloc(65_536, Math.random() * 256))
            },
          }).pipe(res)
        })
      },
      { maxBodyBytes: 100_000 },
    )
    await new Promise<void>((resolve, reject) => {
      const headers = { 'idempotency-key': aKey(), 'accept-encoding': 'identity' }
      const sent = httpRequest(url, { method: 'POST', headers })
      sent.once('error', reject)
      sent.once('response', async (answer) => {
        // Nobody reads. What fits into the sockets on the way was read, and the rest waits.
        let before = -1
        await expect
          .poll(
            () => {
              const isStill = read === before
              before = read
              return isStill
            },
            { interval: 200, timeout: 20_000 },
          )
          .toBe(true)
        expect(read).toBeLessThan(total)
        let size = 0
        answer.on('data', (chunk: Buffer) => {
          size += chunk.byteLength
        })
        answer.once('end', () => {
          expect(size).toBe(total)
          resolve()
        })
      })
      sent.end()
    })
  })

  it('does not leave a compressed source waiting that was told to wait while the tombstone was kept', async () => {
    const inner = memoryStore()
    const store = {
      ...inner,
      async complete(...args: Parameters<typeof inner.complete>) {
        // The source goes on meanwhile.
        await new Promise((resolve) => setImmediate(() => setImmediate(resolve)))
        return inner.complete(...args)
      },
    }
    // Small ones, with which no stream below is ever full, and would say when it is not.
    const pieces = Array.from({ length: 60 }, (_, index) => Buffer.alloc(600, index))
    const { send } = await anExpress(
      version,
      (app, once) => {
        app.use(compression({ threshold: 0, filter: () => true }))
        app.post('/', once(), (_req, res) => Readable.from(pieces).pipe(res))
      },
      { store, maxBodyBytes: 1000 },
    )
    const answer = await send('/', { key: aKey(), headers: { 'accept-encoding': 'gzip' } })
    expect(gunzipSync(answer.bytes).equals(Buffer.concat(pieces))).toBe(true)
  })

  it('tells a source to go on that was told to wait, where nothing below is full', async () => {
    const inner = memoryStore()
    const waits = gate()
    const store = {
      ...inner,
      async complete(...args: Parameters<typeof inner.complete>) {
        await waits.opened
        return inner.complete(...args)
      },
    }
    const app = version.express()
    const once = idempotency({ store, scope: 'shared', maxBodyBytes: 1000, storeTimeout: '30s' })
    app.post('/', once(), (_req, res) => {
      res.write(Buffer.alloc(1001, 1))
      expect(res.write(Buffer.alloc(70_000, 2))).toBe(false)
      res.once('drain', () => res.end('the end'))
      waits.open()
    })
    const server = createServer({ highWaterMark: 1024 * 1024 }, app).listen(0, '127.0.0.1')
    await new Promise((resolve) => server.once('listening', resolve))
    const { port } = server.address() as AddressInfo
    const { bytes } = await rawRequest(`http://127.0.0.1:${port}`, { key: aKey() })
    expect(bytes).toHaveLength(71_001 + 'the end'.length)
    await new Promise((resolve) => server.close(resolve))
    await once.engine.close()
  })

  it('is compressed as a whole, also by what comes after the middleware', async () => {
    // Nothing that compresses, so that some of it leaves before all of it is there.
    const pieces = Array.from({ length: 60 }, () => randomBytes(4000))
    const inner = memoryStore()
    const kept = gate()
    const store = {
      ...inner,
      async complete(...args: Parameters<typeof inner.complete>) {
        const isKept = await inner.complete(...args)
        setImmediate(kept.open)
        return isKept
      },
    }
    const { send } = await anExpress(
      version,
      (app, once) => {
        app.use(once(), compression({ threshold: 0, filter: () => true }))
        app.post('/', async (_req, res) => {
          for (const piece of pieces.slice(0, 30)) res.write(piece)
          await kept.opened
          for (const piece of pieces.slice(30)) res.write(piece)
          res.end()
        })
      },
      { store, maxBodyBytes: 20 },
    )
    const answer = await send('/', { key: aKey(), headers: { 'accept-encoding': 'gzip' } })
    expect(answer.headers['content-encoding']).toBe('gzip')
    expect(gunzipSync(answer.bytes).equals(Buffer.concat(pieces))).toBe(true)
  })

  it.each<[string, Handler]>([
    [
      'events',
      (_, res) => {
        res.writeHead(200, { 'content-type': 'text/event-stream' })
        res.write('data: 1\n\n')
      },
    ],
    [
      'what flushes its headers',
      (_, res) => {
        res.type('text/plain').flushHeaders()
        res.write('data: 1\n\n')
      },
    ],
  ])('sends %s while they come, and keeps a tombstone', async (_, begin) => {
    const { opened, open } = gate()
    const { url, send } = await anExpress(version, (app, once) => {
      app.post('/', once(), async (req, res, next) => {
        begin(req, res, next)
        await opened
        res.end('data: 2\n\n')
      })
    })
    const key = aKey()
    const text = await new Promise<string>((resolve, reject) => {
      const sent = httpRequest(url, { method: 'POST', headers: { 'idempotency-key': key } })
      sent.once('error', reject)
      sent.once('response', async (answer) => {
        let got = ''
        for await (const chunk of answer) {
          got += String(chunk)
          // The end comes only after the beginning has.
          open()
        }
        resolve(got)
      })
      sent.end()
    })
    expect(text).toBe('data: 1\n\ndata: 2\n\n')
    expect(await send('/', { key, body: null })).toMatchObject({ code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
  })

  it('flushes the compressed beginning of events, which the handler asked for while it was held', async () => {
    const { opened, open } = gate()
    const { url } = await anExpress(version, (app, once) => {
      app.use(compression())
      app.post('/', once(), async (_req, res) => {
        res.writeHead(200, { 'content-type': 'text/event-stream' })
        res.write('data: 1\n\n')
        res.flush()
        await opened
        res.end('data: 2\n\n')
      })
    })
    const text = await new Promise<string>((resolve, reject) => {
      const headers = { 'idempotency-key': aKey(), 'accept-encoding': 'gzip' }
      const sent = httpRequest(url, { method: 'POST', headers })
      sent.once('error', reject)
      sent.once('response', async (answer) => {
        let got = ''
        for await (const chunk of answer.pipe(createGunzip())) {
          got += String(chunk)
          // The end comes only after the beginning could be read.
          open()
        }
        resolve(got)
      })
      sent.end()
    })
    expect(text).toBe('data: 1\n\ndata: 2\n\n')
  })
})

describe.each(EXPRESS_VERSIONS)('middleware of $name › handlers that fail', (version) => {
  const onError = (_error: unknown, _req: Request, res: Response, next: NextFunction): unknown =>
    res.headersSent ? next(_error) : res.status(500).json({ error: 'failed' })

  it.each<[string, Handler]>([
    [
      'after they have answered',
      (_, res) => {
        res.status(201).set('x-own', 'yes').json({ a: 1 })
        throw new Error('after the answer')
      },
    ],
    [
      'in a promise, after they have answered',
      (_req, res, next) =>
        Promise.resolve()
          .then(() => {
            res.status(201).set('x-own', 'yes').json({ a: 1 })
            throw new Error('after the answer')
          })
          .catch(next),
    ],
    [
      'to answer once only',
      (_, res) => {
        res.status(201).set('x-own', 'yes').json({ a: 1 })
        res.status(202).set('x-own', 'no').json({ b: 2 })
      },
    ],
  ])('%s: the client gets what is kept', async (_, handler) => {
    let hadLeft = false
    for (const handles of [true, false]) {
      const { send } = await anExpress(version, (app, once) => {
        app.post('/', once(), handler)
        app.use((error: unknown, _req: Request, res: Response, next: NextFunction) => {
          hadLeft ||= res.headersSent
          next(error)
        })
        if (handles) app.use(onError)
      })
      const key = aKey()
      for (const isReplay of [false, true])
        expect(await send('/', { key })).toMatchObject({
          status: 201,
          isReplay,
          bytes: Buffer.from('{"a":1}'),
          headers: { 'x-own': 'yes' },
        })
    }
    // Express cuts the connection of an answer that has left when something fails.
    expect(hadLeft).toBe(false)
  })

  it.each<[string, Handler]>([
    [
      'with next(error)',
      (_, res, next) => {
        res.status(201).write('half of it')
        next(new Error('the database is gone'))
      },
    ],
    [
      'in a source',
      (_, res, next) => {
        const source = new PassThrough()
        source.once('error', next)
        source.pipe(res.status(201))
        source.write('half of it')
        setImmediate(() => source.destroy(new Error('the disk is gone')))
      },
    ],
  ])('in the middle of their answer, %s: the failure is the answer', async (_, handler) => {
    for (const handles of [true, false]) {
      const { send } = await anExpress(version, (app, once) => {
        app.post('/', once(), handler)
        if (handles) app.use(onError)
      })
      const key = aKey()
      const first = await send('/', { key })
      expect(first).toMatchObject({ status: 500, isReplay: false })
      expect(first.bytes.toString()).not.toContain('half')
      if (handles) expect(first.bytes.toString()).toBe('{"error":"failed"}')
      expect(await send('/', { key })).toMatchObject({ status: 500, isReplay: true, bytes: first.bytes })
    }
  })

  it.each<[string, Handler]>([
    [
      'a source that breaks without a word',
      (_, res) => {
        const source = new PassThrough()
        source.on('error', () => {})
        source.pipe(res.status(201))
        source.write('half of it')
        setImmediate(() => source.destroy(new Error('the disk is gone')))
      },
    ],
    [
      'a pipeline that breaks',
      (_, res) => {
        const source = new PassThrough()
        pipeline(source, res.status(201), () => {})
        source.write('half of it')
        setImmediate(() => source.destroy(new Error('the disk is gone')))
      },
    ],
    ['a response that is destroyed', (_, res) => void res.status(201).destroy()],
  ])('to end %s: a tombstone is kept', async (_, handler) => {
    let effects = 0
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), (req, res, next) => {
        effects += 1
        handler(req, res, next)
        // Nobody answers any more, and the client does not wait for ever either.
        setTimeout(() => req.socket.destroy(), 100)
      })
    })
    const key = aKey()
    await expect(send('/', { key })).rejects.toThrow()
    await expect.poll(async () => (await send('/', { key })).code).toBe('IDEMPOTENCY_RESPONSE_NOT_KEPT')
    expect(effects).toBe(1)
  })

  it('refuses chunks that are no bytes, as Node does', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), (_req, res) => void res.write({ a: 1 } as never))
      app.use(onError)
    })
    expect(await send('/', { key: aKey() })).toMatchObject({ status: 500 })
  })
})

describe.each(EXPRESS_VERSIONS)('middleware of $name › requests and responses', (version) => {
  it('are of one hidden class each, although Express changes their prototypes, and whatever they get', async () => {
    setFlagsFromString('--allow-natives-syntax')
    const areOfOneClass = new Function('one', 'other', 'return %HaveSameMap(one, other)')
    setFlagsFromString('--no-allow-natives-syntax')
    const pairs: (readonly [Request, Response])[] = []
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), (req, res) => {
        Object.assign(req, { user: 'alice' })
        Object.assign(res, { startedAt: Date.now() })
        res.json({ a: 1 })
        pairs.push([req, res])
      })
    })
    for (let sent = 0; sent < 20; sent += 1) await send('/', { key: aKey() })
    const shared = pairs.filter(([req, res], index) => {
      const before = pairs[index - 1]
      return before !== undefined && areOfOneClass(req, before[0]) && areOfOneClass(res, before[1])
    })
    // The first objects of a constructor have classes of their own, and a collection of garbage may forget one.
    expect(shared.length).toBeGreaterThan(5)
  })
})

describe.each(EXPRESS_VERSIONS)('middleware of $name › heads that cannot be sent', (version) => {
  it.each<[string, Handler]>([
    ['no status', (_, res) => void (Reflect.set(res, 'statusCode', undefined) && res.json({ a: 1 }))],
    ['a status that is none', (_, res) => void (Reflect.set(res, 'statusCode', 1000) && res.json({ a: 1 }))],
    ['a status that is none, in writeHead', (_, res) => void res.writeHead(99).end()],
    ['a line break in the message', (_, res) => void Object.assign(res, { statusMessage: 'a\n' }).json({})],
  ])('%s: the handler is told, as by Node, and its error is the answer', async (_, handler) => {
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), handler)
      app.use((error: { code?: string }, _req: Request, res: Response, _next: NextFunction) => {
        res.statusMessage = ''
        res.status(500).json({ code: error.code })
      })
    })
    const key = aKey()
    const first = await send('/', { key })
    expect(first).toMatchObject({ status: 500, isReplay: false })
    expect(first.bytes.toString()).toMatch(/ERR_HTTP_INVALID_STATUS_CODE|ERR_INVALID_CHAR/)
    expect(await send('/', { key })).toMatchObject({ status: 500, isReplay: true, bytes: first.bytes })
  })

  it('lets a list of headers take the place of those that were there, as Node does', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), (_req, res) => {
        res.set('content-type', 'text/plain').set('x-own', 'before')
        res.writeHead(201, ['content-type', 'application/json', 'x-own', 'after'])
        res.end('{}')
      })
    })
    const key = aKey()
    for (const isReplay of [false, true]) {
      const { headers, ...answer } = await send('/', { key })
      expect(answer).toMatchObject({ status: 201, isReplay })
      expect(headers).toMatchObject({ 'content-type': 'application/json', 'x-own': 'after' })
    }
  })

  it('takes a number in a text for the status that it is, as Node does', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.post('/:status', once(), (req, res) => {
        Reflect.set(res, 'statusCode', req.params.status)
        res.end()
      })
    })
    const key = aKey()
    for (let attempt = 0; attempt < 2; attempt += 1)
      expect(await send('/503', { key })).toMatchObject({ status: 503, isReplay: false })
    const other = aKey()
    await send('/204', { key: other })
    const replay = await send('/204', { key: other })
    expect(replay).toMatchObject({ status: 204, isReplay: true })
    expect(replay.headers).not.toHaveProperty('content-length')
  })

  it('cuts the connection, and nothing more, when other middleware fails while the answer leaves', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.use((_req, res, next) => {
        const { end } = res
        Object.assign(res, {
          end(...given: unknown[]) {
            if (res.getHeader('x-own') === 'bad') throw new Error('boom')
            return (end as (...given: unknown[]) => unknown).apply(res, given)
          },
        })
        next()
      })
      app.post('/:own', once(), (req, res) => void res.set('x-own', req.params.own).json({ a: 1 }))
    })
    await expect(send('/bad', { key: aKey() })).rejects.toThrow()
    expect(await send('/good', { key: aKey() })).toMatchObject({ status: 200 })
  })
})

describe.each(EXPRESS_VERSIONS)('middleware of $name › beside other middleware', (version) => {
  it('keeps bodies before compression, and compresses replays for those that accept it', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.use(compression())
      app.post('/', once(), (_req, res) => void res.json({ text: LONG_TEXT }))
    })
    const accepting = (coding: string) => ({ headers: { 'accept-encoding': coding } })
    const body = JSON.stringify({ text: LONG_TEXT })
    for (const order of [
      ['gzip', 'identity', 'gzip', 'br'],
      ['identity', 'gzip', 'br', 'identity'],
    ]) {
      const key = aKey()
      for (const [index, coding] of order.entries()) {
        const answer = await send('/', { key, ...accepting(coding) })
        expect(answer.isReplay).toBe(index > 0)
        expect(answer.headers['content-encoding']).toBe(coding === 'identity' ? undefined : coding)
        const decode = { gzip: gunzipSync, br: brotliDecompressSync, identity: (bytes: Buffer) => bytes }
        expect(decode[coding as keyof typeof decode](answer.bytes).toString()).toBe(body)
      }
    }
  })

  it('replays to every client what was compressed before it was kept', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.use('/later', once(), compression())
      app.post('/later', (_req, res) => void res.json({ text: LONG_TEXT }))
      app.post('/handler', once(), (_req, res) => {
        res
          .set('content-encoding', 'gzip')
          .type('json')
          .send(gzipSync(JSON.stringify({ text: LONG_TEXT })))
      })
    })
    for (const path of ['/later', '/handler']) {
      const key = aKey()
      const first = await send(path, { key, headers: { 'accept-encoding': 'gzip' } })
      expect(first.headers['content-encoding']).toBe('gzip')
      const again = await send(path, { key, headers: { 'accept-encoding': 'br;q=1, gzip;q=0.5' } })
      expect(again).toMatchObject({ isReplay: true, headers: { 'content-encoding': 'gzip' } })
      expect(again.bytes.equals(first.bytes)).toBe(true)
      for (const coding of ['identity', 'gzip;q=0', 'br']) {
        const plain = await send(path, { key, headers: { 'accept-encoding': coding } })
        expect(plain.isReplay).toBe(true)
        expect(plain.headers).not.toHaveProperty('content-encoding')
        expect(plain.bytes.toString()).toBe(JSON.stringify({ text: LONG_TEXT }))
      }
    }
  })

  it('replays without the headers that the handler has taken away from those before it', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.use((_req, res, next) => {
        res.set({ 'x-frame-options': 'DENY', 'x-other': 'stays' })
        next()
      })
      app.post('/', once(), (_req, res) => {
        res.removeHeader('x-frame-options')
        res.json({ a: 1 })
      })
    })
    const key = aKey()
    for (const isReplay of [false, true]) {
      const answer = await send('/', { key })
      expect(answer).toMatchObject({ isReplay, headers: { 'x-other': 'stays' } })
      expect(answer.headers).not.toHaveProperty('x-frame-options')
    }
  })

  it('replays as it was kept what would take more memory than it should, decoded', async () => {
    const kept = gzipSync(Buffer.alloc(33 * 1024 * 1024))
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), (_req, res) => void res.set('content-encoding', 'gzip').send(kept))
    })
    const key = aKey()
    for (const isReplay of [false, true]) {
      const answer = await send('/', { key })
      expect(answer).toMatchObject({ isReplay, headers: { 'content-encoding': 'gzip' } })
      expect(answer.bytes.equals(kept)).toBe(true)
    }
  })

  it.each(['before', 'after'])('keeps what wraps the response %s it, and its headers', async (order) => {
    const { send } = await anExpress(version, (app, once) => {
      const wraps = (_req: Request, res: Response, next: NextFunction): void => {
        const { writeHead, end } = res
        Object.assign(res, {
          writeHead(this: Response, ...args: unknown[]) {
            if (!this.headersSent) this.setHeader('x-wrapped', 'yes')
            return (writeHead as (...values: unknown[]) => Response).apply(this, args)
          },
          end(this: Response, chunk?: unknown, ...rest: unknown[]) {
            const body = typeof chunk === 'string' ? `[${chunk}]` : chunk
            this.removeHeader('content-length')
            return (end as (...values: unknown[]) => Response).call(this, body, ...rest)
          },
        })
        next()
      }
      if (order === 'before') app.use(wraps)
      app.use(once())
      if (order === 'after') app.use(wraps)
      app.post('/', (_req, res) => void res.type('text/plain').end('body'))
    })
    const key = aKey()
    const first = await send('/', { key })
    expect(first).toMatchObject({ headers: { 'x-wrapped': 'yes' }, isReplay: false })
    expect(first.bytes.toString()).toBe(order === 'before' ? 'body' : '[body]')
    const replay = await send('/', { key })
    expect(replay).toMatchObject({ headers: { 'x-wrapped': 'yes' }, isReplay: true, bytes: first.bytes })
  })

  it('leaves connections open for the next request', async () => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    const ports = new Set<number | undefined>()
    const answers: readonly Handler[] = [
      (_, res) => res.status(204).end(),
      (_, res) => Readable.from(['one ', 'two']).pipe(res),
      (_, res) => res.send('text'),
      (_, res) => res.send(''),
      (_, res) => res.end(),
      (_, res) => res.redirect('/elsewhere'),
      (_req, _res, next) => next(new Error('boom')),
    ]
    const { url } = await anExpress(version, (app, once) => {
      app.use((req, _res, next) => {
        ports.add(req.socket.remotePort)
        next()
      })
      app.post('/', once(), (req, res, next) => void answers[req.body.amount]?.(req, res, next))
    })
    for (const amount of answers.keys()) {
      const key = aKey()
      const first = await rawRequest(url, { key, agent, body: { amount } })
      const replay = await rawRequest(url, { key, agent, body: { amount } })
      expect(replay).toMatchObject({ isReplay: true, bytes: first.bytes })
      const refusal = await rawRequest(url, { key, agent, body: { amount, other: true } })
      expect(refusal.status).toBe(422)
      for (const { headers } of [first, replay, refusal]) expect(headers.connection).toBe('keep-alive')
    }
    expect(ports.size).toBe(1)
    agent.destroy()
  })
})

describe.each(EXPRESS_VERSIONS)('middleware of $name › a client that goes away', (version) => {
  const ANSWERS: Readonly<Record<string, Handler>> = {
    JSON: (_, res) => res.status(201).json({ a: 1 }),
    'nothing, with 204': (_, res) => res.status(204).end(),
    'chunks that end': (_, res) => {
      res.write('one ')
      setImmediate(() => res.end('two'))
    },
    'a stream': (_, res) => Readable.from([ALL_BYTES, ALL_BYTES]).pipe(res),
    'a pipeline': (_, res) => pipeline(Readable.from([ALL_BYTES, ALL_BYTES]), res, () => {}),
    'a file': (_, res) => res.sendFile(FILE),
    'an error': (_req, _res, next) => next(new Error('boom')),
  }

  /** Sends a request and leaves once its handler has begun; `gone` opens when the server knows. */
  async function leaving(name: string, when: 'before' | 'within') {
    const started = gate()
    const gone = gate()
    let effects = 0
    const app = await anExpress(version, (app, once) => {
      app.post('/', once(), async (req, res, next) => {
        effects += 1
        req.socket.once('close', gone.open)
        if (when === 'within') {
          // The first half is written while the client is there, the rest when it has gone.
          const source = new PassThrough()
          source.pipe(res)
          source.write('one ')
          started.open()
          await gone.opened
          source.end('two')
          return
        }
        started.open()
        await gone.opened
        await ANSWERS[name]?.(req, res, next)
      })
    })
    const key = aKey()
    const headers = { 'idempotency-key': key, 'content-type': 'application/json' }
    const client = httpRequest(app.url, { method: 'POST', headers })
    client.once('error', () => {})
    client.end('{"amount":5}')
    await started.opened
    client.destroy()
    await expect.poll(async () => (await app.send('/', { key })).isReplay).toBe(true)
    expect(effects).toBe(1)
    return app.send('/', { key })
  }

  it.each(Object.keys(ANSWERS))('gets %s from a retry, with one effect', async (name) => {
    const answer = await leaving(name, 'before')
    const there = await anExpress(version, (app, once) => {
      app.post('/', once(), (req, res, next) => void ANSWERS[name]?.(req, res, next))
    })
    const same = await there.send('/', { key: aKey() })
    expect(answer.status).toBe(same.status)
    // Express writes the stack of an error into its page.
    if (name !== 'an error') expect(answer.bytes.equals(same.bytes)).toBe(true)
  })

  it('gets an answer that had been begun', async () => {
    expect((await leaving('', 'within')).bytes.toString()).toBe('one two')
  })

  it('leaves no error, and tells those that wait for the end of the response', async () => {
    const ends: string[] = []
    const started = gate()
    const gone = gate()
    const { url, send } = await anExpress(version, (app, once) => {
      app.post('/', once(), async (req, res) => {
        req.socket.once('close', gone.open)
        for (const event of ['finish', 'close', 'error']) res.on(event, () => ends.push(event))
        started.open()
        await gone.opened
        createReadStream(FILE).pipe(res)
      })
    })
    const key = aKey()
    const client = httpRequest(url, { method: 'POST', headers: { 'idempotency-key': key } })
    client.once('error', () => {})
    client.end()
    await started.opened
    client.destroy()
    await expect.poll(() => ends).toEqual(['finish', 'close'])
    expect(await send('/', { key, body: null })).toMatchObject({ isReplay: true })
  })

  it('gets a file from a retry, when it left before the claim was granted', async () => {
    const inner = memoryStore()
    const asked = gate()
    const gone = gate()
    const store = {
      ...inner,
      async claim(...args: Parameters<typeof inner.claim>) {
        asked.open()
        await gone.opened
        return inner.claim(...args)
      },
    }
    const { url, send } = await anExpress(
      version,
      (app, once) => {
        app.use((req, _res, next) => {
          req.socket.once('close', gone.open)
          next()
        })
        app.post('/', once(), (_req, res) => res.sendFile(FILE))
      },
      { store, storeTimeout: '30s' },
    )
    const key = aKey()
    const client = httpRequest(url, { method: 'POST', headers: { 'idempotency-key': key } })
    client.once('error', () => {})
    client.end()
    await asked.opened
    client.destroy()
    await expect.poll(async () => (await send('/', { key, body: null })).isReplay).toBe(true)
  })
})

describe.each(EXPRESS_VERSIONS)('middleware of $name › a timeout in front of it', (version) => {
  /** What `connect-timeout` does, when the test says so. */
  function timeout(times: Promise<void>) {
    return (req: Request, _res: Response, next: NextFunction): void => {
      void times.then(() => {
        Object.assign(req, { timedout: true })
        next(Object.assign(new Error('Response timeout'), { status: 503, code: 'ETIMEDOUT' }))
      })
      next()
    }
  }

  it('does not free the key of a handler that still runs', async () => {
    const started = gate()
    const { opened, open } = gate()
    let effects = 0
    const { send } = await anExpress(version, (app, once) => {
      app.use(timeout(started.opened))
      app.post('/', once(), async (_req, res) => {
        started.open()
        await opened
        effects += 1
        if (!res.headersSent) res.send('done')
      })
    })
    const key = aKey()
    expect(await send('/', { key })).toMatchObject({ status: 503, isReplay: false })
    for (const _ of ['while it runs', 'after it has']) {
      expect(await send('/', { key })).toMatchObject({ status: 409, code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
      open()
      await expect.poll(() => effects).toBe(1)
    }
  })

  it('keeps a handler from running that has not begun, and frees its key', async () => {
    const inner = memoryStore()
    const asked = gate()
    const granted = gate()
    let claims = 0
    const store = {
      ...inner,
      async claim(...args: Parameters<typeof inner.claim>) {
        claims += 1
        if (claims === 1) {
          asked.open()
          await granted.opened
        }
        return inner.claim(...args)
      },
    }
    let runs = 0
    const { send } = await anExpress(
      version,
      (app, once) => {
        app.use('/slow', timeout(asked.opened))
        app.post(['/slow', '/'], once({ fingerprint: false }), (_req, res) => res.send(`run ${++runs}`))
      },
      { store, storeTimeout: '30s' },
    )
    const key = aKey()
    expect(await send('/slow', { key })).toMatchObject({ status: 503 })
    granted.open()
    await expect.poll(async () => (await send('/', { key })).status).toBe(200)
    expect(await send('/', { key })).toMatchObject({ isReplay: true, bytes: Buffer.from('run 1') })
  })
})
