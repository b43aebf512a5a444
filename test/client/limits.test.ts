import { getEventListeners } from 'node:events'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, it } from 'vitest'
import { CallDeadlineError, createFetch } from '../../src/client/create-fetch.js'
import { aServer, failureOf, POST, QUICK, statuses } from '../support/client-fixtures.js'
import { gate } from '../support/gate.js'

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void

const REASON = new Error('the user left')
const NEVER = new Promise<never>(() => {})

describe('createFetch › signal', () => {
  it('sends and stores nothing where the signal has aborted before', async () => {
    const server = await statuses(200)
    const storage = new Map<string, string>()
    let told = 0
    const fetch = createFetch({ storage, onAttempt: () => void told++ })
    const signal = AbortSignal.abort(REASON)
    const call = fetch(server.url, { ...POST, signal, idempotency: { operation: 'a' } })
    expect(await failureOf(call)).toBe(REASON)
    expect([storage.size, told, server.requests.length]).toEqual([0, 0, 0])
  })

  it('ends an attempt, and the connection with it', async () => {
    const caller = new AbortController()
    const left = gate()
    const server = await aServer((reply) => {
      reply.once('close', left.open)
      caller.abort(REASON)
    })
    expect(await failureOf(createFetch(QUICK)(server.url, { ...POST, signal: caller.signal }))).toBe(REASON)
    await left.opened
    expect(server.requests).toHaveLength(1)
  })

  it('ends an attempt in the middle of its answer, and the connection with it', async () => {
    const caller = new AbortController()
    const left = gate()
    const server = await aServer((reply) => {
      reply.once('close', left.open)
      reply.writeHead(200).write('first')
      setTimeout(() => caller.abort(REASON), 50)
    })
    expect(await failureOf(createFetch(QUICK)(server.url, { ...POST, signal: caller.signal }))).toBe(REASON)
    await left.opened
    expect(server.requests).toHaveLength(1)
  })

  it('ends a wait at once, and nothing more is sent', async () => {
    const server = await aServer((reply) => reply.writeHead(503, { 'retry-after': '60' }).end())
    const caller = new AbortController()
    const fetch = createFetch({
      ...QUICK,
      onAttempt({ attempts }) {
        if (attempts === 1) setTimeout(() => caller.abort(REASON), 20)
      },
    })
    expect(await failureOf(fetch(server.url, { ...POST, signal: caller.signal }))).toBe(REASON)
    expect(server.requests).toHaveLength(1)
  })

  it('ends the wait for a hook, and nothing is sent when that comes back', async () => {
    const server = await statuses(200)
    const caller = new AbortController()
    const hook = gate()
    const fetch = createFetch({ onAttempt: () => hook.opened })
    const call = failureOf(fetch(server.url, { ...POST, signal: caller.signal }))
    caller.abort(REASON)
    expect(await call).toBe(REASON)
    hook.open()
    await new Promise((resolve) => setTimeout(resolve, 50))
    expect(server.requests).toHaveLength(0)
  })

  it('ends the wait for a storage, and nothing is told or sent when that comes back', async () => {
    const server = await statuses(200)
    const caller = new AbortController()
    const stored = gate()
    let told = 0
    const storage = { get: () => undefined, set: () => stored.opened }
    const fetch = createFetch({ storage, onAttempt: () => void told++ })
    const init = { ...POST, signal: caller.signal, idempotency: { operation: 'a' } }
    const call = failureOf(fetch(server.url, init))
    caller.abort(REASON)
    expect(await call).toBe(REASON)
    stored.open()
    await new Promise((resolve) => setTimeout(resolve, 50))
    expect([told, server.requests.length]).toEqual([0, 0])
  })

  it('ends the reading of a body, and cancels it', async () => {
    const server = await statuses(200)
    const caller = new AbortController()
    const cancelled = gate()
    const body = new ReadableStream({
      pull: () => NEVER,
      cancel: () => cancelled.open(),
    })
    const init = { ...POST, body, duplex: 'half', signal: caller.signal } as const
    const call = failureOf(createFetch()(server.url, init))
    setTimeout(() => caller.abort(REASON), 20)
    expect(await call).toBe(REASON)
    await cancelled.opened
    expect(server.requests).toHaveLength(0)
  })

  it('still ends an answer that is read after the call', async () => {
    const server = await aServer((reply) => reply.writeHead(200).write('first'))
    const caller = new AbortController()
    const response = await createFetch()(server.url, { signal: caller.signal })
    const text = failureOf(response.text())
    caller.abort(REASON)
    expect(await text).toBe(REASON)
  })

  it('is the one of the request where the init has none', async () => {
    const server = await aServer(() => {})
    const caller = new AbortController()
    const call = failureOf(createFetch()(new Request(server.url, { ...POST, signal: caller.signal })))
    setTimeout(() => caller.abort(REASON), 20)
    expect(await call).toBe(REASON)
  })

  it('is left alone after the call, and so are the signals that followed it', async () => {
    const server = await statuses(503, 503, 200)
    const caller = new AbortController()
    const seen: WeakRef<AbortSignal>[] = []
    const fetch = createFetch({
      ...QUICK,
      fetch(input, init) {
        if (init?.signal) seen.push(new WeakRef(init.signal))
        return globalThis.fetch(input, init)
      },
    })
    for (let call = 0; call < 5; call++) await fetch(server.url, { ...POST, signal: caller.signal })
    expect(seen).toHaveLength(7)
    // Node's own requests let go of a signal when they are collected.
    await expect
      .poll(
        () => {
          collectGarbage()
          return [getEventListeners(caller.signal, 'abort').length, seen.filter((ref) => ref.deref()).length]
        },
        { timeout: 20_000 },
      )
      .toEqual([0, 0])
  })
})

