import { randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import Fastify, { type FastifyInstance } from 'fastify'
import { Pool } from 'pg'
import type { Browser, BrowserContext, Page } from 'playwright-core'
import { afterAll, afterEach, beforeAll, expect, inject, it } from 'vitest'
import idempotency from '../../src/adapters/fastify.js'
import operatorConsole from '../../src/console/console.js'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { startChromium } from '../support/chromium.js'
import { type Money, move, someMoney } from '../support/money.js'
import { post } from '../support/server-process.js'
import { describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')
const CREDENTIALS = { username: 'ann', password: 'of the operators' }
const AUTHORIZATION = `Basic ${Buffer.from(`${CREDENTIALS.username}:${CREDENTIALS.password}`).toString('base64')}`

describeWith(['chromium', 'postgres'], 'the console in a browser', () => {
  const schema = `console_${randomUUID().slice(0, 8)}`
  let browser: Browser
  let pool: Pool
  let money: Money
  let store: IdempotencyStore
  let service: FastifyInstance
  let url: string
  const contexts: BrowserContext[] = []

  beforeAll(async () => {
    browser = await startChromium()
    pool = new Pool({ connectionString: postgresUrl })
    money = await someMoney(pool, schema)
    const records = postgresStore(pool, { schema })
    await records.migrate()
    store = records
    service = await aService({ store, money, pool })
    url = await service.listen({ host: '127.0.0.1', port: 0 })
  })
  afterEach(async () => {
    await Promise.all(contexts.splice(0).map((context) => context.close()))
  })
  afterAll(async () => {
    await browser?.close()
    await service?.close()
    await money?.drop()
    await pool?.end()
  })

  /** A page of an operator who is signed in. It has no script to run, so nothing may need one. */
  async function aPage(options: { readonly javaScriptEnabled?: boolean } = {}) {
    const context = await browser.newContext({
      httpCredentials: CREDENTIALS,
      javaScriptEnabled: false,
      ...options,
    })
    contexts.push(context)
    const page = await context.newPage()
    const complaints: string[] = []
    page.on('console', (message) => complaints.push(message.text()))
    page.on('pageerror', (error) => complaints.push(error.message))
    page.on('dialog', (dialog) => {
      complaints.push(`dialog ${dialog.message()}`)
      return dialog.dismiss()
    })
    return { page, complaints }
  }

  /** A payment whose process dies before or after its effect, and whose client is left without an answer. */
  async function aLostPayment(dies: 'before' | 'after', key: string): Promise<void> {
    const dying = Fastify()
    await dying.register(idempotency, { store, scope: () => 'alice', lease: '200ms', maxRun: '200ms' })
    const reached = new Promise<void>((resolve) => {
      dying.post('/transfers', async () => {
        if (dies === 'after') await move(pool, schema, { key })
        resolve()
        return new Promise(() => {})
      })
    })
    dying
      .inject({
        method: 'POST',
        url: '/transfers',
        headers: { 'idempotency-key': key },
        payload: { amount: 5 },
      })
      .catch(() => {})
    await reached
    await dying.close()
    for (;;) {
      const { status, body } = await pay(key)
      if (body.code === 'IDEMPOTENCY_OUTCOME_UNKNOWN') return
      expect([status, body.code]).toEqual([409, 'IDEMPOTENCY_KEY_IN_PROGRESS'])
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
  }

  function pay(key: string) {
    return post(`${url}/transfers`, key, {})
  }

  async function transfersOf(key: string): Promise<number> {
    return (await money.transfers()).filter((one) => one === key).length
  }

  async function openRecord(page: Page, key: string): Promise<void> {
    await page.goto(`${url}/console`)
    await page.getByRole('link', { name: key }).click()
    await page.getByRole('heading', { name: 'Record unknown' }).waitFor()
  }

  it('lets an operator settle a payment that happened: the retry gets that answer, and money moved once', async () => {
    const key = `paid-${randomUUID()}`
    await aLostPayment('after', key)
    const { page, complaints } = await aPage()
    await openRecord(page, key)
    await page.getByLabel('HTTP status').fill('201')
    await page.getByLabel('JSON or text').fill('{"id": 17, "status": "accepted"}')
    await page.getByRole('button', { name: 'Settle…' }).click()
    expect(await page.getByRole('listitem').allInnerTexts()).toContain(
      'Retries of the same request get HTTP 201 with this body. They run nothing.',
    )
    expect(await pay(key)).toMatchObject({ status: 409 })
    await page.getByRole('button', { name: 'Settle it' }).click()
    await page.getByRole('heading', { name: 'Settled' }).waitFor()
    expect(await pay(key)).toMatchObject({
      status: 201,
      isReplay: true,
      body: { id: 17, status: 'accepted' },
    })
    expect(await transfersOf(key)).toBe(1)
    await page.getByRole('link', { name: 'Look at the record' }).click()
    await page.getByRole('heading', { name: 'Record completed' }).waitFor()
    expect(complaints).toEqual([])
    // Whoever goes back sends the form again, and hears what there is now.
    await page.goBack()
    await page.getByText('The operation has an outcome by now').waitFor()
    expect(await pay(key)).toMatchObject({ status: 201, body: { id: 17 } })
  })

  it('lets an operator release a payment that did not happen: the retry runs it, under the first fence, once', async () => {
    const key = `lost-${randomUUID()}`
    await aLostPayment('before', key)
    const { page } = await aPage()
    await openRecord(page, key)
    await page.getByRole('button', { name: 'Release…' }).click()
    expect(await page.getByRole('listitem').allInnerTexts()).toContain(
      'The key is free again: a retry will run it again.',
    )
    await page.getByRole('button', { name: 'Release it' }).click()
    await page.getByRole('heading', { name: 'Released' }).waitFor()
    expect(await pay(key)).toMatchObject({ status: 201, isReplay: false, body: { fence: 1 } })
    expect(await pay(key)).toMatchObject({ status: 201, isReplay: true, body: { fence: 1 } })
    expect(await transfersOf(key)).toBe(1)
  })

  it('finds a key, without a trace of it in addresses', async () => {
    const key = `found-${randomUUID()}`
    await pay(key)
    const { page } = await aPage()
    await page.goto(`${url}/console/`)
    const addresses: string[] = []
    page.on('request', (request) => addresses.push(`${request.url()} ${request.headers().referer}`))
    await page.getByLabel('Key', { exact: true }).fill(key)
    await page.getByLabel('Scope').fill('alice')
    await page.getByRole('button', { name: 'Find the key' }).click()
    await page.getByRole('heading', { name: 'Record completed' }).waitFor()
    expect(addresses.length).toBeGreaterThan(1)
    expect(addresses.join('\n')).not.toContain(key)
  })

  it.each([
    ['records/%00', 404],
    ['records/x%00y', 404],
    ['records?status=unknown&route=POST%20/%00', 200],
  ])('takes an odd address for one that names nothing: %s', async (path, status) => {
    const answer = await fetch(`${url}/console/${path}`, { headers: { authorization: AUTHORIZATION } })
    expect(answer.status).toBe(status)
  })

  it('shows what clients sent as text, and runs nothing', async () => {
    const key = '</title><img src=x onerror=alert(1)><script>alert(2)</script>"\'`'
    const meta = { key, route: `POST /<svg onload=alert(3)>`, scope: 'hash', firstSeenAt: Date.now() }
    const id = randomUUID().replaceAll('-', '').padEnd(43, 'x')
    await store.claim({
      ...{ id, token: 'token', fingerprint: 'f', leaseMs: 1, ttlMs: 600_000 },
      ...{ takeOver: false, mayBeLost: false, meta },
    })
    const { page, complaints } = await aPage({ javaScriptEnabled: true })
    for (const path of ['', 'records?status=unknown', `records/${id}`]) {
      await page.goto(`${url}/console/${path}`)
      expect(await page.locator('body').textContent()).toContain(key)
      expect(await page.locator('img, script, svg[onload]').count()).toBe(0)
    }
    expect(complaints).toEqual([])
    expect(await store.settle(id, 'release', 1)).toBe(true)
  })

  it('takes no form of another site, though the browser sends along who is signed in', async () => {
    const key = `forged-${randomUUID()}`
    await aLostPayment('before', key)
    const { page } = await aPage({ javaScriptEnabled: true })
    await openRecord(page, key)
    await page.getByRole('button', { name: 'Release…' }).click()
    // Worse than it can be: the other site even has the form of the page that asks, with its proof.
    const form = await page.locator('form[action$="/release"]').evaluate((element) => {
      const { action, elements } = element as unknown as {
        action: string
        elements: { name: string; value: string }[]
      }
      return { action, fields: Array.from(elements, ({ name, value }) => ({ name, value })) }
    })
    const inputs = form.fields.map(({ name, value }) => `<input name="${name}" value="${value}">`).join('')
    const evil = await aSite(
      `<form method="post" action="${form.action}">${inputs}<button>A prize</button></form>
      <form method="post" enctype="text/plain" action="${form.action}">${inputs}<button>Another</button></form>`,
    )
    try {
      for (const button of ['A prize', 'Another']) {
        await page.goto(evil.url)
        const [response] = await Promise.all([
          page.waitForResponse((one) => one.url() === form.action),
          page.getByRole('button', { name: button }).click(),
        ])
        // Not 401: the browser has said who is signed in.
        expect(response.status()).toBe(403)
      }
    } finally {
      await evil.close()
    }
    expect(await pay(key)).toMatchObject({ status: 409, body: { code: 'IDEMPOTENCY_OUTCOME_UNKNOWN' } })
  })

  it('cannot be put into a frame of another site', async () => {
    const evil = await aSite(`<iframe src="${url}/console/" width="900" height="900"></iframe>`)
    try {
      const { page, complaints } = await aPage({ javaScriptEnabled: true })
      // Browsers answer no password question of a frame, but a session's cookie might go along.
      await page.setExtraHTTPHeaders({ authorization: AUTHORIZATION })
      await page.goto(evil.url)
      await expect.poll(() => complaints.join('\n')).toContain('frame-ancestors')
      for (const frame of page.frames()) expect(await frame.content()).not.toContain('Unknown outcomes')
    } finally {
      await evil.close()
    }
  })
})

/** A service that moves money, with a console behind a password. */
async function aService({
  store,
  money,
  pool,
}: {
  readonly store: IdempotencyStore
  readonly money: Money
  readonly pool: Pool
}): Promise<FastifyInstance> {
  const app = Fastify()
  await app.register(idempotency, { store, scope: () => 'alice' })
  app.post('/transfers', async (request, reply) => {
    const { id } = await move(pool, money.schema, { key: request.idempotency.key ?? '', amount: 1 })
    return reply.code(201).send({ id, fence: request.idempotency.fence })
  })
  app.addHook('onRequest', async (request, reply) => {
    if (!request.url.startsWith('/console') || request.headers.authorization === AUTHORIZATION) return
    return reply.code(401).header('www-authenticate', 'Basic realm="operators"').send()
  })
  await app.register(operatorConsole, {
    prefix: '/console',
    authorize: () => ({ by: CREDENTIALS.username, mayChange: true }),
    actions: true,
    logger: { info() {}, warn() {} },
  })
  return app
}

/** Another site: to a browser, `localhost` is another one than `127.0.0.1`. */
async function aSite(body: string): Promise<{ readonly url: string; close(): Promise<void> }> {
  const server = createServer((_request, response) => {
    response.setHeader('content-type', 'text/html').end(`<!doctype html><title>Another site</title>${body}`)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://localhost:${(server.address() as AddressInfo).port}/`,
    close: () =>
      new Promise((resolve) => {
        server.closeAllConnections()
        server.close(() => resolve())
      }),
  }
}
