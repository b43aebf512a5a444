import { type ChildProcess, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { createInterface } from 'node:readline'
import autocannon from 'autocannon'
import { startPostgresServer } from '../support/postgres-server.js'
import { findProgram } from '../support/program.js'
import { startRedisServer } from '../support/redis-server.js'
import type { BenchServerOptions } from './server.js'

type Variant = BenchServerOptions['variant']
type Load = 'fresh' | 'replay'

/** What each variant is compared with. */
const COMPARED_WITH: Readonly<Record<Variant, Variant>> = {
  bare: 'bare',
  memory: 'bare',
  redis: 'redis by hand',
  'redis by hand': 'redis by hand',
  postgres: 'postgres by hand',
  'postgres by hand': 'postgres by hand',
}
const VARIANTS = Object.keys(COMPARED_WITH) as Variant[]

const CONNECTIONS = 100
const REPLAYED_KEYS = 200
const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5)
const SECONDS = Number(process.env.BENCH_SECONDS ?? 4)
const SERVER = new URL('./server.js', import.meta.url).pathname

interface Server {
  readonly url: string
  readonly child: ChildProcess
}

/** Measures every variant in every round, one after the other, so that a slow minute of the machine meets all of them. */
async function bench(): Promise<void> {
  const redis = await startRedisServer()
  const postgres = await startPostgresServer()
  const urls = { redisUrl: redis.url, postgresUrl: postgres.url }
  const perSecond = new Map<string, number[]>()
  try {
    for (let round = 1; round <= ROUNDS; round += 1) {
      for (const variant of VARIANTS) {
        const server = await startServer({ variant, ...urls })
        for (const load of ['fresh', 'replay'] as const) {
          const rate = await measure(server.url, load)
          const name = `${variant}/${load}`
          perSecond.set(name, [...(perSecond.get(name) ?? []), rate])
          console.error(
            `round ${round} of ${ROUNDS}: ${variant}, ${load}: ${Math.round(rate)} requests a second`,
          )
        }
        server.child.kill('SIGKILL')
      }
    }
  } finally {
    await redis.stop()
    await postgres.stop()
  }
  report(perSecond)
}

/** Server and load each get a processor of their own where the machine can say so. */
async function startServer(options: BenchServerOptions): Promise<Server> {
  const command = [process.execPath, SERVER, JSON.stringify(options)]
  const pinned = findProgram('taskset') === undefined ? command : ['taskset', '-c', '0', ...command]
  const [file = '', ...args] = pinned
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  const url = await new Promise<string>((resolve, reject) => {
    createInterface(child.stdout).once('line', resolve)
    child.once('exit', (code) => reject(new Error(`The server ended with ${code}`)))
  })
  return { url, child }
}

async function measure(url: string, load: Load): Promise<number> {
  const run = randomUUID()
  if (load === 'replay') await sendAll(url, run)
  let sent = 0
  const result = await autocannon({
    url,
    connections: CONNECTIONS,
    duration: SECONDS,
    requests: [
      {
        method: 'POST',
        path: '/',
        body: '{"from":"alice","to":"bob","amount":500}',
        setupRequest(request) {
          sent += 1
          const key = `${run}-${load === 'fresh' ? sent : sent % REPLAYED_KEYS}`
          const headers = { 'content-type': 'application/json', 'idempotency-key': key }
          return { ...request, headers }
        },
      },
    ],
  })
  if (result.non2xx > 0 || result.errors > 0)
    throw new Error(`${result.non2xx} answers were no success, ${result.errors} requests failed`)
  return result.requests.total / result.duration
}

/** Makes sure that every key that will be replayed has its answer. */
async function sendAll(url: string, run: string): Promise<void> {
  for (let index = 0; index < REPLAYED_KEYS; index += 1) {
    const headers = { 'content-type': 'application/json', 'idempotency-key': `${run}-${index}` }
    const body = '{"from":"alice","to":"bob","amount":500}'
    const answer = await fetch(url, { method: 'POST', headers, body })
    await answer.arrayBuffer()
  }
}

function report(perSecond: ReadonlyMap<string, readonly number[]>): void {
  const rates = (variant: Variant, load: Load) => perSecond.get(`${variant}/${load}`) ?? []
  /** The median of the ratios of single rounds: rounds differ more than what is compared inside one. */
  const ratio = (variant: Variant, load: Load): string => {
    const others = rates(COMPARED_WITH[variant], load)
    return median(rates(variant, load).map((rate, round) => rate / (others[round] ?? rate))).toFixed(2)
  }
  console.log(
    `\nRequests a second, ${CONNECTIONS} connections, medians of ${ROUNDS} rounds of ${SECONDS} s.\n`,
  )
  console.log('| server | fresh | replay | compared with | fresh ratio | replay ratio |')
  console.log('|---|---|---|---|---|---|')
  for (const variant of VARIANTS) {
    const [fresh, replay] = (['fresh', 'replay'] as const).map((load) =>
      Math.round(median(rates(variant, load))),
    )
    const other = COMPARED_WITH[variant]
    const ratios =
      other === variant ? '| | |' : `${other} | ${ratio(variant, 'fresh')} | ${ratio(variant, 'replay')} |`
    console.log(`| ${variant} | ${fresh} | ${replay} | ${ratios}`)
  }
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = Math.floor(sorted.length / 2)
  const upper = sorted[middle] ?? Number.NaN
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2
}

await bench()
