import { afterEach, describe, expect, it } from 'vitest'
import { createFetch, deriveFrom, type KeyDeriver } from '../../src/client/create-fetch.js'
import { isIdempotencyError } from '../../src/contract/errors.js'
import { failureOf, keysOf, POST, QUICK, statuses } from '../support/client-fixtures.js'

const { fetch: globalFetch } = globalThis

describe('createFetch › options', () => {
  it.each<readonly [string, unknown]>([
    ['retries', -1],
    ['retries', 'many'],
    ['maxRetryAfter', '1 minute'],
    ['timeout', Number.NaN],
    ['deadline', Number.POSITIVE_INFINITY],
    ['keyLifetime', '1y'],
    ['methods', 'POST'],
    ['keylessMethods', 5],
    ['header', 5],
    ['quoteKey', 'yes'],
    ['storage', 'sessionStorage'],
    ['bufferAnswer', 1],
    ['onAttempt', 'log'],
    ['fetch', 'fetch'],
    ['backoff', '1s'],
    ['retry', 5],
  ])('refuses %s: %o when it is made, and for a call', async (name, value) => {
    const options = { [name]: value } as never
    expect(() => createFetch(options)).toThrow(name)
    expect(() => createFetch(options)).toThrow(String(value))
    const server = await statuses(200)
    const error = await failureOf(createFetch()(server.url, { ...POST, idempotency: options }))
    expect(error).toMatchObject({ name: 'OptionsError', code: 'IDEMPOTENCY_OPTIONS_INVALID' })
    expect(server.requests).toHaveLength(0)
  })

  it('refuses a backoff whose durations are none', () => {
    expect(() => createFetch({ backoff: { base: 'soon' as never } })).toThrow('soon')
    expect(() => createFetch({ backoff: { max: -1 } })).toThrow('-1')
  })

  it('refuses an empty header or key, and a named operation without a storage', async () => {
    const server = await statuses(200)
    const send = (idempotency: never) => failureOf(createFetch()(server.url, { ...POST, idempotency }))
    expect((await send({ header: '' } as never)).message).toContain('"header"')
    expect((await send({ key: '' } as never)).message).toContain('"key"')
    expect((await send({ operation: '' } as never)).message).toContain('"operation"')
    expect((await send({ operation: 'checkout-42' } as never)).message).toContain('needs a storage')
    expect((await send({ operation: 'checkout-42', storage: undefined } as never)).message).toContain(
      'storage',
    )
    expect(server.requests).toHaveLength(0)
  })

  it('refuses a key, or the name of an operation, for all calls', () => {
    expect(() => createFetch({ key: 'k1' } as never)).toThrow('"key"')
    expect(() => createFetch({ operation: 'checkout-42', storage: new Map() } as never)).toThrow(
      '"operation"',
    )
  })

  it('refuses a key where a browser does not let it out', async () => {
    const server = await statuses(200)
    // As browsers do; Node sends any header in any mode.
    const headers = Object.assign(new Headers(), { set() {} })
    const request = Object.defineProperty(new Request(server.url, POST), 'headers', { value: headers })
    const before = globalThis.Request
    globalThis.Request = function SimpleRequest() {
      return request
    } as never
    try {
      const error = await failureOf(createFetch()(server.url, { ...POST, mode: 'no-cors' }))
      expect(error.message).toContain('no-cors')
    } finally {
      globalThis.Request = before
    }
    expect(server.requests).toHaveLength(0)
  })

  it('takes those of the call before its own, and its own again for the next call', async () => {
    const server = await statuses(503)
    const fetch = createFetch({ ...QUICK, retries: 1 })
    const attempts = async (idempotency: object) =>
      (await failureOf(fetch(server.url, { ...POST, idempotency }))).attempts
    expect(await attempts({ retries: 2 })).toBe(3)
    expect(await attempts({})).toBe(2)
    expect(await attempts({ retries: undefined })).toBe(2)
  })

  it('does not see what is written into its options later', async () => {
    const server = await statuses(503)
    const options = { ...QUICK, retries: 1 }
    const fetch = createFetch(options)
    options.retries = 3
    expect((await failureOf(fetch(server.url, POST))).attempts).toBe(2)
  })
})

describe('createFetch › fetch', () => {
  afterEach(() => {
    globalThis.fetch = globalFetch
  })

  it('may take the place of the global one', async () => {
    const server = await statuses(503, 200)
    globalThis.fetch = createFetch(QUICK) as typeof fetch
    expect((await fetch(server.url, POST)).status).toBe(200)
    expect(server.requests).toHaveLength(2)
  })

  it('sends by the one that it is given, as a function of nobody, in each case', async () => {
    const receivers: unknown[] = []
    async function ownFetch(this: unknown): Promise<Response> {
      receivers.push(this)
      return new Response('ok')
    }
    const fetch = createFetch({ fetch: ownFetch })
    await fetch('http://127.0.0.1', POST)
    await fetch('http://127.0.0.1', { ...POST, idempotency: false })
    await fetch('http://127.0.0.1', { method: 'REPORT' })
    expect(receivers).toEqual([undefined, undefined, undefined])
  })

  it('makes errors that are known to be of this library', async () => {
    const server = await statuses(503)
    const error = await failureOf(createFetch({ retries: 0 })(server.url, POST))
    expect(isIdempotencyError(error)).toBe(true)
    expect(error).toBeInstanceOf(Error)
    expect(error.stack).toContain('CallRetriesExhaustedError')
  })
})

describe('deriveFrom', () => {
  const incoming: KeyDeriver = { deriveKey: (label) => `derived-from-order-42-for-${label}` }

  it('sends the key that the incoming operation derives for the label', async () => {
    const server = await statuses(503, 200)
    const fetch = createFetch(QUICK)
    await fetch(server.url, { ...POST, idempotency: deriveFrom(incoming, 'payment') })
    await fetch(server.url, { ...POST, idempotency: { ...deriveFrom(incoming, 'stock'), retries: 1 } })
    expect(server.requests.map(({ key }) => key)).toEqual([
      'derived-from-order-42-for-payment',
      'derived-from-order-42-for-payment',
      'derived-from-order-42-for-stock',
    ])
  })

  it('lets the call make its own key where there is none to derive', async () => {
    const server = await statuses(503, 200)
    const inert: KeyDeriver = { deriveKey: () => undefined }
    await createFetch(QUICK)(server.url, { ...POST, idempotency: deriveFrom(inert, 'payment') })
    expect(server.requests).toHaveLength(2)
    expect(keysOf(server)).toEqual([expect.stringMatching(/^[\da-f-]{36}$/)])
  })
})
