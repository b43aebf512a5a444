import { type Browser, chromium } from 'playwright-core'
import { findProgram } from './program.js'

/** Where Chromium is, or `undefined` when it is not installed. */
export function findChromium(): string | undefined {
  return findProgram('chromium') ?? findProgram('chromium-browser') ?? findProgram('google-chrome')
}

/** Starts Chromium without a window. Whoever starts it closes it. */
export async function startChromium(): Promise<Browser> {
  const executablePath = findChromium()
  if (executablePath === undefined) throw new Error('Chromium is not installed')
  // The sandbox needs rights that containers and root do not give.
  return chromium.launch({ executablePath, chromiumSandbox: false, args: ['--disable-dev-shm-usage'] })
}
