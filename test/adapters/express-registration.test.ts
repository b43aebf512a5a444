import express from 'express'
import { afterEach, describe, expect, it } from 'vitest'
import { idempotency } from '../../src/adapters/express.js'
import { memoryStore } from '../../src/stores/memory.js'
import { disturbed } from '../support/disturbed-store.js'
import { aKey, anExpress, closeExpressApps } from '../support/express-app.js'
import { EXPRESS_VERSIONS } from '../support/express-versions.js'

afterEach(closeExpressApps)

describe('middleware › options', () => {
  it.each([
    [undefined, /oncekey\/express: option "scope" is required: a function of the request .* or 'shared'/],
    [{}, /option "scope" is required/],
    [{ scope: 'acme' }, /option "scope" must be a function .* got "acme"/],
    [{ scope: 'shared', ttl: 'long' }, /option "ttl" must be a duration .* got "long"/],
    [{ scope: 'shared', methods: ['post'] }, /option "methods/],
    [{ scope: 'shared', store: 'redis' }, /option "store" must be a store/],
    [{ scope: 'shared', ttll: '1d' }, /there is no option "ttll"/],
    [{ scope: 'shared', global: false }, /there is no option "global"/],
    [{ scope: 'shared', log: 'console' }, /option "log" must be a logger with warn and error/],
    [{ scope: 'shared', atomic: true }, /oncekey\/express: option "atomic" needs a store with transactions/],
  ])('refuses %o', (options, message) => {
    expect(() => idempotency(options as never)).toThrow(message)
  })

  it.each([
    [{ ttl: -1 }, /oncekey\/express: option "ttl"/],
    [{ scope: 'shared' }, /there is no option "scope"/],
    [{ atomic: true }, /option "atomic" needs a store with transactions/],
    [null, /the options object/],
    [() => {}, /the options object/],
  ])('refuses the route options %o', (options, message) => {
    const once = idempotency({ scope: 'shared', store: memoryStore() })
    expect(() => once(options as never)).toThrow(message)
  })

  it('says that a store is missing', () => {
    const warnings: string[] = []
    const log = { warn: (_: object, message: string) => void warnings.push(message), error: () => {} }
    idempotency({ scope: 'shared', log })
    expect(warnings).toEqual([expect.stringContaining('no store was given')])
  })
})

describe.each(EXPRESS_VERSIONS)('middleware of $name › misuse', (version) => {
  it('is told when nobody has called it', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once as never, (_req, res) => res.send('done'))
    })
    const answer = await send('/', { key: aKey() })
    expect(answer.status).toBe(500)
    expect(answer.bytes.toString()).toContain('call it to get the middleware')
  })

  it('is told when it stands on a route with a method that it leaves alone', async () => {
    let runs = 0
    const { send } = await anExpress(version, (app, once) => {
      app.put('/', once(), (_req, res) => res.send(`run ${++runs}`))
      app.put('/named', once({ methods: ['PUT'] }), (_req, res) => res.send('done'))
    })
    const answer = await send('/', { method: 'PUT', key: aKey() })
    expect(answer.status).toBe(500)
    expect(answer.bytes.toString()).toContain('protects POST, PATCH only')
    expect(runs).toBe(0)
    const key = aKey()
    await send('/named', { method: 'PUT', key })
    expect(await send('/named', { method: 'PUT', key })).toMatchObject({ isReplay: true })
  })

  it('is told when two with options of their own protect one request, and keeps nothing', async () => {
    const line = disturbed(memoryStore())
    let runs = 0
    const { send } = await anExpress(
      version,
      (app, once) => {
        app.use('/twice', once())
        app.post('/twice', once({ ttl: '7d' }), (_req, res) => res.send(`run ${++runs}`))
      },
      { store: line.store },
    )
    for (const key of [aKey(), undefined]) {
      const answer = await send('/twice', { key })
      expect(answer.status).toBe(500)
      expect(answer.bytes.toString()).toContain(
        'two middlewares with options of their own protect POST /twice',
      )
    }
    expect(runs).toBe(0)
    expect(line.calls).toMatchObject({ claim: 1, release: 1, complete: 0 })
  })

  it('is none when the same one comes twice', async () => {
    let runs = 0
    const { send } = await anExpress(version, (app, once) => {
      const same = once({ ttl: '7d' })
      app.use('/usual', once())
      app.post('/usual', once(), (_req, res) => res.send(`run ${++runs}`))
      app.post('/own', same, same, (_req, res) => res.send(`run ${++runs}`))
    })
    for (const path of ['/usual', '/own']) {
      const key = aKey()
      expect(await send(path, { key })).toMatchObject({ status: 200, isReplay: false })
      expect(await send(path, { key })).toMatchObject({ status: 200, isReplay: true })
    }
    expect(runs).toBe(2)
  })

  it('is none when one takes the methods that the other leaves', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.use(once())
      app.put('/', once({ methods: ['PUT'], required: true }), (req, res) =>
        res.json({ key: req.idempotency.key ?? null }),
      )
    })
    const key = aKey()
    expect((await send('/', { method: 'PUT', key })).bytes.toString()).toBe(JSON.stringify({ key }))
    expect(await send('/', { method: 'PUT', key })).toMatchObject({ isReplay: true })
    expect(await send('/', { method: 'PUT' })).toMatchObject({ code: 'IDEMPOTENCY_KEY_MISSING' })
  })
})

