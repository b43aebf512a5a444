import axe from 'axe-core'
import type { FastifyInstance } from 'fastify'
import type { Browser, BrowserContextOptions, Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { type BankOptions, buildBank } from '../../examples/payments/bank.js'
import { createFeed } from '../../examples/payments/feed.js'
import { type Ledger, openLedger } from '../../examples/payments/ledger.js'
import { outcomeOfResponse } from '../../src/http/response-outcome.js'
import { memoryStore } from '../../src/stores/memory.js'
import { startChromium } from '../support/chromium.js'
import { gate } from '../support/gate.js'
import { describeWith } from '../support/services.js'

/** A page that waits for nothing, and gives no attempt up: what is slow here is slow for another reason. */
const QUICK = '/?wait=0&timeout=25000&double=0'

interface Arrival {
  readonly path: string
  readonly key: string | undefined
}

interface Visit {
  readonly app: FastifyInstance
  readonly url: string
  readonly page: Page
  /** The requests for transfers that came to the server. */
  readonly arrivals: readonly Arrival[]
  /** What Chromium complains of. */
  readonly complaints: readonly string[]
  /** The transfers of the ledger, the oldest first, in cents. */
  paid(): Promise<readonly number[]>
  choose(network: string): Promise<void>
  press(): Promise<void>
  /** Waits until the page says so, in its largest letters. */
  said(verdict: string): Promise<void>
  /** The attempts that the page shows. */
  rows(): Promise<readonly string[]>
}

let browser: Browser
let ledger: Ledger

async function visit(
  path = QUICK,
  options: BankOptions = {},
  contextOptions: BrowserContextOptions = {},
): Promise<Visit> {
  await ledger.startOver()
  // It is there for the next test, too.
  const app = await buildBank({ ...ledger, close: async () => {} }, options)
  const arrivals: Arrival[] = []
  app.server.on('request', ({ method, url = '', headers }) => {
    if (method === 'POST' && url.endsWith('/transfers'))
      arrivals.push({ path: url, key: headers['idempotency-key']?.toString() })
  })
  const url = await app.listen({ port: 0, host: '127.0.0.1' })
  const context = await browser.newContext(contextOptions)
  onTestFinished(async () => {
    await context.close()
    await app.close()
  })
  const page = await context.newPage()
  page.setDefaultTimeout(20_000)
  const complaints: string[] = []
  page.on('pageerror', (error) => complaints.push(String(error)))
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') complaints.push(message.text())
  })
  await page.goto(`${url}${path}`)
  await page.getByText('100.00').first().waitFor()
  return {
    app,
    url,
    page,
    arrivals,
    complaints,
    async paid() {
      const transfers = await ledger.transfers(100)
      const [alice, bob] = await ledger.accounts()
      const sum = transfers.reduce((total, { amount }) => total + amount, 0)
      expect([alice?.balance, bob?.balance]).toEqual([10_000 - sum, 10_000 + sum])
      return transfers.map(({ amount }) => amount).reverse()
    },
    choose: (network) => page.getByRole('radio', { name: network }).check(),
    press: () => page.getByRole('button', { name: 'Pay', exact: true }).click(),
    said: (verdict) => page.getByRole('heading', { name: verdict }).waitFor(),
    rows: () => page.locator('#wire tr').allInnerTexts(),
  }
}

/** All attempts were for one operation. */
function oneKeyOf(arrivals: readonly Arrival[]): string {
  const keys = new Set(arrivals.map(({ key }) => key))
  expect([...keys]).toEqual([expect.stringMatching(/^[\w-]{20,}$/)])
  return [...keys][0] ?? ''
}

