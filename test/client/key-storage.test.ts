import { describe, expect, it } from 'vitest'
import {
  CallOutcomeUnknownError,
  CallRetriesExhaustedError,
  createFetch,
  forgetOperation,
  type ItemStorage,
  type KeyStorage,
} from '../../src/client/create-fetch.js'
import { aServer, failureOf, keysOf, POST, QUICK, statuses } from '../support/client-fixtures.js'
import { gate } from '../support/gate.js'
import { sendProblem } from '../support/http-server.js'

const NAME = 'oncekey:checkout-42'
const OPERATION = { operation: 'checkout-42' } as const
const HOUR_MS = 3_600_000

/** A storage as browsers have it. */
function itemStorage(): ItemStorage & { readonly items: Map<string, string> } {
  const items = new Map<string, string>()
  return {
    items,
    getItem: (name) => items.get(name) ?? null,
    setItem: (name, value) => items.set(name, value),
    removeItem: (name) => items.delete(name),
  }
}

/** A storage whose every step takes a while, as those of databases do. */
function slowStorage(): KeyStorage & { readonly items: Map<string, string> } {
  const items = new Map<string, string>()
  const later = () => new Promise((resolve) => setTimeout(resolve, 5))
  return {
    items,
    get: async (name) => later().then(() => items.get(name)),
    set: async (name, value) => later().then(() => items.set(name, value)),
    remove: async (name) => later().then(() => items.delete(name)),
  }
}