describe.each(EXPRESS_VERSIONS)('middleware of $name › requests', (version) => {
  it('of other methods pass it untouched', async () => {
    const line = disturbed(memoryStore())
    const { send } = await anExpress(
      version,
      (app, once) => {
        app.use(once())
        app.all('/', (_req, res) => void res.set('x-own', 'yes').send('done'))
      },
      { store: line.store },
    )
    for (const method of ['GET', 'PUT', 'DELETE', 'HEAD', 'OPTIONS']) {
      const answer = await send('/', { method, key: aKey() })
      expect(answer).toMatchObject({ status: 200, headers: { 'x-own': 'yes', 'content-length': '4' } })
      expect(answer.bytes.toString()).toBe(method === 'HEAD' ? '' : 'done')
    }
    expect(line.calls.claim).toBe(0)
    const key = aKey()
    await send('/', { key, method: 'PATCH' })
    expect(await send('/', { key, method: 'PATCH' })).toMatchObject({ isReplay: true })
  })

  it('of routes without it are not touched at all, and have nothing on them', async () => {
    const seen: unknown[] = []
    const { send } = await anExpress(version, (app, once) => {
      app.post('/bare', (req, res) => {
        seen.push('idempotency' in req, Object.hasOwn(res, 'write'), Object.hasOwn(res, 'end'))
        res.send('done')
      })
      app.post('/', once(), (_req, res) => res.send('done'))
    })
    await send('/bare', { key: aKey() })
    expect(seen).toEqual([false, false, false])
  })

  it('have nothing of the response held where they have no key', async () => {
    const seen: unknown[] = []
    const { send } = await anExpress(version, (app, once) => {
      app.post('/', once(), (_req, res) => {
        seen.push(Object.hasOwn(res, 'write'), Object.hasOwn(res, 'end'))
        res.send('done')
      })
    })
    await send('/')
    expect(seen).toEqual([false, false])
  })

  it('that authentication refuses before it never become an outcome', async () => {
    const line = disturbed(memoryStore())
    const { send } = await anExpress(
      version,
      (app, once) => {
        app.use((req, res, next) => {
          if (req.headers.authorization === undefined) res.status(402).send('who are you')
          else next()
        })
        app.post('/', once(), (_req, res) => res.send('done'))
      },
      { store: line.store },
    )
    const key = aKey()
    expect(await send('/', { key })).toMatchObject({ status: 402 })
    expect(line.calls.claim).toBe(0)
    expect(await send('/', { key, headers: { authorization: 'me' } })).toMatchObject({ status: 200 })
  })

  it('tell a handler about their operation', async () => {
    const { send } = await anExpress(
      version,
      (app, once) =>
        void app.post('/', once(), (req, res) => {
          const { key, fence, replayed, signal } = req.idempotency
          const isSame = req.idempotency.signal === signal
          const derived = req.idempotency.deriveKey('psp')
          res.json({ key, fence, replayed, aborted: signal.aborted, isSame, derived: derived.length })
        }),
      { secret: 'a secret of sixteen bytes or more' },
    )
    const key = aKey()
    expect(JSON.parse((await send('/', { key })).bytes.toString())).toEqual({
      key,
      fence: 1,
      replayed: false,
      aborted: false,
      isSame: true,
      derived: 43,
    })
  })

  it('have an inert operation without a key, and on a method that is not protected', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.all('/', once(), async (req, res) => {
        req.idempotency.forget()
        await req.idempotency.saveIn(async () => [], { status: 201 })
        const { key, fence, replayed, signal } = req.idempotency
        const derived = new Set([1, 2].map(() => req.idempotency.deriveKey('psp'))).size
        res.json({ key: key ?? null, fence, replayed, aborted: signal.aborted, derived })
      })
    })
    for (const given of [{}, { method: 'PUT', key: aKey() }])
      expect(JSON.parse((await send('/', given)).bytes.toString())).toEqual({
        key: null,
        fence: 0,
        replayed: false,
        aborted: false,
        derived: 1,
      })
  })

  it('tell earlier middleware about a replay', async () => {
    const seen: boolean[] = []
    const { send } = await anExpress(version, (app, once) => {
      app.use((req, res, next) => {
        res.once('finish', () => seen.push(req.idempotency.replayed))
        next()
      })
      app.post('/', once(), (_req, res) => res.send('done'))
    })
    const key = aKey()
    await send('/', { key })
    await send('/', { key })
    await expect.poll(() => seen).toEqual([false, true])
  })

  it('have a ttl of their route', async () => {
    const { send } = await anExpress(version, (app, once) => {
      app.post('/short', once({ ttl: 30 }), (_req, res) => res.send('done'))
      app.post('/long', once(), (_req, res) => res.send('done'))
    })
    const key = aKey()
    await send('/short', { key: `${key}-short` })
    await send('/long', { key: `${key}-long` })
    await expect.poll(async () => (await send('/short', { key: `${key}-short` })).isReplay).toBe(false)
    expect(await send('/long', { key: `${key}-long` })).toMatchObject({ isReplay: true })
  })
})

describe('once.engine', () => {
  it('runs plain functions, and reports what routes do', async () => {
    const routes: string[] = []
    const { send, once } = await anExpress({ name: 'Express 5', express }, (app, once) => {
      app.post('/payments/:id', once(), (_req, res) => res.send('done'))
    })
    once.engine.on((event) => {
      if (event.type === 'claimed') routes.push(event.operation.route)
    })
    await send('/payments/7', { key: aKey() })
    expect(await once.engine.run({ scope: 'acme', key: aKey(), name: 'invoice' }, () => 1)).toBe(1)
    expect(routes).toEqual(['POST /payments/:id', 'invoice'])
  })
})
