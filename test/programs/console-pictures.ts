import { mkdir } from 'node:fs/promises'
import { startChromium } from '../support/chromium.js'
import { CONSOLE_PICTURES, startPictured } from '../support/console-pictures.js'

await mkdir('docs/images', { recursive: true })
const browser = await startChromium()
const app = await startPictured()
try {
  const url = await app.listen({ port: 0, host: '127.0.0.1' })
  for (const { name, viewport, colorScheme = 'light', play } of CONSOLE_PICTURES) {
    const context = await browser.newContext({ viewport, colorScheme, javaScriptEnabled: false })
    const page = await context.newPage()
    await play(page, url)
    await page.screenshot({ path: `docs/images/${name}.png`, fullPage: true })
    await context.close()
    console.log(`docs/images/${name}.png`)
  }
} finally {
  await app.close()
  await browser.close()
}
