import { randomUUID } from 'node:crypto'
import { startPostgresServer } from '../support/postgres-server.js'
import { startRedisServer } from '../support/redis-server.js'
import { BODY, measureRate, median, ROUNDS, SECONDS, startServer } from './measure.js'
import { benchMessages } from './messages.js'
import type { BenchServerOptions } from './server.js'
import { benchSizes } from './sizes.js'
import { benchTransactions } from './transactions.js'

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
const SERVER = new URL('./server.js', import.meta.url).pathname

/** Measures every variant in every round, one after the other, so that a slow minute of the machine meets all of them. */
async function bench(): Promise<void> {
  const redis = await startRedisServer()
  const postgres = await startPostgresServer()
  const urls = { redisUrl: redis.url, postgresUrl: postgres.url }
  const perSecond = new Map<string, number[]>()
  try {
    for (let round = 1; round <= ROUNDS; round += 1) {
      for (const variant of VARIANTS) {
        const server = await startServer(SERVER, { variant, ...urls } satisfies BenchServerOptions)
        for (const load of ['fresh', 'replay'] as const) {
          const rate = await measure(server.url, load)
          const name = `${variant}/${load}`
          perSecond.set(name, [...(perSecond.get(name) ?? []), rate])
          console.error(
            `round ${round} of ${ROUNDS}: ${variant}, ${load}: ${Math.round(rate)} requests a second`,
          )
        }
        server.kill()
      }
    }
  } finally {
    await redis.stop()
    await postgres.stop()
  }
  report(perSecond)
}

async function measure(url: string, load: Load): Promise<number> {
  const run = randomUUID()
  if (load === 'replay') await sendAll(url, run)
  const keyOf = (sent: number): string => `${run}-${load === 'fresh' ? sent : sent % REPLAYED_KEYS}`
  return measureRate(url, { connections: CONNECTIONS, keyOf })
}

/** Makes sure that every key that will be replayed has its answer. */
async function sendAll(url: string, run: string): Promise<void> {
  for (let index = 0; index < REPLAYED_KEYS; index += 1) {
    const headers = { 'content-type': 'application/json', 'idempotency-key': `${run}-${index}` }
    const answer = await fetch(url, { method: 'POST', headers, body: BODY })
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

const PARTS = { requests: bench, transactions: benchTransactions, messages: benchMessages, sizes: benchSizes }

// `npm run bench -- messages` measures one part alone.
const asked = process.argv.slice(2)
for (const [name, part] of Object.entries(PARTS)) if (asked.length === 0 || asked.includes(name)) await part()
