import { describe, expect, it } from 'vitest'
import { createFetch } from '../../src/client/create-fetch.js'
import { failureOf, POST, QUICK, statuses } from '../support/client-fixtures.js'

const BYTES = new Uint8Array([0, 1, 2, 253, 254, 255])

function form(): FormData {
  const data = new FormData()
  data.set('amount', '5')
  data.set('receipt', new File([BYTES], 'receipt.bin', { type: 'application/octet-stream' }))
  return data
}

function stream(): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start(controller) {
      controller.enqueue(BYTES.subarray(0, 2))
      controller.enqueue(BYTES.subarray(2))
      controller.close()
    },
  })
}

const BODIES: readonly (readonly [
  string,
  () => NonNullable<RequestInit['body']>,
  Buffer | undefined,
  RegExp | undefined,
])[] = [
  ['text', () => 'zwölf', Buffer.from('zwölf'), /^text\/plain;charset=UTF-8$/],
  ['bytes', () => BYTES, Buffer.from(BYTES), undefined],
  ['a buffer', () => BYTES.buffer, Buffer.from(BYTES), undefined],
  ['a blob', () => new Blob([BYTES], { type: 'image/png' }), Buffer.from(BYTES), /^image\/png$/],
  ['a form', form, undefined, /^multipart\/form-data; boundary=/],
  [
    'fields',
    () => new URLSearchParams({ a: '1 2' }),
    Buffer.from('a=1+2'),
    /^application\/x-www-form-urlencoded/,
  ],
  ['a stream', stream, Buffer.from(BYTES), undefined],
]

