import { readdirSync, readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { aKey } from '../support/fastify-app.js'
import { answered, aRequest } from '../support/web-app.js'

const ROOT = new URL('../../', import.meta.url)
const FOLDER = new URL('examples/web/', ROOT)

describe('examples/web', () => {
  it('is what docs/web.md shows', () => {
    const files = readdirSync(FOLDER).map((name) => readFileSync(new URL(name, FOLDER), 'utf8'))
    const page = readFileSync(new URL('docs/web.md', ROOT), 'utf8')
    const blocks = [...page.matchAll(/```ts\n(.*?)```/gs)].map(([, code]) => code ?? '')
    expect(blocks.length).toBeGreaterThan(1)
    for (const block of blocks) expect(files.some((file) => file.includes(block)) ? '' : block).toBe('')
  })

  it('protects a route handler of Next.js, which gets the request and its params', async () => {
    const { POST } = await import('../../examples/web/next.js')
    const call = async (given: Parameters<typeof aRequest>[0]) =>
      answered(
        await POST(aRequest({ headers: { 'x-account': 'ada' }, ...given }), {
          params: Promise.resolve({ id: 'a-1' }),
        }),
      )
    const key = aKey()
    const first = await call({ key })
    expect(first.status).toBe(201)
    expect(JSON.parse(first.bytes.toString())).toEqual({ from: 'a-1', amount: 5, attempt: 1 })
    expect(await call({ key })).toMatchObject({ status: 201, isReplay: true, bytes: first.bytes })
    expect(await call({ key, body: '{"amount":6}' })).toMatchObject({ status: 422 })
    expect(await call({ key, headers: { 'x-account': 'bob' } })).toMatchObject({ isReplay: false })
    expect(await call({})).toMatchObject({ status: 400 })
  })

  it('protects routes of Hono by a middleware', async () => {
    const { app } = await import('../../examples/web/hono.js')
    const call = async (given: Parameters<typeof aRequest>[0]) =>
      answered(await app.request(aRequest({ headers: { 'x-account': 'ada' }, ...given })))
    const key = aKey()
    const first = await call({ key })
    expect(JSON.parse(first.bytes.toString())).toEqual({ id: 'p-1', amount: 5, fence: 1 })
    expect(await call({ key })).toMatchObject({ status: 201, isReplay: true, bytes: first.bytes })
    expect(await call({ key, headers: { 'x-account': 'bob' } })).toMatchObject({ isReplay: false })
    expect(await call({})).toMatchObject({ status: 400, code: 'IDEMPOTENCY_KEY_MISSING' })
  })
})