describe('createFetch › storage', () => {
  it('stores the key of a named operation before the first attempt, and since when it is used', async () => {
    const storage = new Map<string, string>()
    let stored: string | undefined
    const server = await aServer((reply) => {
      stored = storage.get(NAME)
      reply.end()
    })
    const before = Date.now()
    await createFetch({ storage })(server.url, { ...POST, idempotency: OPERATION })
    const [createdAt, key] = stored?.split(' ') ?? []
    expect(key).toBe(server.requests[0]?.key)
    expect(Number(createdAt)).toBeGreaterThanOrEqual(before)
    expect(Number(createdAt)).toBeLessThanOrEqual(Date.now())
  })

  it.each([
    ['a Map', () => new Map<string, string>()],
    ['a storage of a browser', itemStorage],
    ['a storage that takes a while', slowStorage],
  ])(
    'goes on with the key after a reload, with %s, and forgets it when the answer has come',
    async (_, make) => {
      const storage = make()
      const server = await statuses(503, 503, 200, 200)
      const call = (retries: number): Promise<Response> =>
        createFetch({ ...QUICK, storage, retries })(server.url, { ...POST, idempotency: OPERATION })
      expect(await failureOf(call(1))).toBeInstanceOf(CallRetriesExhaustedError)
      // Only the storage is left of it, as after a reload.
      expect((await call(5)).status).toBe(200)
      expect(server.requests).toHaveLength(3)
      expect(keysOf(server)).toHaveLength(1)
      await call(5)
      expect(keysOf(server)).toHaveLength(2)
    },
  )

  it('leaves nothing behind in a storage that can remove, and an empty text in one that cannot', async () => {
    const server = await statuses(200)
    const removing = itemStorage()
    await createFetch({ storage: removing })(server.url, { ...POST, idempotency: OPERATION })
    expect([...removing.items]).toEqual([])
    const items = new Map<string, string>()
    const storage: KeyStorage = {
      get: (name) => items.get(name),
      set: (name, value) => items.set(name, value),
    }
    await createFetch({ storage })(server.url, { ...POST, idempotency: OPERATION })
    expect([...items]).toEqual([[NAME, '']])
  })

  it.each([200, 201, 303, 400, 404, 409, 422])('forgets the key after a %d', async (status) => {
    const storage = itemStorage()
    const server = await statuses(status)
    const init = { ...POST, redirect: 'manual', idempotency: OPERATION } as const
    await createFetch({ storage })(server.url, init)
    expect(storage.items.size).toBe(0)
  })

  it.each([401, 403])('keeps the key after a %d, which says nothing of the operation', async (status) => {
    const storage = itemStorage()
    const server = await statuses(status, 200)
    const call = () => createFetch({ storage })(server.url, { ...POST, idempotency: OPERATION })
    expect((await call()).status).toBe(status)
    expect((await call()).status).toBe(200)
    expect(keysOf(server)).toHaveLength(1)
  })

  it.each([
    ['a 407', () => new Response(null, { status: 407 })],
    ['a hidden redirect', () => Response.error()],
  ])('keeps the key after %s, which Node has no fetch for', async (_, answer) => {
    const storage = itemStorage()
    const fetch = createFetch({ storage, fetch: async () => answer() })
    await fetch('http://127.0.0.1', { ...POST, idempotency: OPERATION })
    expect(storage.items.has(NAME)).toBe(true)
  })

  it('keeps the key after a replayed 500, which does not say what was done', async () => {
    const storage = itemStorage()
    const server = await aServer((reply) => reply.writeHead(500, { 'idempotent-replayed': 'true' }).end())
    const call = () => createFetch({ storage })(server.url, { ...POST, idempotency: OPERATION })
    expect((await call()).status).toBe(500)
    expect((await call()).status).toBe(500)
    expect(keysOf(server)).toHaveLength(1)
  })

  it.each([
    [422, 'IDEMPOTENCY_KEY_REUSED'],
    [409, 'IDEMPOTENCY_OUTCOME_UNKNOWN'],
    [409, 'IDEMPOTENCY_RESPONSE_NOT_KEPT'],
  ])('keeps the key after a %d with %s', async (status, code) => {
    const storage = itemStorage()
    const server = await aServer((reply) => sendProblem(reply, { status, code }))
    const call = () => createFetch({ storage })(server.url, { ...POST, idempotency: OPERATION })
    expect((await failureOf(call())).code).toBe(code)
    expect((await failureOf(call())).code).toBe(code)
    expect(keysOf(server)).toHaveLength(1)
  })

  it.each([
    ['a Map', () => new Map<string, string>()],
    ['a storage that takes a while', slowStorage],
  ])('gives one key to calls of one operation that come at once, with %s', async (_, make) => {
    const storage = make()
    const answered = gate()
    const server = await aServer(async (reply) => {
      await answered.opened
      reply.end()
    })
    const calls = [1, 2, 3].map(() =>
      createFetch({ storage })(server.url, { ...POST, idempotency: OPERATION }),
    )
    const other = createFetch({ storage })(server.url, { ...POST, idempotency: { operation: 'checkout-43' } })
    while (server.requests.length < 4) await new Promise((resolve) => setTimeout(resolve, 5))
    answered.open()
    await Promise.all([...calls, other])
    expect(keysOf(server)).toHaveLength(2)
  })

  it('gives one key to a call that comes while another looks for its own', async () => {
    const storage = slowStorage()
    const server = await statuses(200)
    const call = () => createFetch({ storage })(server.url, { ...POST, idempotency: OPERATION })
    const forgotten = forgetOperation(storage, 'checkout-42')
    const early = call()
    await forgotten
    await Promise.all([early, call()])
    expect(keysOf(server)).toHaveLength(1)
  })

  it('leaves the key of a later call alone', async () => {
    const storage = new Map<string, string>()
    const [first, second] = [gate(), gate()]
    const server = await aServer(async (reply, _, number) => {
      await (number === 1 ? first : second).opened
      reply.end()
    })
    const call = () => createFetch({ storage })(server.url, { ...POST, idempotency: OPERATION })
    const early = call()
    while (server.requests.length < 1) await new Promise((resolve) => setTimeout(resolve, 5))
    await forgetOperation(storage, 'checkout-42')
    const late = call()
    while (server.requests.length < 2) await new Promise((resolve) => setTimeout(resolve, 5))
    first.open()
    await early
    expect(storage.get(NAME)).toContain(server.requests[1]?.key)
    second.open()
    await late
    expect(storage.get(NAME)).toBe('')
  })

  it('stops where a key is older than its lifetime, says so, and makes no other', async () => {
    const stored = `${Date.now() - 25 * HOUR_MS} old-key`
    const storage = new Map([[NAME, stored]])
    const server = await statuses(200)
    const call = () => createFetch({ storage })(server.url, { ...POST, idempotency: OPERATION })
    for (const error of [await failureOf(call()), await failureOf(call())]) {
      expect(error).toBeInstanceOf(CallOutcomeUnknownError)
      expect(error).toMatchObject({ code: 'IDEMPOTENCY_OUTCOME_UNKNOWN', key: 'old-key', attempts: 0 })
      expect(error.response).toBeUndefined()
    }
    expect(server.requests).toHaveLength(0)
    expect(storage.get(NAME)).toBe(stored)
  })

  it('stops where a key was made by a clock that was far ahead: it may be of any age', async () => {
    const storage = new Map([[NAME, `${Date.now() + 25 * HOUR_MS} old-key`]])
    const server = await statuses(200)
    const error = await failureOf(createFetch({ storage })(server.url, { ...POST, idempotency: OPERATION }))
    expect(error).toMatchObject({ code: 'IDEMPOTENCY_OUTCOME_UNKNOWN', key: 'old-key', attempts: 0 })
    expect(server.requests).toHaveLength(0)
  })

  it('goes by the lifetime that it is told', async () => {
    const storage = new Map([[NAME, `${Date.now() - 2 * HOUR_MS} old-key`]])
    const server = await statuses(503)
    const call = (keyLifetime: '1h' | '3h') =>
      createFetch({ ...QUICK, storage, keyLifetime, retries: 0 })(server.url, {
        ...POST,
        idempotency: OPERATION,
      })
    expect((await failureOf(call('1h'))).code).toBe('IDEMPOTENCY_OUTCOME_UNKNOWN')
    expect((await failureOf(call('3h'))).code).toBe('IDEMPOTENCY_RETRIES_EXHAUSTED')
    expect(keysOf(server)).toEqual(['old-key'])
  })

  it('stops a call that outlives its key, before it waits for that', async () => {
    const server = await aServer((reply) => reply.writeHead(503, { 'retry-after': '60' }).end())
    const error = await failureOf(createFetch({ keyLifetime: '30s', deadline: '1h' })(server.url, POST))
    expect(error).toMatchObject({ code: 'IDEMPOTENCY_OUTCOME_UNKNOWN', attempts: 1 })
    expect(server.requests).toHaveLength(1)
  })

  it('makes a new key once somebody has said that the operation is to be forgotten', async () => {
    const storage = itemStorage()
    storage.items.set(NAME, `${Date.now() - 25 * HOUR_MS} old-key`)
    storage.items.set('oncekey:other', `${Date.now()} other-key`)
    const server = await statuses(200)
    await forgetOperation(storage, 'checkout-42')
    expect([...storage.items.keys()]).toEqual(['oncekey:other'])
    await createFetch({ storage })(server.url, { ...POST, idempotency: OPERATION })
    expect(keysOf(server)).toEqual([expect.stringMatching(/^[\da-f-]{36}$/)])
  })

  it.each(['nonsense', '1700000000000', '1700000000000 ', ' key', 'soon key'])(
    'sends nothing where something else is stored: "%s"',
    async (text) => {
      const storage = new Map([[NAME, text]])
      const server = await statuses(200)
      const call = createFetch({ storage })(server.url, { ...POST, idempotency: OPERATION })
      await expect(call).rejects.toThrow('is no key')
      expect(server.requests).toHaveLength(0)
      expect(storage.get(NAME)).toBe(text)
    },
  )

  it('sends nothing where the key cannot be stored, or looked for', async () => {
    const server = await statuses(200)
    const full = new Error('The quota is exceeded')
    const fail = () => {
      throw full
    }
    for (const storage of [
      { ...itemStorage(), setItem: fail },
      { ...itemStorage(), getItem: fail },
      { get: () => undefined, set: () => Promise.reject(full) },
    ]) {
      const call = createFetch({ storage })(server.url, { ...POST, idempotency: OPERATION })
      expect(await failureOf(call)).toBe(full)
    }
    expect(server.requests).toHaveLength(0)
  })

  it('tries again for a call whose predecessor could not store its key', async () => {
    const storage = itemStorage()
    let fails = 1
    const flaky: ItemStorage = {
      ...storage,
      setItem(name, value) {
        if (fails-- > 0) throw new Error('busy')
        storage.setItem(name, value)
      },
    }
    const server = await statuses(200)
    const call = () => createFetch({ storage: flaky })(server.url, { ...POST, idempotency: OPERATION })
    const [first, second] = await Promise.allSettled([call(), call()])
    expect([first.status, second.status]).toEqual(['rejected', 'fulfilled'])
  })

  it('gives the answer although the key cannot be removed', async () => {
    const server = await statuses(200)
    const failing = { ...itemStorage(), removeItem: () => Promise.reject(new Error('gone')) }
    const init = { ...POST, idempotency: OPERATION }
    expect((await createFetch({ storage: failing })(server.url, init)).status).toBe(200)
    const hanging = { ...itemStorage(), removeItem: () => new Promise(() => {}) }
    const fetch = createFetch({ storage: hanging, timeout: '3s', deadline: '2s' })
    // Of its own name, since it holds the lock of the operation for ever, where there are locks.
    const own = { ...POST, idempotency: { operation: 'never-removed' } }
    expect((await fetch(server.url, own)).status).toBe(200)
  })

  it('stores nothing for calls without a name, and looks for nothing', async () => {
    const storage = new Map([[NAME, `${Date.now()} stored-key`]])
    const server = await statuses(200)
    const fetch = createFetch({ storage })
    await fetch(server.url, POST)
    await fetch(server.url, { ...POST, idempotency: { key: 'k1' } })
    expect([...storage.keys()]).toEqual([NAME])
    expect(keysOf(server)).toEqual([expect.not.stringMatching('stored-key'), 'k1'])
  })

  it('prefers the storage of the call', async () => {
    const [usual, own] = [new Map<string, string>(), new Map([[NAME, `${Date.now()} own-key`]])]
    const server = await statuses(200)
    await createFetch({ storage: usual })(server.url, {
      ...POST,
      idempotency: { ...OPERATION, storage: own },
    })
    expect(keysOf(server)).toEqual(['own-key'])
  })

  it('asks for the lock of the operation where there are locks, so that tabs do not come between', async () => {
    const asked: string[] = []
    const locks = {
      request: (name: string, work: () => Promise<unknown>) => {
        asked.push(name)
        return work()
      },
    }
    const before = Object.getOwnPropertyDescriptor(globalThis, 'navigator')
    Object.defineProperty(globalThis, 'navigator', { value: { locks }, configurable: true })
    try {
      const server = await statuses(200)
      await createFetch({ storage: itemStorage() })(server.url, { ...POST, idempotency: OPERATION })
    } finally {
      if (before) Object.defineProperty(globalThis, 'navigator', before)
      else Reflect.deleteProperty(globalThis, 'navigator')
    }
    expect(asked).toEqual([NAME, NAME])
  })
})
