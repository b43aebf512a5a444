import { describe, expect, it } from 'vitest'
import {
  CallAnswerNotKeptError,
  CallKeyReusedError,
  CallOutcomeUnknownError,
  CallRetriesExhaustedError,
  type ClientOptions,
  createFetch,
} from '../../src/client/create-fetch.js'
import { aServer, aWire, failureOf, keysOf, POST, QUICK, statuses } from '../support/client-fixtures.js'
import { gate } from '../support/gate.js'
import { type Answer, sendProblem } from '../support/http-server.js'
import type { Fate } from '../support/unreliable-wire.js'

describe('createFetch › keys', () => {
  it.each(['POST', 'PATCH'])(
    'sends one key with all attempts of a %s, and another with the next call',
    async (method) => {
      const server = await statuses(503, 500, 200, 503, 200)
      const fetch = createFetch(QUICK)
      await fetch(server.url, { ...POST, method })
      expect(server.requests).toHaveLength(3)
      const [key] = keysOf(server)
      expect(keysOf(server)).toEqual([expect.stringMatching(/^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/)])
      await fetch(server.url, { ...POST, method })
      expect(server.requests).toHaveLength(5)
      expect(keysOf(server)).toEqual([key, expect.any(String)])
    },
  )

  it.each(['GET', 'HEAD', 'OPTIONS', 'PUT', 'DELETE'])('retries a %s without a key', async (method) => {
    const server = await statuses(503, 200)
    const response = await createFetch(QUICK)(server.url, { method })
    expect(response.status).toBe(200)
    expect(server.requests.map((request) => [request.method, request.key])).toEqual([
      [method, undefined],
      [method, undefined],
    ])
  })

  it('sends other methods once, and gives what comes', async () => {
    const server = await statuses(503)
    const response = await createFetch(QUICK)(server.url, { method: 'REPORT', body: 'x' })
    expect(response.status).toBe(503)
    expect(server.requests).toHaveLength(1)
    await server.close()
    await expect(createFetch(QUICK)(server.url, { method: 'REPORT' })).rejects.toThrow(TypeError)
  })

  it('sends methods once that were taken out of the lists', async () => {
    const server = await statuses(503)
    const fetch = createFetch({ ...QUICK, methods: ['PATCH'], keylessMethods: [] })
    expect((await fetch(server.url, POST)).status).toBe(503)
    expect((await fetch(server.url)).status).toBe(503)
    expect(server.requests.map(({ method, key }) => [method, key])).toEqual([
      ['POST', undefined],
      ['GET', undefined],
    ])
  })

  it('sends a call once and without a key that says idempotency: false', async () => {
    const server = await statuses(503)
    const response = await createFetch(QUICK)(server.url, { ...POST, idempotency: false })
    expect(response.status).toBe(503)
    expect(keysOf(server)).toEqual([undefined])
    expect(server.requests).toHaveLength(1)
  })

  it('gives a key to more methods where it is told to', async () => {
    const server = await statuses(200)
    await createFetch({ methods: ['PUT'] })(server.url, { method: 'PUT' })
    expect(keysOf(server)).toEqual([expect.any(String)])
  })

  it('knows a method whatever its case', async () => {
    const server = await statuses(503, 200)
    await createFetch(QUICK)(server.url, { ...POST, method: 'post' })
    expect(server.requests.map(({ method }) => method)).toEqual(['POST', 'POST'])
    expect(keysOf(server)).toEqual([expect.any(String)])
  })

  it('sends the key that the call names, whatever its method', async () => {
    const server = await statuses(503, 200)
    await createFetch(QUICK)(server.url, { method: 'DELETE', idempotency: { key: 'order-42' } })
    expect(server.requests.map(({ key }) => key)).toEqual(['order-42', 'order-42'])
  })

  it("sends the caller's own header as it is", async () => {
    const server = await statuses(503, 200)
    const headers = { 'Idempotency-Key': '"order 42"' }
    await createFetch({ ...QUICK, quoteKey: true })(server.url, { ...POST, headers })
    expect(server.requests.map(({ key }) => key)).toEqual(['"order 42"', '"order 42"'])
    await createFetch(QUICK)(new Request(server.url, { ...POST, headers }))
    expect(server.requests[2]?.key).toBe('"order 42"')
  })

  it("prefers the key that the call names to the caller's own header", async () => {
    const server = await statuses(200)
    const headers = { 'Idempotency-Key': 'from-the-headers' }
    await createFetch()(server.url, { ...POST, headers, idempotency: { key: 'from-the-call' } })
    expect(keysOf(server)).toEqual(['from-the-call'])
  })

  it('makes a key of its own where the call says that it has none', async () => {
    const server = await statuses(200)
    await createFetch(QUICK)(server.url, { ...POST, idempotency: { key: undefined } })
    expect(keysOf(server)).toEqual([expect.stringMatching(/^[\da-f-]{36}$/)])
  })

  it('quotes keys, and names the header, as it is told to', async () => {
    const server = await statuses(200)
    const fetch = createFetch({ header: 'PayPal-Request-Id', quoteKey: true })
    await fetch(server.url, { ...POST, idempotency: { key: 'k1' } })
    expect(server.requests[0]?.headers['paypal-request-id']).toBe('"k1"')
    await fetch(server.url, { ...POST, idempotency: { key: 'a "b" \\ c' } })
    expect(server.requests[1]?.headers['paypal-request-id']).toBe(String.raw`"a \"b\" \\ c"`)
    expect(server.requests[0]?.headers['idempotency-key']).toBeUndefined()
  })

  it("leaves the caller's headers and init as they were", async () => {
    const server = await statuses(200)
    const headers = new Headers({ accept: 'text/plain' })
    const init = { ...POST, headers }
    await createFetch()(server.url, init)
    expect([...headers]).toEqual([['accept', 'text/plain']])
    expect(init).toEqual({ ...POST, headers })
    expect(server.requests[0]?.headers.accept).toBe('text/plain')
  })
})

