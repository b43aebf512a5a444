import { randomUUID } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { startPostgresServer } from '../support/postgres-server.js'
import { startRedisServer } from '../support/redis-server.js'
import { cpuTimeOfPrograms } from './cpu-time.js'
import { applyLoad } from './load.js'
import { type BenchServer, BODY, ROUNDS, SECONDS, startServer } from './measure.js'
import { type BarGroup, drawBars } from './picture.js'
import { type Measured, reportComparison } from './report.js'
import type { BenchServerOptions, Variant } from './server.js'

/** What is sent: new keys, keys that have their answer, nine new of ten, or one key whose first request still runs. */
type Load = 'fresh' | 'replay' | 'mixed' | 'conflict'

/** Servers that are compared under one load, the one that the others are compared with first. */
interface Comparison {
  readonly title: string
  readonly load: Load
  readonly variants: readonly Variant[]
  readonly connections?: number
  /** Characters of the JSON body. */
  readonly bodySize?: number
}

const REPLAYED_KEYS = 200
const WARM_UP_CONNECTIONS = 100
/** As long as a round each. */
const WARM_UPS = 2
const SERVER = new URL('./server.js', import.meta.url).pathname

const COMPARISONS: readonly Comparison[] = [
  { title: 'Unprotected', load: 'fresh', variants: ['bare', 'unprotected route'] },
  { title: 'Memory, fresh', load: 'fresh', variants: ['bare', 'memory by hand', 'memory'] },
  { title: 'Express, fresh', load: 'fresh', variants: ['express bare', 'express memory'] },
  { title: 'Express, replay', load: 'replay', variants: ['express bare', 'express memory'] },
  { title: 'Redis, fresh', load: 'fresh', variants: ['redis by hand', 'redis', 'bare'] },
  { title: 'Redis, replay', load: 'replay', variants: ['redis by hand', 'redis without cache'] },
  {
    title: 'Postgres, fresh',
    load: 'fresh',
    variants: ['postgres by hand', 'postgres', 'postgres unprepared'],
  },
  {
    title: 'Postgres, one connection',
    load: 'fresh',
    variants: ['postgres by hand', 'postgres', 'postgres unprepared'],
    connections: 1,
  },
  { title: 'Postgres, replay', load: 'replay', variants: ['postgres by hand', 'postgres without cache'] },
  { title: 'Replay, with the cache', load: 'replay', variants: ['bare', 'memory', 'redis', 'postgres'] },
  { title: 'Mixed', load: 'mixed', variants: ['bare', 'memory', 'redis', 'postgres'] },
  {
    title: 'A storm on one key',
    load: 'conflict',
    variants: ['redis by hand', 'memory', 'redis', 'postgres'],
  },
]

const CONNECTIONS: readonly Comparison[] = [1, 10, 100, 1000].map((connections) => ({
  title: `${connections} connections, fresh`,
  load: 'fresh',
  variants: ['bare', 'memory', 'redis', 'postgres'],
  connections,
}))

const BODIES: readonly Comparison[] = [200, 2048, 65_536, 1_048_576].map((bodySize) => ({
  title: `Bodies of ${bodySize} bytes, fresh`,
  load: 'fresh',
  variants: ['bare', 'memory by hand', 'memory', 'redis'],
  bodySize,
}))

/** The comparisons that the promises in `docs/performance.md` are about, 100 connections and small bodies. */
export function benchRequests(): Promise<void> {
  return compareAll(COMPARISONS)
}

/** The same route with more and fewer connections. */
export function benchConnections(): Promise<void> {
  return compareAll(CONNECTIONS)
}

/** The same route with larger and smaller bodies. */
export function benchBodies(): Promise<void> {
  return compareAll(BODIES)
}

async function compareAll(comparisons: readonly Comparison[]): Promise<void> {
  const redis = await startRedisServer()
  // Both ways flush what they commit, as a database that money moves on does.
  const postgres = await startPostgresServer({ settings: { fsync: 'on' } })
  const urls = { redisUrl: redis.url, postgresUrl: postgres.url }
  try {
    const groups: BarGroup[] = []
    for (const comparison of comparisons.filter(isAskedFor))
      groups.push(reportComparison(comparison, await compare(comparison, urls)))
    if (process.env.BENCH_PICTURE !== undefined)
      writeFileSync(process.env.BENCH_PICTURE, drawBars('Processor time of the server for a request', groups))
  } finally {
    await redis.stop()
    await postgres.stop()
  }
}

