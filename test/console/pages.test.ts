import { once } from 'node:events'
import Fastify from 'fastify'
import { afterEach, describe, expect, it } from 'vitest'
import operatorConsole from '../../src/console/console.js'
import { recordId } from '../../src/contract/key.js'
import type { ListQuery, StoredRecord } from '../../src/contract/store.js'
import { createIdempotency } from '../../src/index.js'
import { memoryStore } from '../../src/stores/memory.js'
import { sealedStore } from '../../src/stores/sealed.js'
import { aConsoleWorld, type ConsoleWorld } from '../support/console-world.js'
import { disturbed } from '../support/disturbed-store.js'
import { aKey } from '../support/fastify-app.js'

const worlds: { close(): Promise<unknown> }[] = []
afterEach(async () => {
  await Promise.all(worlds.splice(0).map((world) => world.close()))
})

async function aWorld(...given: Parameters<typeof aConsoleWorld>): Promise<ConsoleWorld> {
  const world = await aConsoleWorld(...given)
  worlds.push(world)
  return world
}

/** The text of a page, as it is read. */
function read(text: string): string {
  return text
    .replace(/<[^>]*>/g, ' ')
    .replace(/&#(\d+);/g, (_, code) => String.fromCharCode(Number(code)))
    .replace(/\s+/g, ' ')
}

describe('the overview', () => {
  it('counts what became of requests, and draws it with the same in words', async () => {
    const world = await aWorld()
    const [paid, lost] = [aKey(), aKey()]
    await world.orphan(lost)
    for (const key of [paid, paid, paid, lost]) await world.pay(key)
    const { text } = await world.get('/console/')
    expect(read(text)).toContain('1 ran, 2 replayed, 0 in progress, 0 mismatch, 1 unknown, 0 store away')
    expect(read(text)).toContain('Counted by this process alone since it started')
    expect(text.match(/<rect/g)?.length).toBeGreaterThanOrEqual(3)
    expect(text).toContain('<caption>Minutes in which something was counted')
  })

  it('lists what is unknown, and what is running', async () => {
    const world = await aWorld()
    const lost = aKey()
    await world.orphan(lost)
    const running = aKey()
    await aRunningClaim(world, running)
    const { text } = await world.get('/console/')
    const [, unknowns = '', runnings = ''] = text.split('<table class="records"')
    expect(unknowns).toContain(lost)
    expect(unknowns).not.toContain(running)
    expect(runnings).toContain(running)
    expect(read(runnings)).toContain('Lease left')
  })

  it('says so where there is nothing', async () => {
    const { text } = await (await aWorld()).get('/console/')
    expect(read(text)).toContain('None. Every operation has an outcome, or is running.')
    expect(read(text)).toContain('No claim is held at this moment.')
  })

  it('says that there are more than it shows', async () => {
    const world = await aWorld()
    for (let index = 0; index < 11; index += 1) await aRunningClaim(world, `key-${index}`)
    const { text } = await world.get('/console/')
    expect(read(text)).toContain('These are 10 of more')
    expect(text).toContain('href="./records?status=running">See all')
  })

  it('is reached without the slash at its end', async () => {
    const world = await aWorld()
    const redirected = await world.get('/console')
    expect(redirected).toMatchObject({ status: 302, headers: { location: './console/' } })
  })
})

describe('counting', () => {
  it('ends with the application', async () => {
    const idempotency = createIdempotency()
    let subscribed = 0
    const on: typeof idempotency.on = (listener) => {
      subscribed += 1
      const end = idempotency.on(listener)
      return () => {
        subscribed -= 1
        end()
      }
    }
    const app = Fastify()
    const authorize = () => ({ by: 'ann' })
    await app.register(operatorConsole, {
      prefix: '/console',
      idempotency: { ...idempotency, on },
      authorize,
    })
    await app.ready()
    expect(subscribed).toBe(1)
    await app.close()
    expect(subscribed).toBe(0)
  })
})

describe('a list', () => {
  it('can be narrowed down by route and age, which is all that its address holds', async () => {
    const world = await aWorld()
    const hour = 3_600_000
    await aRunningClaim(world, 'an-old-refund', {
      route: 'POST /refunds',
      firstSeenAt: Date.now() - 2 * hour,
    })
    await aRunningClaim(world, 'a-new-refund', { route: 'POST /refunds' })
    await aRunningClaim(world, 'an-old-payment', { firstSeenAt: Date.now() - 2 * hour })
    const page = await world.get(`/console/records?status=running&route=POST%20/refunds&older=${hour}`)
    expect(page.text).toContain('an-old-refund')
    expect(page.text).not.toContain('a-new-refund')
    expect(page.text).not.toContain('an-old-payment')
    expect(page.text).toContain('value="POST /refunds"')
    expect(page.text).toContain(`<option value="${hour}" selected>`)
  })

  it('that found nothing in time says so, and that it is not whole', async () => {
    const behind = memoryStore()
    const list = async function* ({ signal }: ListQuery): AsyncIterable<StoredRecord> {
      await once(signal ?? expect.fail('nobody could stop it'), 'abort')
      yield* []
    }
    const world = await aWorld({}, { store: { ...behind, list }, behind })
    for (const path of ['/', '/records']) {
      const { status, text } = await world.get(`/console${path}`)
      expect(status).toBe(200)
      expect(read(text)).toContain('Nothing was found within 5 s, and the store had not looked at everything')
      expect(read(text)).not.toContain('Every operation has an outcome')
    }
  }, 30_000)

  it('is not looked for any more once the one who asked is gone', async () => {
    const behind = memoryStore()
    const asked: AbortSignal[] = []
    const list = async function* ({ signal }: ListQuery): AsyncIterable<StoredRecord> {
      asked.push(signal ?? expect.fail('nobody could stop it'))
      yield* []
      await once(asked[0] ?? expect.fail(), 'abort')
    }
    const world = await aWorld({}, { store: { ...behind, list }, behind })
    const url = await world.app.listen({ host: '127.0.0.1', port: 0 })
    const person = new AbortController()
    const page = fetch(`${url}/console/`, { headers: { 'x-operator': 'ann' }, signal: person.signal })
    await expect.poll(() => asked.length).toBe(2)
    const left = performance.now()
    person.abort()
    await expect(page).rejects.toThrow()
    await expect.poll(() => asked.every(({ aborted }) => aborted), { timeout: 4000 }).toBe(true)
    expect(performance.now() - left).toBeLessThan(4000)
  })

  it('shows the oldest first', async () => {
    const world = await aWorld()
    const now = Date.now()
    for (const [key, age] of [
      ['second', 2000],
      ['first', 3000],
      ['third', 1000],
    ] as const)
      await aRunningClaim(world, `the-${key}`, { firstSeenAt: now - age })
    const { text } = await world.get('/console/records?status=running')
    const keys = Array.from(text.matchAll(/<bdi>the-(\w+)<\/bdi>/g), ([, key]) => key)
    expect(keys).toEqual(['first', 'second', 'third'])
  })

  it('takes no notice of what makes no sense in its address', async () => {
    const world = await aWorld()
    const page = await world.get('/console/records?status=%00&older=-1&older=x&route=%E0%A4%A')
    expect(page).toMatchObject({ status: 200 })
    expect(page.text).toContain('<h1>Unknown outcomes</h1>')
  })
})

describe('a record', () => {
  it('is found by key and scope, as the service has them, and by its id', async () => {
    const world = await aWorld()
    const key = aKey()
    await world.pay(key)
    const byKey = await world.post('/console/search', { key: ` ${key} `, scope: 'acme' })
    expect(byKey.status).toBe(303)
    const id = String(byKey.headers.location).replace('./records/', '')
    const byId = await world.post('/console/search', { id })
    expect(byId.headers.location).toBe(byKey.headers.location)
    expect(await world.post('/console/search', { key, scope: 'another' })).toMatchObject({ status: 404 })
    expect(await world.get('/console/records/none')).toMatchObject({ status: 404 })
  })

  it('is found by a scope and a key with spaces around them, where they are part of them', async () => {
    const world = await aWorld()
    const scope = ' acme '
    for (const [typed, key] of [
      ['k-1', 'k-1'],
      [' k-2 ', ' k-2 '],
      ['" k-3 "', ' k-3 '],
      [' "k-4" ', 'k-4'],
    ] as const) {
      const id = recordId({ namespace: '', scope, key })
      await aRunningClaim(world, key, {}, id)
      const found = await world.post('/console/search', { key: typed, scope })
      expect(found.headers.location).toBe(`./records/${id}`)
      // Not the record of somebody else, whose name is nearly the same.
      expect(await world.post('/console/search', { key: typed, scope: 'acme' })).toMatchObject({
        status: 404,
      })
    }
  })

  it('shows status and size of the kept answer, and not a word of it', async () => {
    const world = await aWorld()
    const key = aKey()
    await world.pay(key)
    const { headers } = await world.post('/console/search', { key, scope: 'acme' })
    const { text } = await world.get(`/console/${String(headers.location)}`)
    expect(read(text)).toMatch(/Kept answer HTTP 201, a body of 12 bytes/)
    expect(read(text)).toContain('Route POST /payments')
    expect(read(text)).toContain('Fence 1 claimed once')
    expect(text).not.toContain('p-1')
  })

  it('of another namespace is not found, and the page names the one that is looked into', async () => {
    const store = memoryStore()
    const app = Fastify()
    worlds.push(app)
    const idempotency = createIdempotency({ store, namespace: 'billing' })
    await app.register(operatorConsole, { prefix: '/console', idempotency, authorize: () => ({ by: 'ann' }) })
    const find = async (key: string) =>
      app.inject({
        method: 'POST',
        url: '/console/search',
        headers: {
          ...{ host: 'x', origin: 'http://x' },
          'content-type': 'application/x-www-form-urlencoded',
        },
        payload: new URLSearchParams({ key, scope: 'acme' }).toString(),
      })
    await idempotency.run({ scope: 'acme', key: 'ours' }, async () => 1)
    await createIdempotency({ store, namespace: 'shop' }).run({ scope: 'acme', key: 'theirs' }, async () => 1)
    expect((await find('ours')).statusCode).toBe(303)
    const page = await find('theirs')
    expect(page.statusCode).toBe(404)
    expect(read(page.payload)).toContain('in its namespace billing')
  })

  it('whose answer cannot be opened says so', async () => {
    const behind = memoryStore()
    const sealed = sealedStore(behind, { keys: [Buffer.alloc(32, 1)] })
    const other = sealedStore(behind, { keys: [Buffer.alloc(32, 2)] })
    const writer = await aWorld({}, { store: sealed })
    const key = aKey()
    await writer.pay(key)
    const reader = await aWorld({}, { store: other })
    const page = await reader.post('/console/search', { key, scope: 'acme' })
    expect(page.status).toBe(500)
    expect(read(page.text)).toContain('sealed with a key that this service does not have')
  })
})

describe('a store that fails', () => {
  it('makes pages with 503 that say so, and no stack', async () => {
    const behind = memoryStore()
    const line = disturbed(behind)
    const broken = async function* () {
      yield* []
      throw new Error('connect ECONNREFUSED 10.0.0.7:5432 at Socket.<anonymous>')
    }
    const world = await aWorld({}, { store: { ...line.store, list: broken }, behind })
    const id = await world.orphan(aKey())
    line.disturb('find', 'fails')
    for (const path of ['/', '/records?status=unknown', `/records/${id}`]) {
      const page = await world.get(`/console${path}`)
      expect(page.status).toBe(503)
      expect(read(page.text)).toContain('The store could not be reached, failed, or did not answer in time')
      expect(page.text).not.toMatch(/ECONNREFUSED|the line is down|\bat \w+ \(/)
    }
    // What this process counts needs no store.
    expect((await world.get('/console/')).text).toContain('<svg')
  })

  it('has left an audit line when it does not say whether a change was made', async () => {
    const behind = memoryStore()
    const line = disturbed(behind)
    const world = await aWorld({}, { store: line.store, behind })
    const id = await world.orphan(aKey())
    const path = `/console/records/${id}/release`
    const asked = await world.post(path, (await world.get(`/console/records/${id}`)).hidden('release'))
    line.disturb('settle', 'fails')
    const failed = await world.post(path, asked.hidden('release'))
    expect(failed.status).toBe(503)
    expect(read(failed.text)).toContain('it may have been done')
    expect(world.audit).toMatchObject([{ event: 'releasing', id, by: 'ann' }])
  })

  it('and cannot list is said to be so, and is looked into by key', async () => {
    const behind = memoryStore()
    const world = await aWorld({}, { store: disturbed(behind).store, behind })
    const key = aKey()
    const id = await world.orphan(key)
    for (const path of ['/', '/records']) {
      const page = await world.get(`/console${path}`)
      expect(page.status).toBe(200)
      expect(read(page.text)).toContain('This store cannot list its records')
    }
    const found = await world.post('/console/search', { key, scope: 'acme' })
    expect(found.headers.location).toBe(`./records/${id}`)
  })
})

describe('links', () => {
  it('are relative, so that a proxy may put the console anywhere', async () => {
    const world = await aWorld()
    const id = await world.orphan(aKey())
    for (const path of ['/', '/records', `/records/${id}`]) {
      const { text } = await world.get(`/console${path}`)
      const links = Array.from(text.matchAll(/(?:href|action)="([^"#][^"]*)"/g), ([, link = '']) => link)
      expect(links.length).toBeGreaterThan(5)
      for (const link of links) {
        const target = new URL(link, `http://proxy/ops/tools${path}`)
        expect(target.pathname).toMatch(/^\/ops\/tools\/(?:$|records|search|console\.css)/)
      }
    }
  })

  it('are right below any prefix, also none', async () => {
    for (const prefix of ['', '/', '/a/b', '/of/:tenant']) {
      const app = Fastify()
      worlds.push(app)
      const idempotency = createIdempotency()
      await app.register(operatorConsole, { prefix, idempotency, authorize: () => ({ by: 'ann' }) })
      const at = prefix.replace(':tenant', 'acme').replace(/\/$/, '')
      const page = await app.inject(`${at}/records`)
      expect(page.statusCode).toBe(200)
      const css = /href="([^"]*console\.css)"/.exec(page.payload)?.[1] ?? expect.fail()
      expect((await app.inject(new URL(css, `http://x${at}/records`).pathname)).statusCode).toBe(200)
    }
  })
})

async function aRunningClaim(
  { store }: ConsoleWorld,
  key: string,
  meta: { readonly route?: string; readonly firstSeenAt?: number } = {},
  id = `id-of-${key}`,
): Promise<void> {
  await store.claim({
    ...{ id, token: 'token', fingerprint: 'f', leaseMs: 60_000, ttlMs: 600_000 },
    ...{ takeOver: false, mayBeLost: false },
    meta: { key, route: 'POST /payments', scope: 'hash', firstSeenAt: Date.now(), ...meta },
  })
}
