import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import autocannon from 'autocannon'
import { findProgram } from '../support/program.js'

/** How many rounds every variant is measured in, and how long each takes. */
export const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5)
export const SECONDS = Number(process.env.BENCH_SECONDS ?? 4)

/** What every request sends. */
export const BODY = '{"from":"alice","to":"bob","amount":500}'

/** A server program that is measured. */
export interface BenchServer {
  readonly url: string
  kill(): void
}

/** Starts a server program. Server and load each get a processor of their own where the machine can say so. */
export async function startServer(program: string, options: unknown): Promise<BenchServer> {
  const command = [process.execPath, program, JSON.stringify(options)]
  const pinned = findProgram('taskset') === undefined ? command : ['taskset', '-c', '0', ...command]
  const [file = '', ...args] = pinned
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  const url = await new Promise<string>((resolve, reject) => {
    createInterface(child.stdout).once('line', resolve)
    child.once('exit', (code) => reject(new Error(`The server ended with ${code}`)))
  })
  return { url, kill: () => void child.kill('SIGKILL') }
}

/** Sends requests for a while, and gives how many were answered in a second. `keyOf` names the key of each request. */
export async function measureRate(
  url: string,
  options: { readonly connections: number; readonly keyOf: (sent: number) => string },
): Promise<number> {
  let sent = 0
  const result = await autocannon({
    url,
    connections: options.connections,
    duration: SECONDS,
    requests: [
      {
        method: 'POST',
        path: '/',
        body: BODY,
        setupRequest(request) {
          sent += 1
          const headers = { 'content-type': 'application/json', 'idempotency-key': options.keyOf(sent) }
          return { ...request, headers }
        },
      },
    ],
  })
  if (result.non2xx > 0 || result.errors > 0)
    throw new Error(`${result.non2xx} answers were no success, ${result.errors} requests failed`)
  return result.requests.total / result.duration
}

/** The median of some values. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = Math.floor(sorted.length / 2)
  const upper = sorted[middle] ?? Number.NaN
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2
}