describeWith(['chromium'], 'the demo page', () => {
  beforeAll(async () => {
    ;[browser, ledger] = await Promise.all([startChromium(), openLedger()])
  })
  afterAll(() => Promise.all([browser?.close(), ledger?.close()]))

  it('pays once where two replies are lost, with one key for three attempts', async () => {
    const { arrivals, press, said, paid, rows, page } = await visit()
    await press()
    await said('5.00 left Alice, once.')
    expect(await paid()).toEqual([500])
    expect(arrivals).toHaveLength(3)
    const key = oneKeyOf(arrivals)
    const [first, second, third] = await rows()
    expect(first).toMatch(/moved 5\.00\s+answered 201\s+✕ reply lost/)
    expect(second).toMatch(/moved nothing\s+answered 201 again\s+✕ reply lost/)
    expect(third).toMatch(/moved nothing\s+answered 201 again\s+✓ 201\s+Idempotent-Replayed: true/)
    expect(first).toContain(`POST /transfers`)
    expect(await page.locator('#key code').getAttribute('title')).toBe(key)
    const life = (await page.locator('#life li').allInnerTexts()).join('\n')
    expect(life).toMatch(
      /made a key.*Claimed, fence 1.*5\.00 moved: transfer \d+\..*201 is kept.*201 again.*201 again/s,
    )
  })

  it('pays three times without a key, where two replies are lost', async () => {
    const { arrivals, press, said, paid, page } = await visit()
    await page.getByLabel('Idempotency keys').uncheck()
    await press()
    await said('Bob got 15.00 for one press.')
    expect(await paid()).toEqual([500, 500, 500])
    expect(arrivals).toEqual(Array(3).fill({ path: '/unprotected/transfers', key: undefined }))
  })

  it('pays once for a double click', async () => {
    const { arrivals, choose, said, paid, page } = await visit('/?wait=0&timeout=25000')
    await choose('Good')
    await page.getByRole('button', { name: 'Pay', exact: true }).dblclick()
    await said('5.00 left Alice, once.')
    await expect.poll(() => page.getByText('Idempotent-Replayed: true').count()).toBe(1)
    expect(await paid()).toEqual([500])
    expect(arrivals.length).toBeGreaterThanOrEqual(2)
    oneKeyOf(arrivals)
  })

  it('pays once for a second press while the first is under way', async () => {
    const done = gate()
    const { arrivals, choose, press, said, paid } = await visit(QUICK, { slowness: () => done.opened })
    await choose('Slow')
    await press()
    await expect.poll(() => arrivals.length).toBe(1)
    await press()
    await expect.poll(() => arrivals.length).toBeGreaterThanOrEqual(2)
    done.open()
    await said('5.00 left Alice, once.')
    expect(await paid()).toEqual([500])
    oneKeyOf(arrivals)
  })

  it('answers a second press right after the first with the same payment', async () => {
    const { arrivals, choose, press, said, paid, page } = await visit('/?wait=0&timeout=25000&double=60000')
    await choose('Good')
    await press()
    await said('5.00 left Alice, once.')
    await press()
    await page.getByText('Idempotent-Replayed: true').waitFor()
    expect(await paid()).toEqual([500])
    expect(arrivals).toHaveLength(2)
    oneKeyOf(arrivals)
  })

  it('pays twice for a double click without a key', async () => {
    const { choose, said, paid, page } = await visit()
    await choose('Good')
    await page.getByLabel('Idempotency keys').uncheck()
    await page.getByRole('button', { name: 'Pay', exact: true }).dblclick()
    await said('Bob got 10.00 for one press.')
    expect(await paid()).toEqual([500, 500])
  })

  it('goes on with the same payment when it is loaded again while the bank is at work', async () => {
    const done = gate()
    const { arrivals, choose, press, said, paid, rows, page } = await visit(QUICK, {
      slowness: () => done.opened,
    })
    await choose('Slow')
    await press()
    await expect.poll(() => arrivals.length).toBe(1)
    await page.reload()
    await expect.poll(() => arrivals.length).toBeGreaterThanOrEqual(2)
    done.open()
    await said('5.00 left Alice, once.')
    expect(await paid()).toEqual([500])
    oneKeyOf(arrivals)
    expect((await rows())[0]).toContain('✕ page reloaded')
    expect((await rows()).at(-1)).toContain('Idempotent-Replayed: true')
    await page.getByText('The page was loaded again, and found the key in its tab.').waitFor()
  })

  it('goes on with the same payment when it is loaded again between two attempts', async () => {
    const { url, arrivals, press, said, paid, page } = await visit('/?wait=60000')
    await press()
    await page.getByText('✕ reply lost').waitFor()
    expect(await paid()).toEqual([500])
    await page.goto(`${url}${QUICK}`)
    await said('5.00 left Alice, once.')
    expect(await paid()).toEqual([500])
    expect(arrivals).toHaveLength(3)
    oneKeyOf(arrivals)
  })

  it('does not know what it paid when it is loaded again without a key', async () => {
    const { url, press, said, paid, page } = await visit('/?wait=60000')
    await page.getByLabel('Idempotency keys').uncheck()
    await press()
    await page.getByText('✕ reply lost').waitFor()
    await page.goto(`${url}${QUICK}`)
    await said('The page forgot what it was doing.')
    expect(await paid()).toEqual([500])
  })

  it('sends nothing while offline, keeps the key, and pays once when it is back', async () => {
    const { arrivals, choose, press, said, paid } = await visit()
    await choose('Offline')
    await press()
    await said('No answer yet.')
    expect(arrivals).toEqual([])
    await choose('Good')
    await said('5.00 left Alice, once.')
    expect(await paid()).toEqual([500])
    oneKeyOf(arrivals)
  })

  it('pays once after the browser itself was offline', async () => {
    const { arrivals, choose, press, said, paid, rows, page } = await visit()
    await choose('Good')
    await page.context().setOffline(true)
    await press()
    await said('No answer yet.')
    expect(arrivals).toEqual([])
    expect((await rows())[0]).toContain('✕ offline')
    await page.context().setOffline(false)
    await said('5.00 left Alice, once.')
    expect(await paid()).toEqual([500])
    oneKeyOf(arrivals)
  })

  it('gives a slow attempt up, is told that it still runs, and gets its answer', async () => {
    const done = gate()
    const { arrivals, choose, press, said, paid, rows, page } = await visit(
      '/?wait=0&timeout=1000&double=0',
      {
        slowness: () => done.opened,
      },
    )
    await choose('Slow')
    await press()
    await page.getByText('KEY_IN_PROGRESS').first().waitFor()
    done.open()
    await said('5.00 left Alice, once.')
    expect(await paid()).toEqual([500])
    oneKeyOf(arrivals)
    expect((await rows())[0]).toContain('✕ no reply in time')
  })

  it('does not pay again where the bank crashed, and says that nobody knows', async () => {
    const { arrivals, choose, press, said, paid, page } = await visit(QUICK, { maxRunMs: 1000 })
    await choose('The bank crashes')
    await press()
    await said('Nobody knows how it ended.')
    expect(await paid()).toEqual([500])
    const before = arrivals.length
    await press()
    await expect.poll(() => arrivals.length).toBeGreaterThan(before)
    await said('Nobody knows how it ended.')
    expect(await paid()).toEqual([500])
    oneKeyOf(arrivals)
    await page.getByRole('button', { name: 'Give this payment up' }).click()
    await said('Nothing has been paid yet.')
  })

  it.each([
    ['its answer', Buffer.from('{"id":1}'), 'always with the same key'],
    ['a text', Buffer.from('Paid, says the ledger'), 'always with the same key'],
    ['no answer', undefined, 'An operator has settled the payment: it ended with 201'],
  ])('is told how a crash ended once an operator has settled it with %s', async (_name, body, says) => {
    const store = memoryStore()
    const { choose, press, said, paid, page } = await visit(QUICK, { maxRunMs: 1000, store })
    await choose('The bank crashes')
    await press()
    await said('Nobody knows how it ended.')
    for await (const { id } of store.list?.({}) ?? []) {
      const kept = outcomeOfResponse({ status: 201, body: body ?? Buffer.from('') })
      expect(await store.settle(id, body ? kept : { ...kept, body: null }, 60_000)).toBe(true)
    }
    await press()
    await said('5.00 left Alice, once.')
    await page.getByText(says).waitFor()
    expect(await paid()).toEqual([500])
    expect(
      await page.evaluate<string[]>('Object.keys(sessionStorage).filter((name) => /oncekey/.test(name))'),
    ).toEqual([])
  })

  it('makes a new payment of a later press', async () => {
    const { arrivals, choose, press, said, paid, page } = await visit()
    await choose('Good')
    await press()
    await said('5.00 left Alice, once.')
    await page.getByLabel('Amount').fill('7,5')
    await press()
    await said('7.50 left Alice, once.')
    expect(await paid()).toEqual([500, 750])
    expect(new Set(arrivals.map(({ key }) => key)).size).toBe(2)
  })

  it('is told when the bank refuses', async () => {
    const { choose, press, said, paid, page } = await visit()
    await choose('Good')
    await page.getByLabel('Amount').fill('100.01')
    await press()
    await said('Not paid.')
    await page.getByText('The bank says: insufficient funds.').waitFor()
    expect(await paid()).toEqual([])
  })

  it('can be used by keyboard alone, and says what is wrong with an amount', async () => {
    const { arrivals, said, paid, page } = await visit()
    const focused = () => page.evaluate<string>('document.activeElement.id')
    for (let presses = 0; presses < 5 && (await focused()) !== 'amount'; presses += 1)
      await page.keyboard.press('Tab')
    expect(await focused()).toBe('amount')
    await page.keyboard.press('Control+A')
    await page.keyboard.type('five')
    await page.keyboard.press('Enter')
    await page.getByRole('alert').getByText('Say how much').waitFor()
    expect(arrivals).toEqual([])
    await page.keyboard.press('Control+A')
    await page.keyboard.type('3.20')
    await page.keyboard.press('Enter')
    await said('3.20 left Alice, once.')
    expect(await paid()).toEqual([320])
  })

  it('pays once for a key that is held down', async () => {
    const { arrivals, choose, said, paid, page } = await visit()
    await choose('Good')
    await page.getByRole('button', { name: 'Pay', exact: true }).focus()
    await page.keyboard.down('Enter')
    await said('5.00 left Alice, once.')
    await page.keyboard.down('Enter')
    await page.keyboard.up('Enter')
    await said('5.00 left Alice, once.')
    expect(await paid()).toEqual([500])
    expect(arrivals).toHaveLength(1)
  })

  it('starts over', async () => {
    const { choose, press, said, paid, page } = await visit()
    await choose('Good')
    await press()
    await said('5.00 left Alice, once.')
    await page.getByRole('button', { name: 'Start over' }).click()
    await page.getByText('No transfers yet.').waitFor()
    await said('Nothing has been paid yet.')
    expect(await paid()).toEqual([])
  })

  it('gives Chromium nothing to complain of', async () => {
    const { choose, press, said, complaints, page } = await visit()
    await choose('Good')
    await press()
    await said('5.00 left Alice, once.')
    await page.reload()
    await said('5.00 left Alice, once.')
    expect(complaints).toEqual([])
  })

  it('allows no script but its own', async () => {
    const { page, url, complaints } = await visit()
    const policy = (await fetch(url)).headers.get('content-security-policy')
    expect(policy).toMatch(/default-src 'none'; script-src 'self';/)
    await page.evaluate(
      `document.body.append(Object.assign(document.createElement('script'), { textContent: 'document.title = "bad"' }))`,
    )
    await expect.poll(() => complaints.join()).toContain('Content Security Policy')
    expect(await page.title()).not.toBe('bad')
  })

  it.each([375, 320])('fits %d px', async (width) => {
    const { press, said, page } = await visit(QUICK, {}, { viewport: { width, height: 700 }, hasTouch: true })
    const fits = () => page.evaluate<number>('document.documentElement.scrollWidth')
    expect(await fits()).toBe(width)
    await page.getByLabel('Idempotency keys').uncheck()
    await press()
    await said('Bob got 15.00 for one press.')
    expect(await fits()).toBe(width)
    await page.getByLabel('Idempotency keys').check()
    await page.getByLabel('Amount').fill('50')
    await press()
    await said('50.00 left Alice, once.')
    expect(await fits()).toBe(width)
  })

  it.each(['light', 'dark'] as const)('has no flaw that axe knows, in %s colours', async (colorScheme) => {
    const { press, said, page } = await visit(QUICK, {}, { colorScheme, reducedMotion: 'reduce' })
    const flaws = async (): Promise<unknown> => {
      await page.evaluate(axe.source)
      return page.evaluate(
        'axe.run().then(({ violations }) => violations.flatMap(({ id, nodes }) => nodes.map(({ html }) => [id, html])))',
      )
    }
    expect(await flaws()).toEqual([])
    await page.getByLabel('Idempotency keys').uncheck()
    await press()
    await said('Bob got 15.00 for one press.')
    expect(await flaws()).toEqual([])
    await page.getByLabel('Idempotency keys').check()
    await page.setViewportSize({ width: 375, height: 700 })
    await press()
    await said('5.00 left Alice, once.')
    expect(await flaws()).toEqual([])
  })
})

