import { mkdir } from 'node:fs/promises'
import type { Browser, Page } from 'playwright-core'
import { buildBank } from '../../examples/payments/bank.js'
import { openLedger } from '../../examples/payments/ledger.js'
import { startChromium } from '../support/chromium.js'

/** A picture in `docs/images`: who wants another one adds it here. */
interface Picture {
  readonly name: string
  readonly viewport: { readonly width: number; readonly height: number }
  readonly colorScheme?: 'light' | 'dark'
  /** Whether what is below the viewport is left out. */
  readonly cut?: boolean
  /** What is to be seen, played on a page of a fresh bank. */
  play(page: Page, bank: string): Promise<void>
}

const DESKTOP = { width: 1280, height: 860 }
const PHONE = { width: 375, height: 812 }

const PICTURES: readonly Picture[] = [
  { name: 'demo-desktop', viewport: DESKTOP, play: paysWithAKey },
  { name: 'demo-phone', viewport: PHONE, play: paysWithAKey },
  { name: 'demo-without-a-key', viewport: DESKTOP, play: paysWithoutAKey },
  { name: 'demo-unknown', viewport: { ...DESKTOP, height: 1100 }, cut: true, play: crashes },
  { name: 'demo-dark', viewport: DESKTOP, colorScheme: 'dark', play: paysWithAKey },
]

/** One press without a key, then one with a key, so that the ledger holds both. */
async function paysWithAKey(page: Page, bank: string): Promise<void> {
  await paysWithoutAKey(page, bank)
  await page.getByLabel('Idempotency keys').check()
  await press(page)
  await page.getByRole('heading', { name: '5.00 left Alice, once.' }).waitFor()
}

async function paysWithoutAKey(page: Page, bank: string): Promise<void> {
  await page.goto(bank)
  await page.getByLabel('Idempotency keys').uncheck()
  await press(page)
  await page.getByRole('heading', { name: 'Bob got 15.00 for one press.' }).waitFor()
}

/** The money moved, and nobody said so. It takes as long as the bank holds a claim. */
async function crashes(page: Page, bank: string): Promise<void> {
  await page.goto(bank)
  await page.getByRole('radio', { name: 'The bank crashes' }).check()
  await press(page)
  await page.getByRole('heading', { name: 'Nobody knows how it ended.' }).waitFor()
}

/** Presses Pay. The page takes what comes right after another press for the same. */
async function press(page: Page): Promise<void> {
  await page.waitForTimeout(700)
  await page.getByRole('button', { name: 'Pay', exact: true }).click()
}

async function take(
  browser: Browser,
  { name, viewport, colorScheme = 'light', cut = false, play }: Picture,
): Promise<void> {
  const bank = await buildBank(await openLedger())
  const context = await browser.newContext({ viewport, colorScheme })
  try {
    const page = await context.newPage()
    page.setDefaultTimeout(30_000)
    await play(page, await bank.listen({ port: 0, host: '127.0.0.1' }))
    await page.evaluate('document.fonts.ready.then(() => {})')
    await page.mouse.move(0, 0)
    await page.screenshot({ path: `docs/images/${name}.png`, fullPage: !cut })
    console.log(`docs/images/${name}.png`)
  } finally {
    await context.close()
    await bank.close()
  }
}

await mkdir('docs/images', { recursive: true })
const browser = await startChromium()
try {
  for (const picture of PICTURES) await take(browser, picture)
} finally {
  await browser.close()
}