describe('createFetch › bodies', () => {
  it.each<[string, () => NonNullable<RequestInit['body']>]>([
    ['text', () => ''],
    ['a blob', () => new Blob([])],
    ['fields', () => new URLSearchParams()],
  ])('sends %s that is empty with every attempt, also as a request', async (_, body) => {
    for (const isRequest of [false, true]) {
      const server = await statuses(503, 200)
      const init = { method: 'POST', body: body() }
      const sent = isRequest ? new Request(server.url, init) : server.url
      const response = await createFetch(QUICK)(sent, isRequest ? {} : init)
      expect(response.status).toBe(200)
      expect(server.requests.map((request) => request.body.length)).toEqual([0, 0])
    }
  })

  it.each(BODIES)('sends %s alike with every attempt', async (_, body, bytes, type) => {
    const server = await statuses(503, 503, 200)
    await createFetch(QUICK)(server.url, { method: 'POST', body: body(), duplex: 'half' })
    const [first, ...others] = server.requests
    expect(others).toHaveLength(2)
    for (const request of others) {
      expect(request.body.equals(first?.body ?? Buffer.alloc(0))).toBe(true)
      expect(request.headers['content-type']).toBe(first?.headers['content-type'])
    }
    if (bytes === undefined) expect(first?.body.includes(Buffer.from(BYTES))).toBe(true)
    else expect(first?.body).toEqual(bytes)
    if (type === undefined) expect(first?.headers['content-type']).toBeUndefined()
    else expect(first?.headers['content-type']).toMatch(type)
    expect(first?.headers['content-length']).toBe(String(first?.body.length))
  })

  it.each(BODIES)('sends a request made of %s alike with every attempt', async (_, body, bytes, type) => {
    const server = await statuses(503, 503, 200)
    const request = new Request(server.url, {
      method: 'POST',
      body: body(),
      duplex: 'half',
      headers: { a: 'b' },
    })
    await createFetch(QUICK)(request)
    expect(server.requests).toHaveLength(3)
    expect(new Set(server.requests.map((sent) => sent.body.toString('latin1'))).size).toBe(1)
    const [first] = server.requests
    if (bytes !== undefined) expect(first?.body).toEqual(bytes)
    if (type !== undefined) expect(first?.headers['content-type']).toMatch(type)
    expect([first?.method, first?.headers.a]).toEqual(['POST', 'b'])
    // As with fetch: a request is sent once.
    expect(request.bodyUsed).toBe(true)
  })

  it('sends the boundary of a form that its body has', async () => {
    const server = await statuses(503, 200)
    await createFetch(QUICK)(server.url, { method: 'POST', body: form() })
    for (const { headers, body } of server.requests) {
      const read = await new Response(body, {
        headers: { 'content-type': headers['content-type'] ?? '' },
      }).formData()
      expect(read.get('amount')).toBe('5')
    }
  })

  it('does not send what the caller writes into a buffer meanwhile', async () => {
    const server = await statuses(503, 200)
    const bytes = new Uint8Array(BYTES)
    await createFetch({
      ...QUICK,
      onAttempt: ({ attempts }) => {
        if (attempts === 1) bytes.fill(7)
      },
    })(server.url, { method: 'POST', body: bytes })
    expect(server.requests.map(({ body }) => body)).toEqual([Buffer.from(BYTES), Buffer.from(BYTES)])
  })

  it("sends the caller's content type", async () => {
    const server = await statuses(503, 200)
    const headers = { 'content-type': 'application/json' }
    await createFetch(QUICK)(server.url, { ...POST, headers })
    expect(server.requests.map((sent) => sent.headers['content-type'])).toEqual([
      'application/json',
      'application/json',
    ])
  })

  it('lets an init say otherwise than its request', async () => {
    const server = await statuses(503, 200)
    const request = new Request(server.url, { method: 'PUT', body: 'old', headers: { a: 'old' } })
    await createFetch(QUICK)(request, { method: 'POST', body: 'new', headers: { a: 'new' } })
    for (const sent of server.requests)
      expect([sent.method, sent.body.toString(), sent.headers.a, sent.key === undefined]).toEqual([
        'POST',
        'new',
        'new',
        false,
      ])
  })

  it('takes an address in each of its forms', async () => {
    const server = await statuses(200)
    for (const input of [server.url, new URL(server.url), new Request(server.url)])
      await createFetch(QUICK)(input, { method: 'POST' })
    expect(server.requests.map(({ method, body }) => [method, body.length])).toEqual([
      ['POST', 0],
      ['POST', 0],
      ['POST', 0],
    ])
  })

  it('fails with what a stream fails with, and sends nothing', async () => {
    const server = await statuses(200)
    const body = new ReadableStream({
      pull(controller) {
        controller.error(new Error('the disk is gone'))
      },
    })
    const call = createFetch(QUICK)(server.url, { method: 'POST', body, duplex: 'half' })
    expect((await failureOf(call)).message).toContain('the disk is gone')
    expect(server.requests).toHaveLength(0)
  })

  it('refuses a request that was sent before', async () => {
    const server = await statuses(200)
    const request = new Request(server.url, POST)
    await request.text()
    await expect(createFetch(QUICK)(request)).rejects.toThrow(TypeError)
    expect(server.requests).toHaveLength(0)
  })

  it('does not copy a blob, which may be a file of any size', async () => {
    const sent: unknown[] = []
    const fetch = createFetch({
      ...QUICK,
      fetch: async (_, init) => {
        sent.push(init?.body)
        return new Response(null, { status: sent.length < 2 ? 503 : 200 })
      },
    })
    const blob = new Blob([BYTES])
    await fetch('http://127.0.0.1', { method: 'POST', body: blob })
    expect(sent).toEqual([blob, blob])
    expect(sent[0]).toBe(blob)
  })

  it('does not say where a request comes from that would not have it said', async () => {
    const policies: unknown[] = []
    const fetch = createFetch({
      fetch: async (_, init) => {
        policies.push(init?.referrerPolicy)
        return new Response('ok')
      },
    })
    await fetch(new Request('http://127.0.0.1', { ...POST, referrerPolicy: 'no-referrer' }))
    await fetch('http://127.0.0.1', { ...POST, referrerPolicy: 'origin' })
    expect(policies).toEqual(['no-referrer', 'origin'])
  })

  it('gives what a fetch of its own needs besides', async () => {
    const seen: unknown[] = []
    const fetch = createFetch({
      fetch: async (input, init) => {
        seen.push(input, (init as { next?: unknown }).next, 'idempotency' in (init ?? {}))
        return new Response('ok')
      },
    })
    await fetch('http://127.0.0.1', { ...POST, next: { revalidate: 5 }, idempotency: {} } as RequestInit)
    expect(seen).toEqual(['http://127.0.0.1', { revalidate: 5 }, false])
  })
})
