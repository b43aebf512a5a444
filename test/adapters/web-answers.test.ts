import { Readable } from 'node:stream'
import { describe, expect, it, vi } from 'vitest'
import { idempotencyOf } from '../../src/adapters/web.js'
import { NothingHappenedError } from '../../src/contract/errors.js'
import { memoryStore } from '../../src/stores/memory.js'
import { disturbed } from '../support/disturbed-store.js'
import { aKey } from '../support/fastify-app.js'
import { gate } from '../support/gate.js'
import { aHandler, answered, aRequest, silent } from '../support/web-app.js'
import { WEB_RESPONSE_KINDS } from '../support/web-response-kinds.js'

/** A stream that gives half of what it should. */
function brokenStream(message: string): ReadableStream<Uint8Array> {
  let pulls = 0
  return new ReadableStream({
    pull(controller) {
      pulls += 1
      if (pulls === 1) controller.enqueue(Buffer.from('{"amo'))
      else controller.error(new Error(message))
    },
  })
}

describe('web handler › answers', () => {
  it.each(Object.keys(WEB_RESPONSE_KINDS))('replays %s byte for byte, with one effect', async (name) => {
    const { make, status = 200, body } = WEB_RESPONSE_KINDS[name] ?? expect.fail()
    let effects = 0
    const { send } = aHandler(() => {
      effects += 1
      return make()
    })
    const key = aKey()
    const first = await send({ key })
    expect(first).toMatchObject({ status, isReplay: false })
    if (body !== undefined) expect(first.bytes).toEqual(Buffer.from(body))
    for (let retry = 0; retry < 2; retry += 1) {
      const { headers, ...again } = await send({ key })
      expect(again).toMatchObject({ status, isReplay: true, bytes: first.bytes })
      expect(headers).toEqual({ ...first.headers, 'idempotent-replayed': 'true' })
    }
    expect(effects).toBe(1)
  })

  it('gives the first client every header, and a replay what belongs to the answer', async () => {
    const once = aHandler(() => new Response()).once
    const wrapped = once(() => {
      const headers = new Headers({ etag: '"1"', 'x-request-id': 'r-1' })
      headers.append('set-cookie', 'a=1; Path=/')
      headers.append('set-cookie', 'b=2; Expires=Wed, 21 Oct 2026 07:28:00 GMT')
      return new Response('made', { status: 201, statusText: 'Made', headers })
    })
    const key = aKey()
    const first = await wrapped(aRequest({ key }))
    expect(first.headers.getSetCookie()).toEqual([
      'a=1; Path=/',
      'b=2; Expires=Wed, 21 Oct 2026 07:28:00 GMT',
    ])
    expect(first).toMatchObject({ status: 201, statusText: 'Made' })
    const { headers } = await wrapped(aRequest({ key }))
    expect(Object.fromEntries(headers)).toMatchObject({ etag: '"1"', 'idempotent-replayed': 'true' })
    expect(headers.has('set-cookie')).toBe(false)
    expect(headers.has('x-request-id')).toBe(false)
  })

  it('replays several cookies, each on a line of its own, where they are to be kept', async () => {
    const cookies = ['a=1; Path=/', 'b=2; Expires=Wed, 21 Oct 2026 07:28:00 GMT']
    const { once } = aHandler(() => new Response(), { headers: { keep: ['set-cookie'] } })
    const wrapped = once(
      () => new Response('x', { headers: cookies.map((cookie) => ['set-cookie', cookie]) }),
    )
    const key = aKey()
    await wrapped(aRequest({ key }))
    expect((await wrapped(aRequest({ key }))).headers.getSetCookie()).toEqual(cookies)
  })

  it('leaves only when the outcome is kept', async () => {
    const inner = memoryStore()
    const completing = gate()
    const { opened, open } = gate()
    const store = {
      ...inner,
      async complete(...given: Parameters<typeof inner.complete>) {
        completing.open()
        await opened
        return inner.complete(...given)
      },
    }
    let hasLeft = false
    const { send } = aHandler(() => new Response('done'), { store })
    const first = send({ key: aKey() }).then(() => {
      hasLeft = true
    })
    await completing.opened
    await new Promise((resolve) => setImmediate(resolve))
    expect(hasLeft).toBe(false)
    open()
    await first
  })

  it('leaves when the outcome cannot be kept for now', async () => {
    const line = disturbed(memoryStore())
    const { send } = aHandler(() => new Response('done'), { store: line.store, storeTimeout: '50ms' })
    line.disturb('complete', 'fails')
    expect(await send({ key: aKey() })).toMatchObject({ status: 200, bytes: Buffer.from('done') })
  })
})