describe('createFetch › answers', () => {
  it.each([408, 425, 429, 500, 501, 502, 503, 504, 599])('retries after %d', async (status) => {
    const server = await statuses(status, status, 201)
    const response = await createFetch(QUICK)(server.url, POST)
    expect([response.status, await response.text()]).toEqual([201, 'answer 3'])
  })

  it.each([200, 201, 204, 400, 401, 402, 403, 404, 405, 409, 410, 412, 413, 415, 422])(
    'gives a %d at once, to be read',
    async (status) => {
      const server = await statuses(status)
      const response = await createFetch(QUICK)(server.url, POST)
      expect([response.status, await response.text()]).toEqual([status, status === 204 ? '' : 'answer 1'])
      expect(server.requests).toHaveLength(1)
    },
  )

  it('gives a redirect that is not to be followed', async () => {
    const server = await aServer((reply) => reply.writeHead(303, { location: '/done' }).end())
    const response = await createFetch(QUICK)(server.url, { ...POST, redirect: 'manual' })
    expect(response.status).toBe(303)
    expect(server.requests).toHaveLength(1)
  })

  it.each(['Idempotent-Replayed', 'Idempotency-Replayed', 'X-Idempotent-Replayed', 'X-Idempotency-Replayed'])(
    'gives a 500 that bears %s: it stays the answer',
    async (marker) => {
      const server = await aServer((reply, _, number) => {
        reply.writeHead(500, { [marker]: number > 1 ? 'true' : 'false' }).end(`answer ${number}`)
      })
      const response = await createFetch(QUICK)(server.url, POST)
      expect([response.status, await response.text()]).toEqual([500, 'answer 2'])
    },
  )

  it('gives a failure at once that says that it is not to be retried', async () => {
    const server = await aServer((reply, _, number) => {
      sendProblem(reply, { status: 500, code: 'IDEMPOTENCY_SCOPE_MISSING', retryable: number < 2 })
    })
    const response = await createFetch(QUICK)(server.url, POST)
    expect([response.status, await response.json()]).toEqual([
      500,
      expect.objectContaining({ retryable: false }),
    ])
    expect(server.requests).toHaveLength(2)
  })

  it('gives a replayed 503 at once', async () => {
    const server = await aServer((reply) =>
      reply.writeHead(503, { 'idempotent-replayed': 'true' }).end('kept'),
    )
    expect((await createFetch(QUICK)(server.url, POST)).status).toBe(503)
    expect(server.requests).toHaveLength(1)
  })

  it('asks again while the first request is running, and counts that as no failure', async () => {
    const server = await aServer((reply, _, number) => {
      if (number < 4) sendProblem(reply, { status: 409, code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
      else reply.writeHead(201).end('done')
    })
    const response = await createFetch({ ...QUICK, retries: 0 })(server.url, POST)
    expect([response.status, await response.text()]).toEqual([201, 'done'])
    expect(keysOf(server)).toHaveLength(1)
  })

  it('takes a 409 that says when to come back for a request that is running', async () => {
    const server = await aServer((reply, _, number) => {
      reply.writeHead(number < 3 ? 409 : 200, { 'retry-after': '0' }).end()
    })
    expect((await createFetch({ ...QUICK, retries: 0 })(server.url, POST)).status).toBe(200)
    expect(server.requests).toHaveLength(3)
  })

  it('gives the conflict of an application, whatever JSON it is', async () => {
    const server = await aServer((reply) => {
      reply.writeHead(409, { 'content-type': 'application/json' }).end('"out of stock"')
    })
    const response = await createFetch(QUICK)(server.url, POST)
    expect([response.status, await response.json()]).toEqual([409, 'out of stock'])
    expect(server.requests).toHaveLength(1)
  })

  it.each(['null', '5', '[]', '{', ''])('goes by the status of a failure that says: %s', async (text) => {
    const server = await aServer((reply, _, number) => {
      reply.writeHead(number < 2 ? 503 : 402, { 'content-type': 'application/problem+json' }).end(text)
    })
    const response = await createFetch(QUICK)(server.url, POST)
    expect([response.status, await response.text()]).toEqual([402, text])
  })

  it('gives the 422 of an application', async () => {
    const server = await aServer((reply) => sendProblem(reply, { status: 422, code: 'AMOUNT_TOO_SMALL' }))
    const response = await createFetch(QUICK)(server.url, POST)
    expect(await response.json()).toMatchObject({ code: 'AMOUNT_TOO_SMALL' })
  })

  it.each([
    ['a key that stands for another request', 422, 'IDEMPOTENCY_KEY_REUSED', CallKeyReusedError],
    ['an unknown outcome', 409, 'IDEMPOTENCY_OUTCOME_UNKNOWN', CallOutcomeUnknownError],
    ['an answer that was not kept', 409, 'IDEMPOTENCY_RESPONSE_NOT_KEPT', CallAnswerNotKeptError],
  ])('throws at %s, and never asks again', async (_, status, code, errorClass) => {
    const server = await aServer((reply) =>
      sendProblem(reply, { status, code, retryable: true, originalStatus: 201 }, { 'retry-after': '0' }),
    )
    const error = await failureOf(createFetch(QUICK)(server.url, { ...POST, idempotency: { key: 'k1' } }))
    expect(error).toBeInstanceOf(errorClass)
    expect(error).toMatchObject({ name: errorClass.name, code, key: 'k1', attempts: 1, statusCode: 502 })
    expect(error.message).toContain('k1')
    expect(error.problem).toMatchObject({ originalStatus: 201 })
    expect(error.response?.status).toBe(status)
    expect(await error.response?.json()).toMatchObject({ code })
    expect(server.requests).toHaveLength(1)
  })

  it('reads nothing into the problems of a call that has no key', async () => {
    const server = await aServer((reply) => {
      sendProblem(reply, { status: 409, code: 'IDEMPOTENCY_OUTCOME_UNKNOWN' }, { 'retry-after': '0' })
    })
    expect((await createFetch(QUICK)(server.url)).status).toBe(409)
    expect(server.requests).toHaveLength(1)
  })
})

describe('createFetch › a network that fails', () => {
  it.each<Fate>(['lose-answer', 'cut-answer', 'reset'])('sends again after: %s', async (fate) => {
    const server = await statuses(201)
    const response = await createFetch(QUICK)(await aWire(server, fate, fate), POST)
    expect([response.status, (await response.text()).startsWith('answer')]).toEqual([201, true])
    expect(server.requests).toHaveLength(fate === 'reset' ? 1 : 3)
    expect(keysOf(server)).toHaveLength(1)
  })

  it('gives up an attempt that takes too long, and sends again', async () => {
    const server = await statuses(201)
    const fetch = createFetch({ ...QUICK, timeout: '1s' })
    const response = await fetch(await aWire(server, 'swallow-answer'), POST)
    expect(await response.text()).not.toBe('answer 1')
    expect(keysOf(server)).toHaveLength(1)
  })

  it('ends the connection of an attempt that it gives up', async () => {
    const ended = gate()
    const server = await aServer((reply, _, number) => {
      if (number > 1) reply.end()
      else reply.once('close', ended.open)
    })
    await createFetch({ ...QUICK, timeout: '1s' })(server.url, POST)
    await ended.opened
  })

  it('gives up an attempt whose answer stops in the middle, and sends again', async () => {
    const server = await aServer((reply, _, number) => {
      reply.writeHead(200, { 'content-length': '4' }).write('do')
      if (number > 1) reply.end('ne')
    })
    const response = await createFetch({ ...QUICK, timeout: '1s' })(server.url, POST)
    expect(await response.text()).toBe('done')
    expect(server.requests.length).toBeGreaterThan(1)
  })

  it('gives an answer that is not to be read before while it comes', async () => {
    const server = await aServer((reply) => reply.writeHead(200).write('first'))
    const fetch = createFetch({ ...QUICK, bufferAnswer: false })
    const reader = (await fetch(server.url, POST)).body?.getReader()
    expect(new TextDecoder().decode((await reader?.read())?.value)).toBe('first')
    await reader?.cancel()
  })

  it('gives a stream of events while it comes, and does not end it at the timeout or the deadline', async () => {
    let send = (_: string): void => {}
    const server = await aServer((reply) => {
      reply.writeHead(200, { 'content-type': 'text/event-stream' })
      send = (text) => reply.write(text)
      send('data: 1')
    })
    const fetch = createFetch({ ...QUICK, timeout: '1s', deadline: '1500ms' })
    const reader = (await fetch(server.url, POST)).body?.getReader()
    const read = async (): Promise<string> => new TextDecoder().decode((await reader?.read())?.value)
    expect(await read()).toBe('data: 1')
    await new Promise((resolve) => setTimeout(resolve, 2000))
    send('data: 2')
    expect(await read()).toBe('data: 2')
    await reader?.cancel()
  })

  it('does not read the answer of a call without a key before it is given', async () => {
    const server = await aServer((reply) => reply.writeHead(200).write('first'))
    const reader = (await createFetch(QUICK)(server.url)).body?.getReader()
    expect(new TextDecoder().decode((await reader?.read())?.value)).toBe('first')
    await reader?.cancel()
  })

  it('throws, when every attempt failed, with the last answer', async () => {
    const server = await statuses(500, 503, 502)
    const call = createFetch({ ...QUICK, retries: 2 })(server.url, { ...POST, idempotency: { key: 'k1' } })
    const error = await failureOf(call)
    expect(error).toBeInstanceOf(CallRetriesExhaustedError)
    expect(error).toMatchObject({
      name: 'CallRetriesExhaustedError',
      code: 'IDEMPOTENCY_RETRIES_EXHAUSTED',
      key: 'k1',
      attempts: 3,
      retryable: true,
      cause: undefined,
    })
    expect(error.response?.status).toBe(502)
    expect(await error.response?.text()).toBe('answer 3')
    expect(server.requests).toHaveLength(3)
  })

  it('throws, when every attempt failed, with why the last one was not answered', async () => {
    const server = await statuses(503)
    const url = await aWire(server, 'lose-answer', 'lose-answer')
    const error = await failureOf(createFetch({ ...QUICK, retries: 1 })(url, POST))
    expect(error).toMatchObject({ code: 'IDEMPOTENCY_RETRIES_EXHAUSTED', attempts: 2, response: undefined })
    expect(error.cause).toBeInstanceOf(TypeError)
    expect(error.key).toBe(server.requests[0]?.key)
  })

  it('tells of the last attempt alone', async () => {
    const server = await statuses(200, 503)
    const error = await failureOf(
      createFetch({ ...QUICK, retries: 1 })(await aWire(server, 'lose-answer'), POST),
    )
    expect([error.response?.status, error.cause]).toEqual([503, undefined])
    const leaving = await aServer((reply, _, number) => {
      if (number === 1) reply.writeHead(503).end()
      else reply.destroy()
    })
    const second = await failureOf(createFetch({ ...QUICK, retries: 1 })(leaving.url, POST))
    expect([second.response, second.problem]).toEqual([undefined, {}])
    expect(second.cause).toBeInstanceOf(TypeError)
  })

  it('throws, when every attempt took too long, with a timeout', async () => {
    const server = await aServer(() => {})
    const error = await failureOf(createFetch({ ...QUICK, retries: 1, timeout: '50ms' })(server.url, POST))
    expect(error).toMatchObject({ code: 'IDEMPOTENCY_RETRIES_EXHAUSTED', attempts: 2 })
    expect(error.cause).toMatchObject({ name: 'TimeoutError' })
  })

  it('retries five times where nobody says anything else', async () => {
    const server = await statuses(503)
    const error = await failureOf(createFetch(QUICK)(server.url, POST))
    expect(error.attempts).toBe(6)
  })

  it('sends once where it is told to retry never', async () => {
    const server = await statuses(503)
    const error = await failureOf(createFetch({ retries: 0 })(server.url, POST))
    expect(error).toMatchObject({ code: 'IDEMPOTENCY_RETRIES_EXHAUSTED', attempts: 1 })
  })

  it('tells at once what cannot be sent at all', async () => {
    const fetch = createFetch(QUICK)
    await expect(fetch('not a url', POST)).rejects.toThrow(TypeError)
    await expect(fetch('http://127.0.0.1', { ...POST, headers: { 'bad name': 'x' } })).rejects.toThrow(
      TypeError,
    )
    await expect(fetch('http://127.0.0.1', { method: 'GET', body: 'x' })).rejects.toThrow(TypeError)
  })
})

describe('createFetch › waits', () => {
  /** What the second attempt would wait, without the wait. */
  async function delayAfter(answer: Answer, options: ClientOptions = {}): Promise<number> {
    const server = await aServer(answer)
    let delayMs = -1
    const fetch = createFetch({
      ...options,
      onAttempt(attempt) {
        delayMs = attempt.delayMs
        if (attempt.attempts === 1) throw new Error('seen')
      },
    })
    await expect(fetch(server.url, POST)).rejects.toThrow('seen')
    return delayMs
  }

  it('waits as long as the answer asks, and up to one backoff longer', async () => {
    const delay = await delayAfter((reply) => reply.writeHead(503, { 'retry-after': '7' }).end(), {
      backoff: { base: 100, random: () => 0.5 },
    })
    expect(delay).toBe(7050)
  })

  it('waits until the date that the answer names', async () => {
    const delay = await delayAfter(
      (reply) => {
        const at = (ms: number): string => new Date(ms).toUTCString()
        reply.writeHead(429, { date: at(1_000_000), 'retry-after': at(1_030_000) }).end()
      },
      { backoff: { base: 0 } },
    )
    expect(delay).toBe(30_000)
  })

  it('cuts what the answer asks for', async () => {
    const ask: Answer = (reply) => reply.writeHead(503, { 'retry-after': '3600' }).end()
    expect(await delayAfter(ask, { maxRetryAfter: '20ms', backoff: { base: 0 } })).toBe(20)
    expect(await delayAfter(ask, { deadline: '10m', backoff: { base: 0 } })).toBe(60_000)
  })

  it('backs off by the number of attempts', async () => {
    const server = await statuses(503, 503, 503, 200)
    const delays: number[] = []
    await createFetch({
      backoff: { base: 2, max: 7, random: () => 0.999 },
      onAttempt: ({ delayMs }) => void delays.push(delayMs),
    })(server.url, POST)
    expect(delays).toEqual([0, 2, 4, 7])
  })

  it('really waits', async () => {
    const server = await statuses(503, 200)
    const startedAt = performance.now()
    await createFetch({ backoff: { base: 200, random: () => 0.99 } })(server.url, POST)
    expect(performance.now() - startedAt).toBeGreaterThanOrEqual(195)
  })
})

describe('createFetch › onAttempt', () => {
  it('tells of each attempt, and of what became of the one before', async () => {
    const server = await statuses(503, 201)
    const told: unknown[] = []
    await createFetch({
      ...QUICK,
      onAttempt: ({ attempts, key, response, cause, delayMs }) =>
        void told.push([attempts, key, response?.status, cause instanceof TypeError, delayMs >= 0]),
    })(await aWire(server, 'lose-answer'), { ...POST, idempotency: { key: 'k1' } })
    // The first answer, a 503, was lost on its way.
    expect(told).toEqual([
      [0, 'k1', undefined, false, true],
      [1, 'k1', undefined, true, true],
    ])
    await createFetch({
      ...QUICK,
      onAttempt: ({ attempts, response }) => void told.push([attempts, response?.status]),
    })((await statuses(503, 201)).url, POST)
    expect(told.slice(2)).toEqual([
      [0, undefined],
      [1, 503],
    ])
  })

  it('is awaited before anything is sent', async () => {
    const server = await statuses(200)
    let seen = -1
    await createFetch({
      async onAttempt() {
        await new Promise((resolve) => setTimeout(resolve, 20))
        seen = server.requests.length
      },
    })(server.url, POST)
    expect(seen).toBe(0)
  })

  it('ends the call with what it throws, and nothing is sent', async () => {
    const server = await statuses(200)
    const fetch = createFetch({
      onAttempt() {
        throw new Error('not today')
      },
    })
    await expect(fetch(server.url, POST)).rejects.toThrow('not today')
    await expect(
      createFetch()(server.url, {
        ...POST,
        idempotency: { onAttempt: () => Promise.reject(new Error('nor now')) },
      }),
    ).rejects.toThrow('nor now')
    expect(server.requests).toHaveLength(0)
  })
})
