import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { PaymentServerOptions } from '../programs/payment-server.js'

const PROGRAM = new URL('../../.build/test/programs/payment-server.js', import.meta.url)

/** A server process that takes payments. */
export interface PaymentServer {
  readonly url: string
  /** Sends a payment, and gives its status and its body. */
  pay(key: string, headers?: Readonly<Record<string, string>>): Promise<Paid>
  /** Ends the process without any warning. */
  kill(): Promise<void>
}

/** What a payment was answered with. */
export interface Paid {
  readonly status: number
  readonly isReplay: boolean
  readonly body: Readonly<Record<string, unknown>>
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
  const child = spawn(process.execPath, [PROGRAM.pathname, JSON.stringify(options)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  // A test run that is interrupted leaves no server behind.
  const reap = (): void => void child.kill('SIGKILL')
  process.once('exit', reap)
  child.once('exit', () => process.off('exit', reap))
  const url = await new Promise<string>((resolve, reject) => {
    createInterface(child.stdout).once('line', resolve)
    child.once('exit', (code) => reject(new Error(`The server ended with ${code}`)))
  })
  return {
    url,
    async pay(key, headers = {}) {
      const answer = await fetch(`${url}/payments`, {
        method: 'POST',
        headers: { 'idempotency-key': key, 'content-type': 'application/json', ...headers },
        body: '{"amount":5}',
      })
      return {
        status: answer.status,
        isReplay: answer.headers.has('idempotent-replayed'),
        body: (await answer.json()) as Paid['body'],
      }
    },
    async kill() {
      child.kill('SIGKILL')
      await exited
    },
  }
}

function readIfThere(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    // Nothing had an effect so far.
    return ''
  }
}