describe('web handler › answers that are not kept', () => {
  it.each([401, 403, 407, 408, 425, 429, 503])('releases the key after %i', async (status) => {
    let runs = 0
    const { send } = aHandler(() => Response.json({ run: ++runs }, { status }))
    const key = aKey()
    await send({ key })
    expect(await send({ key })).toMatchObject({ status, isReplay: false })
    expect(runs).toBe(2)
  })

  it('releases the key after what the handler does not keep', async () => {
    let runs = 0
    const { send } = aHandler(
      () => new Response(`run ${++runs}`, { status: runs === 1 ? 500 : 200 }),
      {},
      { keep: ({ status, body }) => status !== 500 || body?.toString() !== 'run 1' },
    )
    const key = aKey()
    await send({ key })
    expect(await send({ key })).toMatchObject({ status: 200, isReplay: false })
    expect(await send({ key })).toMatchObject({ status: 200, isReplay: true })
  })

  it('releases the key when the handler says that nothing happened', async () => {
    let runs = 0
    const { send } = aHandler((request) => {
      runs += 1
      if (runs === 1) idempotencyOf(request).forget()
      return new Response(`run ${runs}`)
    })
    const key = aKey()
    await send({ key })
    expect((await send({ key })).bytes.toString()).toBe('run 2')
    expect((await send({ key })).bytes.toString()).toBe('run 2')
  })

  it.each([
    ['text', () => new Response('x'.repeat(4000), { status: 201 })],
    ['bytes', () => new Response(Buffer.alloc(4000, 1), { status: 201 })],
    [
      'a stream',
      () =>
        new Response(
          Readable.toWeb(Readable.from([Buffer.alloc(1500, 1), Buffer.alloc(2500, 2)])) as ReadableStream,
          {
            status: 201,
          },
        ),
    ],
  ])('sends %s over the limit untouched, and keeps a tombstone', async (_, make) => {
    let effects = 0
    const { send } = aHandler(
      () => {
        effects += 1
        return make()
      },
      { maxBodyBytes: 1000 },
    )
    const key = aKey()
    const first = await send({ key })
    expect(first.bytes).toEqual(Buffer.from(await make().arrayBuffer()))
    const retry = await send({ key })
    expect(retry).toMatchObject({ status: 409, code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
    expect(JSON.parse(retry.bytes.toString())).toMatchObject({ originalStatus: 201, retryable: false })
    expect(effects).toBe(1)
  })

  it('reads no more of a long stream than its client does', async () => {
    let pulled = 0
    let cancelled: unknown
    const stream = new ReadableStream<Uint8Array>(
      {
        pull(controller) {
          pulled += 1
          controller.enqueue(Buffer.alloc(100, pulled))
        },
        cancel(reason) {
          cancelled = reason
        },
      },
      { highWaterMark: 0 },
    )
    const { once } = aHandler(() => new Response(), { maxBodyBytes: 250 })
    const reader = (await once(() => new Response(stream))(aRequest({ key: aKey() }))).body?.getReader()
    expect(pulled).toBe(3)
    for (let chunk = 1; chunk <= 4; chunk += 1)
      expect((await reader?.read())?.value).toEqual(Buffer.alloc(100, chunk))
    expect(pulled).toBe(4)
    await reader?.cancel('enough')
    expect(cancelled).toBe('enough')
  })

  it.each([
    [
      'a stream of events',
      () => new Response('data: 1\n\n', { headers: { 'content-type': 'text/event-stream' } }),
    ],
    [
      'a body that somebody else reads',
      () => {
        const response = new Response('held')
        response.body?.getReader()
        return response
      },
    ],
  ])('keeps a tombstone of %s', async (_, make) => {
    let effects = 0
    const { once, send } = aHandler(() => {
      effects += 1
      return make()
    })
    const key = aKey()
    const made = make()
    expect(await once(() => made)(aRequest({ key: aKey() }))).toBe(made)
    const answer = await once(() => {
      effects += 1
      return make()
    })(aRequest({ key }))
    expect(answer.status).toBe(200)
    expect(await send({ key })).toMatchObject({ code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
    expect(effects).toBe(1)
  })

  it('keeps a tombstone of a response that was read before', async () => {
    const { once } = aHandler(() => new Response())
    const wrapped = once(async () => {
      const response = new Response('read')
      await response.text()
      return response
    })
    const key = aKey()
    expect((await wrapped(aRequest({ key }))).bodyUsed).toBe(true)
    expect((await answered(await wrapped(aRequest({ key })))).code).toBe('IDEMPOTENCY_RESPONSE_NOT_KEPT')
  })
})

describe('web handler › a handler that throws', () => {
  const failing = (effects: { count: number }) => () => {
    effects.count += 1
    throw new Error('boom')
  }

  it('throws on, once the end of the operation is kept, and is not run again', async () => {
    const effects = { count: 0 }
    const { send } = aHandler(failing(effects))
    const key = aKey()
    await expect(send({ key })).rejects.toThrow('boom')
    const retry = await send({ key })
    expect(retry).toMatchObject({ status: 409, code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
    expect(JSON.parse(retry.bytes.toString())).toMatchObject({ originalStatus: 500 })
    expect(effects.count).toBe(1)
  })

  it('is not believed about a status: the error may be that of another service', async () => {
    let effects = 0
    const { send } = aHandler(() => {
      effects += 1
      throw Object.assign(new Error('upstream'), { status: 503, statusCode: 429 })
    })
    const key = aKey()
    await expect(send({ key })).rejects.toThrow('upstream')
    expect(await send({ key })).toMatchObject({ code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
    expect(effects).toBe(1)
  })

  it('has the answer that the application makes of the error, for its retries too', async () => {
    const effects = { count: 0 }
    const { send } = aHandler(failing(effects), {
      onError: (error, request) =>
        Response.json(
          { error: (error as Error).message, at: new URL(request.url).pathname },
          { status: 500 },
        ),
    })
    const key = aKey()
    const first = await send({ key })
    expect(first).toMatchObject({ status: 500, bytes: Buffer.from('{"error":"boom","at":"/payments"}') })
    expect(await send({ key })).toMatchObject({ status: 500, isReplay: true, bytes: first.bytes })
    expect(effects.count).toBe(1)
    // Alike without a key.
    expect(await send()).toMatchObject({ status: 500, bytes: first.bytes })
  })

  it.each([
    ['makes nothing of it', () => undefined, 'boom'],
    [
      'fails itself',
      () => {
        throw new Error('worse')
      },
      'worse',
    ],
  ])('throws on when the application %s', async (_, onError, message) => {
    const effects = { count: 0 }
    const { send } = aHandler(failing(effects), { onError })
    const key = aKey()
    await expect(send({ key })).rejects.toThrow(message)
    expect(await send({ key })).toMatchObject({ code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
    await expect(send()).rejects.toThrow(message)
    expect(effects.count).toBe(2)
  })

  it('runs again after an error that says that nothing happened', async () => {
    let runs = 0
    const { send } = aHandler(() => {
      runs += 1
      if (runs === 1) throw new NothingHappenedError('the stock is being counted')
      return new Response(`run ${runs}`)
    })
    const key = aKey()
    const first = await send({ key })
    expect(first).toMatchObject({ status: 503, code: 'IDEMPOTENCY_NOTHING_HAPPENED' })
    expect(first.headers['retry-after']).toBe('1')
    expect((await send({ key })).bytes.toString()).toBe('run 2')
  })

  it('runs again after such an error whatever answer the application makes of it', async () => {
    let runs = 0
    const { send } = aHandler(
      () => {
        runs += 1
        throw new NothingHappenedError('not now')
      },
      { onError: () => new Response('later', { status: 500 }) },
    )
    const key = aKey()
    await send({ key })
    expect(await send({ key })).toMatchObject({ status: 500, isReplay: false })
    expect(runs).toBe(2)
  })

  it.each([
    [
      'a stream that breaks before it was sent',
      () => new Response(brokenStream('the disk is gone')),
      'the disk is gone',
    ],
    ['no response', () => undefined as never, 'did not return a Response'],
    ['something else', () => ({ status: 200 }) as never, 'did not return a Response'],
  ])('and one that returns %s are alike', async (_, make, message) => {
    const { send } = aHandler(make)
    const key = aKey()
    await expect(send({ key })).rejects.toThrow(message)
    expect(await send({ key })).toMatchObject({ code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
  })
})

describe('web handler › a client that goes away', () => {
  it('changes nothing: the handler ends, and the retry gets its answer', async () => {
    const leaving = new AbortController()
    const started = gate()
    const { opened, open } = gate()
    let effects = 0
    let signal: AbortSignal | undefined
    const { once, send } = aHandler(() => new Response())
    const wrapped = once(async (request) => {
      effects += 1
      signal = idempotencyOf(request).signal
      started.open()
      await opened
      return new Response('done', { status: 201 })
    })
    const key = aKey()
    const first = wrapped(new Request(aRequest({ key }), { signal: leaving.signal }))
    await started.opened
    leaving.abort()
    expect(await send({ key })).toMatchObject({ code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
    open()
    await first
    expect(signal?.aborted).toBe(false)
    expect(await send({ key })).toMatchObject({ status: 201, isReplay: true, bytes: Buffer.from('done') })
    expect(effects).toBe(1)
  })

  it('runs nothing when it leaves in the middle of its request', async () => {
    let effects = 0
    const { send } = aHandler(() => {
      effects += 1
      return new Response()
    })
    const key = aKey()
    await expect(send({ key, body: brokenStream('the client is gone') })).rejects.toThrow('is gone')
    expect(effects).toBe(0)
    expect(await send({ key })).toMatchObject({ status: 200, isReplay: false })
  })
})

describe('web handler › a run that was overtaken', () => {
  it.each([
    ['answers', () => new Response('mine', { headers: { 'x-mine': 'yes', 'set-cookie': 'mine=1' } })],
    [
      'throws',
      () => {
        throw new Error('too late')
      },
    ],
  ])('gives its client the answer that was kept when it %s', async (_, end) => {
    const store = memoryStore()
    const line = disturbed(store)
    const { opened, open } = gate()
    const lost = gate()
    const slow = aHandler(
      async (request) => {
        idempotencyOf(request).signal.addEventListener('abort', lost.open)
        await opened
        return end()
      },
      { store: line.store, lease: '100ms', storeTimeout: '50ms' },
    )
    const quick = aHandler(() => new Response('theirs', { status: 201 }), { store, onUnknown: 'rerun' })
    const key = aKey()
    line.disturb('renew', 'fails')
    const first = slow.send({ key })
    await lost.opened
    await expect.poll(async () => (await quick.send({ key })).status).toBe(201)
    line.heal()
    open()
    const { headers, ...answer } = await first
    expect(answer).toMatchObject({ status: 201, isReplay: true, bytes: Buffer.from('theirs') })
    expect(headers).not.toHaveProperty('x-mine')
    expect(headers).not.toHaveProperty('set-cookie')
  })
})

describe('web handler › the log', () => {
  it('says what is wrong with the application, and that no store was given', async () => {
    const warn = vi.fn()
    const error = vi.fn()
    const { send } = aHandler(() => new Response(), { log: { warn, error }, scope: () => '' })
    await send({ key: aKey() })
    expect(error).toHaveBeenCalledOnce()
    expect(error.mock.calls[0]?.[0]).toMatchObject({ err: { code: 'IDEMPOTENCY_SCOPE_MISSING' } })
    expect(warn).not.toHaveBeenCalled()
    aHandler(() => new Response(), { log: { ...silent, warn }, store: undefined as never })
    expect(warn.mock.calls[0]?.[1]).toContain('no store was given')
  })
})