/** `BENCH_ONLY` is a part of the titles of those that are asked for. */
function isAskedFor({ title }: Comparison): boolean {
  return title.toLowerCase().includes((process.env.BENCH_ONLY ?? '').toLowerCase())
}

/** Measures every variant in every round, one after the other, so that a slow minute of the machine meets all of them. */
async function compare(
  comparison: Comparison,
  urls: Omit<BenchServerOptions, 'variant'>,
): Promise<ReadonlyMap<string, readonly Measured[]>> {
  const measured = new Map<string, Measured[]>()
  const servers: (readonly [Variant, BenchServer])[] = []
  try {
    for (const variant of comparison.variants) {
      const server = await startServer(SERVER, { variant, ...urls } satisfies BenchServerOptions)
      servers.push([variant, server])
      await assertReplays(variant, server.url)
      // A process is several times slower in its first seconds, and with few connections for much longer.
      for (let time = 0; time < WARM_UPS; time += 1)
        await measure(server, { ...comparison, connections: WARM_UP_CONNECTIONS })
    }
    for (let round = 1; round <= ROUNDS; round += 1)
      for (const [variant, server] of round % 2 === 1 ? servers : servers.toReversed()) {
        const result = await measure(server, comparison)
        measured.set(variant, [...(measured.get(variant) ?? []), result])
        console.error(
          `${comparison.title}, round ${round} of ${ROUNDS}: ${variant}: ${Math.round(result.rate)} a second`,
        )
      }
  } finally {
    for (const [, server] of servers) server.kill()
  }
  return measured
}

/** A server that does not answer a retry with the first answer is not compared with one that does. */
async function assertReplays(variant: Variant, url: string): Promise<void> {
  if (variant.endsWith('bare') || variant === 'unprotected route') return
  const key = randomUUID()
  const answers = [await post(url, key, BODY), await post(url, key, BODY)]
  const [first, second] = await Promise.all(answers.map((answer) => answer.text()))
  if (first !== second || answers[1]?.headers.get('idempotent-replayed') !== 'true')
    throw new Error(`${variant} does not replay`)
  if ((await post(url, key, '{}')).status !== 422) throw new Error(`${variant} does not compare requests`)
}

async function measure(server: BenchServer, comparison: Comparison): Promise<Measured> {
  const { load, connections = 100, bodySize } = comparison
  const run = randomUUID()
  const body = bodySize === undefined ? BODY : bodyOf(bodySize)
  if (load === 'replay' || load === 'mixed')
    for (let index = 0; index < REPLAYED_KEYS; index += 1)
      await (await post(server.url, `${run}-${index}`, body)).arrayBuffer()
  const slow = JSON.stringify({ slowMs: (SECONDS + 1) * 1000 })
  // Its answer is not waited for: that it runs is the point.
  const first = load === 'conflict' ? post(server.url, run, slow) : undefined

  const before = [await server.cpuTime(), cpuTimeOfPrograms(['redis-server', 'postgres'])] as const
  const result = await applyLoad(server.url, {
    connections,
    seconds: SECONDS,
    request: (sent) => {
      if (load === 'conflict') return { key: run, body: slow }
      const isRepeated = load === 'replay' || (load === 'mixed' && sent % 10 === 0)
      return { key: isRepeated ? `${run}-${sent % REPLAYED_KEYS}` : `${run}-new-${sent}`, body }
    },
    ...(load === 'conflict' && { expects: (status) => status === 409 }),
  })
  const after = [await server.cpuTime(), cpuTimeOfPrograms(['redis-server', 'postgres'])] as const
  await first
  return {
    rate: result.answers / result.seconds,
    cpuMicros: (after[0] - before[0]) / result.answers,
    storeCpuMicros: (after[1] - before[1]) / result.answers,
    p50: result.p50,
    p99: result.p99,
  }
}

function post(url: string, key: string, body: string): Promise<Response> {
  const headers = { 'content-type': 'application/json', 'idempotency-key': key }
  return fetch(url, { method: 'POST', headers, body })
}

/** An order with as many lines as fill so many characters. */
function bodyOf(size: number): string {
  const lines: unknown[] = []
  for (let length = 40; length < size; length += JSON.stringify(lines.at(-1)).length + 1)
    lines.push({
      sku: `A-${lines.length}`,
      name: `Item number ${lines.length}`,
      quantity: 1 + (lines.length % 9),
      price: { currency: 'EUR', amount: 1999 },
    })
  return JSON.stringify({ order: 'o-1', customer: 'alice', lines: lines.slice(0, -1) })
}