describe('createFetch › deadline', () => {
  it('ends a call that has no answer, with what is known of it', async () => {
    const server = await aServer((reply, _, number) => {
      if (number < 3) reply.writeHead(503).end()
    })
    const fetch = createFetch({ ...QUICK, deadline: '2s' })
    const error = await failureOf(fetch(server.url, { ...POST, idempotency: { key: 'k1' } }))
    expect(error).toBeInstanceOf(CallDeadlineError)
    expect(error).toMatchObject({
      name: 'CallDeadlineError',
      code: 'IDEMPOTENCY_DEADLINE_EXCEEDED',
      key: 'k1',
      attempts: 3,
      response: undefined,
      retryable: true,
      statusCode: 502,
    })
  })

  it('ends a call at once where the next attempt would come after it', async () => {
    const server = await aServer((reply) => reply.writeHead(503, { 'retry-after': '3600' }).end('later'))
    const startedAt = performance.now()
    const fetch = createFetch({ maxRetryAfter: '1h', deadline: '25s' })
    const error = await failureOf(fetch(server.url, POST))
    expect(performance.now() - startedAt).toBeLessThan(15_000)
    expect(error).toMatchObject({ code: 'IDEMPOTENCY_DEADLINE_EXCEEDED', attempts: 1 })
    expect(await error.response?.text()).toBe('later')
  })

  it('bounds how long a call asks for the answer of a request that is running', async () => {
    const server = await aServer((reply) => reply.writeHead(409, { 'retry-after': '0' }).end())
    const error = await failureOf(createFetch({ ...QUICK, retries: 0, deadline: '2s' })(server.url, POST))
    expect(error.code).toBe('IDEMPOTENCY_DEADLINE_EXCEEDED')
    expect(error.attempts).toBeGreaterThan(1)
  })

  it.each([
    ['a hook', { onAttempt: () => NEVER }],
    ['a storage', { storage: { get: () => NEVER, set: () => {} }, operation: 'hangs' }],
    ['a fetch that knows no signal', { fetch: () => NEVER }],
  ])('bounds %s that never comes back', async (_, options) => {
    const call = createFetch({ ...QUICK, deadline: '100ms' })('http://127.0.0.1:9', {
      ...POST,
      idempotency: options,
    })
    expect((await failureOf(call)).code).toBe('IDEMPOTENCY_DEADLINE_EXCEEDED')
  })

  it('may be longer than timers count', async () => {
    const server = await statuses(503, 200)
    const response = await createFetch({ ...QUICK, deadline: '90d', timeout: '60d' })(server.url, POST)
    expect(response.status).toBe(200)
  })
})
