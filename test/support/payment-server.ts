import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { PaymentServerOptions } from '../programs/payment-server.js'
import { type Answered, post, startServerProcess } from './server-process.js'

/** A server process that takes payments. */
export interface PaymentServer {
  readonly url: string
  /** Sends a payment, and gives its status and its body. */
  pay(key: string, headers?: Readonly<Record<string, string>>): Promise<Answered>
  /** Ends the process without any warning. */
  kill(): Promise<void>
}

/** A place where effects are counted, whatever happens to the processes that have them. */
export interface Ledger {
  readonly file: string
  /** The fences under which a key had its effect, in order. */
  effectsOf(key: string): string[]
  remove(): void
}

/** Makes an empty ledger. */
export function aLedger(): Ledger {
  const folder = mkdtempSync(join(tmpdir(), 'oncekey-ledger-'))
  const file = join(folder, 'effects')
  return {
    file,
    effectsOf(key) {
      const lines = readIfThere(file).split('\n')
      return lines.filter((line) => line.startsWith(`${key} `)).map((line) => line.slice(key.length + 1))
    },
    remove: () => rmSync(folder, { recursive: true, force: true }),
  }
}

/** Starts a server process, and waits until it listens. */
export async function startPaymentServer(options: PaymentServerOptions): Promise<PaymentServer> {
  const { url, kill } = await startServerProcess('payment-server', options)
  return { url, pay: (key, headers) => post(`${url}/payments`, key, headers), kill }
}

function readIfThere(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    // Nothing had an effect so far.
    return ''
  }
}
