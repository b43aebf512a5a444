import { afterEach, expect, it } from 'vitest'
import { buildBank } from '../../examples/payments/bank.js'
import { loseTransfer, OPERATOR } from '../../examples/payments/console.js'
import { openLedger } from '../../examples/payments/ledger.js'
import { startChromium } from '../support/chromium.js'
import { describeWith } from '../support/services.js'

const open: { close(): Promise<unknown> }[] = []
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close()
})

describeWith(['chromium'], 'the console of examples/payments', () => {
  it('asks for its password, and lets a visitor release the transfer that was lost', async () => {
    const audit: object[] = []
    const note = (line: object): void => void audit.push(line)
    const bank = await buildBank(await openLedger(), { audit: { info: note, warn: note } })
    open.push(bank)
    const url = await bank.listen({ port: 0, host: '127.0.0.1' })
    const lost = await loseTransfer(bank)
    const retry = async () => {
      const answer = await fetch(`${url}/transfers`, {
        method: 'POST',
        headers: {
          authorization: 'Bearer alice',
          'content-type': 'application/json',
          'idempotency-key': lost.key,
        },
        body: JSON.stringify(lost.order),
      })
      return { status: answer.status, body: (await answer.json()) as Record<string, unknown> }
    }
    await expect.poll(async () => (await retry()).body.code).toBe('IDEMPOTENCY_OUTCOME_UNKNOWN')

    const stranger = await fetch(`${url}/console/`, { headers: { authorization: 'Bearer alice' } })
    expect(stranger.status).toBe(401)
    expect(await stranger.text()).toBe('')

    const browser = await startChromium()
    open.push(browser)
    const context = await browser.newContext({
      httpCredentials: { username: OPERATOR.name, password: OPERATOR.password },
    })
    const page = await context.newPage()
    await page.goto(`${url}/console`)
    await page.getByRole('link', { name: lost.key }).click()
    await page.getByRole('button', { name: 'Release…' }).click()
    await page.getByRole('button', { name: 'Release it' }).click()
    await page.getByRole('heading', { name: 'Released' }).waitFor()

    expect(audit).toMatchObject([
      { audit: 'oncekey', event: 'releasing', by: OPERATOR.name },
      { audit: 'oncekey', event: 'released', by: OPERATOR.name },
    ])
    expect(await retry()).toMatchObject({ status: 201, body: lost.order })
    expect(await retry()).toMatchObject({ status: 201, body: lost.order })
    const accounts = await fetch(`${url}/accounts`, { headers: { authorization: 'Bearer alice' } })
    expect(await accounts.json()).toEqual([
      { id: 'alice', balance: 7500 },
      { id: 'bob', balance: 12_500 },
    ])
  })
})
