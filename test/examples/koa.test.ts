import { readdirSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { Readable } from 'node:stream'
import Koa, { type Context } from 'koa'
import bodyParser from 'koa-bodyparser'
import { NothingHappenedError } from 'oncekey'
import { afterEach, describe, expect, it } from 'vitest'
import { protect } from '../../examples/koa/protect.js'
import { aKey } from '../support/fastify-app.js'
import { gate } from '../support/gate.js'
import { answered } from '../support/web-app.js'
import { ALL_BYTES } from '../support/web-response-kinds.js'

const ROOT = new URL('../../', import.meta.url)
const closing: (() => Promise<unknown>)[] = []

afterEach(async () => {
  await Promise.all(closing.splice(0).map((close) => close()))
})

async function listening(app: Koa): Promise<string> {
  const server = createServer(app.callback())
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  closing.push(() => {
    server.closeAllConnections()
    return new Promise((resolve) => server.close(resolve))
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

interface Sent {
  readonly key?: string
  readonly body?: string
  readonly headers?: Readonly<Record<string, string>>
}

const send = async (url: string, { key, body = '{"amount":5}', headers }: Sent) =>
  answered(
    await fetch(url, {
      method: 'POST',
      redirect: 'manual',
      headers: {
        'content-type': 'application/json',
        'x-account': 'ada',
        ...(key !== undefined && { 'idempotency-key': key }),
        ...headers,
      },
      body,
    }),
  )

/** An application of Koa with one protected handler, and what its own middleware sets before. */
async function served(
  handler: (ctx: Context) => unknown,
  options?: Parameters<typeof protect>[0],
): Promise<string> {
  const app = new Koa()
  app.silent = true
  let requests = 0
  app.use(async (ctx, next) => {
    ctx.state.account = ctx.get('x-account')
    ctx.set('x-request-id', `r-${++requests}`)
    await next()
  })
  app.use(bodyParser())
  app.use(protect(options) as never)
  app.use(handler as never)
  return listening(app)
}

/** A handler that says one thing. */
const sets = (name: 'body' | 'status', make: () => unknown) => (ctx: Context) => {
  Object.assign(ctx, { [name]: make() })
}

const KINDS: Readonly<
  Record<string, { handler: (ctx: Context) => void; status?: number; body: string | Buffer }>
> = {
  JSON: {
    handler: (ctx) => {
      ctx.status = 201
      ctx.body = { a: 1 }
    },
    status: 201,
    body: '{"a":1}',
  },
  text: { handler: sets('body', () => 'text'), body: 'text' },
  'an empty text': { handler: sets('body', () => ''), body: '' },
  bytes: { handler: sets('body', () => ALL_BYTES), body: ALL_BYTES },
  'a stream': {
    handler: sets('body', () => Readable.from([ALL_BYTES, ALL_BYTES])),
    body: Buffer.concat([ALL_BYTES, ALL_BYTES]),
  },
  'a web stream': { handler: sets('body', () => new Blob([ALL_BYTES]).stream()), body: ALL_BYTES },
  'a Blob': { handler: sets('body', () => new Blob([ALL_BYTES])), body: ALL_BYTES },
  'a Response': {
    handler: sets('body', () => new Response('made', { status: 202 })),
    status: 202,
    body: 'made',
  },
  'nothing, with 204': { handler: sets('status', () => 204), status: 204, body: '' },
  null: { handler: sets('body', () => null), status: 204, body: '' },
  'a status alone': { handler: sets('status', () => 202), status: 202, body: 'Accepted' },
  'a redirect': {
    handler: (ctx) => ctx.redirect('/elsewhere'),
    status: 302,
    body: 'Redirecting to /elsewhere.',
  },
  'nothing at all': { handler: () => {}, status: 404, body: 'Not Found' },
  'a refusal that was thrown': {
    handler: (ctx) => ctx.throw(402, 'declined'),
    status: 402,
    body: 'declined',
  },
  'an error that was thrown': {
    handler: () => {
      throw Object.assign(new Error('secret'), { status: 503 })
    },
    status: 500,
    body: 'Internal Server Error',
  },
}

describe('examples/koa', () => {
  it.each(Object.keys(KINDS))('replays %s byte for byte, with one effect', async (name) => {
    const { handler, status = 200, body } = KINDS[name] ?? expect.fail()
    let effects = 0
    const url = await served((ctx) => {
      ctx.set('x-made', String(++effects))
      ctx.append('set-cookie', ['a=1', 'b=2'])
      return handler(ctx)
    })
    const key = aKey()
    const first = await send(url, { key })
    expect(first).toMatchObject({ status, isReplay: false, bytes: Buffer.from(body) })
    expect(first.headers).toMatchObject({
      'x-request-id': 'r-1',
      'set-cookie': expect.stringContaining('b=2'),
    })
    for (const requestId of ['r-2', 'r-3']) {
      const again = await send(url, { key })
      expect(again).toMatchObject({ status, isReplay: true, bytes: first.bytes })
      expect(again.headers).toMatchObject({ 'x-made': '1', 'x-request-id': requestId })
      expect(again.headers['content-type']).toBe(first.headers['content-type'])
      expect(again.headers.location).toBe(first.headers.location)
      expect(again.headers).not.toHaveProperty('set-cookie')
    }
    expect(effects).toBe(1)
  })

  it('streams what is longer than the limit on, and keeps a tombstone', async () => {
    const url = await served(
      sets('body', () => Readable.from([Buffer.alloc(3000, 1), Buffer.alloc(3000, 2)])),
      {
        maxBodyBytes: 1000,
      },
    )
    const key = aKey()
    expect((await send(url, { key })).bytes).toEqual(
      Buffer.concat([Buffer.alloc(3000, 1), Buffer.alloc(3000, 2)]),
    )
    expect(await send(url, { key })).toMatchObject({ code: 'IDEMPOTENCY_RESPONSE_NOT_KEPT' })
  })

  it('compares bodies that were parsed, and refuses those that were not', async () => {
    let runs = 0
    const url = await served(sets('body', () => `run ${++runs}`))
    const key = aKey()
    await send(url, { key, body: '{"a":1,"b":2}' })
    expect(await send(url, { key, body: '{"b":2,"a":1}' })).toMatchObject({ isReplay: true })
    expect(await send(url, { key, body: '{"a":2,"b":2}' })).toMatchObject({ status: 422 })
    const headers = { 'content-type': 'application/octet-stream' }
    expect(await send(url, { key: aKey(), headers })).toMatchObject({ status: 500 })
    expect(runs).toBe(1)
    expect(await send(url, { headers })).toMatchObject({ status: 200 })
  })

  it('runs again after an error that says that nothing happened', async () => {
    let runs = 0
    const url = await served((ctx) => {
      runs += 1
      if (runs === 1) throw new NothingHappenedError('not now')
      ctx.body = `run ${runs}, fence ${ctx.state.idempotency.fence}`
    })
    const key = aKey()
    expect(await send(url, { key })).toMatchObject({ status: 503 })
    expect((await send(url, { key })).bytes.toString()).toBe('run 2, fence 1')
  })

  it('refuses a key that is sent twice, and goes on for a client that has hung up', async () => {
    const started = gate()
    const gone = gate()
    let effects = 0
    const url = await served(async (ctx) => {
      effects += 1
      ctx.req.socket.once('close', gone.open)
      started.open()
      await gone.opened
      ctx.body = 'done'
    })
    const key = aKey()
    const request = (...keys: readonly string[]) =>
      `POST / HTTP/1.1\r\nhost: x\r\nx-account: ada\r\n${keys.map((one) => `idempotency-key: ${one}\r\n`).join('')}content-length: 0\r\n\r\n`
    const twice = connect(Number(new URL(url).port), '127.0.0.1')
    twice.write(request(key, key))
    expect(String(await new Promise((resolve) => twice.once('data', resolve)))).toMatch(/^HTTP\/1\.1 400 /)
    twice.destroy()
    expect(effects).toBe(0)
    const leaving = connect(Number(new URL(url).port), '127.0.0.1')
    leaving.write(request(key))
    await started.opened
    leaving.destroy()
    const retry = () => send(url, { key, body: '', headers: { 'content-type': 'text/plain' } })
    await expect.poll(async () => (await retry()).isReplay).toBe(true)
    expect((await retry()).bytes.toString()).toBe('done')
    expect(effects).toBe(1)
  })

  it('protects a route of the example', async () => {
    const { app } = await import('../../examples/koa/app.js')
    app.silent = true
    const url = `${await listening(app)}/accounts/a-1/payments`
    const key = aKey()
    const first = await send(url, { key })
    expect(first).toMatchObject({ status: 201, bytes: Buffer.from('{"id":"p-1","amount":5}') })
    expect(await send(url, { key })).toMatchObject({ status: 201, isReplay: true, bytes: first.bytes })
    expect(await send(url, { key, headers: { 'x-account': 'bob' } })).toMatchObject({ isReplay: false })
    expect(await send(url, { key: aKey(), body: '{"amount":5000}' })).toMatchObject({ status: 402 })
    expect(await send(url, {})).toMatchObject({ status: 400, code: 'IDEMPOTENCY_KEY_MISSING' })
  })

  it('is what docs/frameworks.md shows', () => {
    const page = readFileSync(new URL('docs/frameworks.md', ROOT), 'utf8')
    const blocks = [...page.matchAll(/```ts\n(.*?)```/gs)].map(([, code]) => code ?? '')
    const files = ['koa', 'nest'].flatMap((name) => {
      const folder = new URL(`examples/${name}/`, ROOT)
      return readdirSync(folder).map((file) => readFileSync(new URL(file, folder), 'utf8'))
    })
    expect(blocks.length).toBeGreaterThan(2)
    for (const block of blocks) expect(files.some((file) => file.includes(block)) ? '' : block).toBe('')
  })
})
