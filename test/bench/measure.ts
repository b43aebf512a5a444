import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { cpus } from 'node:os'
import { createInterface } from 'node:readline'
import { findProgram } from '../support/program.js'

/** How many rounds every variant is measured in, and how long each takes. */
export const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5)
export const SECONDS = Number(process.env.BENCH_SECONDS ?? 4)

/** What every request sends, unless it is about sizes. */
export const BODY = '{"from":"alice","to":"bob","amount":500}'

const SERVER_CPU = '0'
const LOAD_CPU = '1'

/** A server program that is measured. */
export interface BenchServer {
  readonly url: string
  /** Processor time that it has used so far, in microseconds, by its own account. */
  cpuTime(): Promise<number>
  kill(): void
}

/** Puts this process, which makes the load, on a processor that no measured server has. */
export function pinLoad(): void {
  if (findProgram('taskset') !== undefined) spawnSync('taskset', ['-pc', LOAD_CPU, String(process.pid)])
}

/** Lets this process, and what it starts from now on, run on every processor: for loads that are small beside the store's work. */
export function unpinLoad(): void {
  if (findProgram('taskset') !== undefined)
    spawnSync('taskset', ['-pc', `0-${cpus().length - 1}`, String(process.pid)])
}

/** Starts a server program on a processor of its own, where the machine can say so. */
export async function startServer(program: string, options: unknown): Promise<BenchServer> {
  const command = [process.execPath, program, JSON.stringify(options)]
  const pinned = findProgram('taskset') === undefined ? command : ['taskset', '-c', SERVER_CPU, ...command]
  const [file = '', ...args] = pinned
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit', 'ipc'] })
  const reap = (): void => void child.kill('SIGKILL')
  process.once('exit', reap)
  const url = await new Promise<string>((resolve, reject) => {
    if (child.stdout !== null) createInterface(child.stdout).once('line', resolve)
    child.once('exit', (code) => reject(new Error(`The server ended with ${code}`)))
  })
  return { url, cpuTime: () => askCpuTime(child), kill: reap }
}

async function askCpuTime(child: ChildProcess): Promise<number> {
  const answered = new Promise<number>((resolve) => child.once('message', resolve))
  child.send('cpu time')
  return answered
}

/** Makes a server program answer `cpuTime`. */
export function tellCpuTime(): void {
  process.on('message', () => {
    const { user, system } = process.cpuUsage()
    process.send?.(user + system)
  })
}

/** The median of some values. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = Math.floor(sorted.length / 2)
  const upper = sorted[middle] ?? Number.NaN
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2
}