describe('the demo bank', () => {
  it('serves the files of the page, and no others', async () => {
    const bank = await buildBank(await openLedger())
    onTestFinished(() => bank.close())
    const statusOf = async (url: string) => (await bank.inject({ url })).statusCode
    for (const url of [
      '/',
      '/page/page.css',
      '/page/page.js',
      '/page/icon.svg',
      '/oncekey/client/create-fetch.js',
    ])
      expect([url, await statusOf(url)]).toEqual([url, 200])
    for (const url of [
      '/page/page.ts',
      '/page/tsconfig.json',
      '/oncekey/index.js',
      '/oncekey/stores/redis.js',
      '/page/..%2fbank.ts',
      '/oncekey/client/..%2fstores/redis.js',
    ])
      expect([url, await statusOf(url)]).toEqual([url, expect.toSatisfy((status: number) => status >= 400)])
    for (const url of ['/accounts', '/transfers']) expect([url, await statusOf(url)]).toEqual([url, 401])
  })

  it('remembers no more events than it needs', () => {
    const feed = createFeed()
    for (let count = 0; count < 1000; count += 1) feed.tell({ type: 'ledger' })
    const told = (lastEventId: number) => String(feed.follow(lastEventId).read()).match(/^id: (\d+)$/gm) ?? []
    expect(told(0)).toHaveLength(400)
    const last = Number(told(0).at(-1)?.slice(4))
    expect(told(last - 3)).toHaveLength(3)
  })
})
