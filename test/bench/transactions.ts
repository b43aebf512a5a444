import { randomUUID } from 'node:crypto'
import { startPostgresServer } from '../support/postgres-server.js'
import { applyLoad } from './load.js'
import { type BenchServer, BODY, median, ROUNDS, SECONDS, startServer } from './measure.js'
import type { TransactionServerOptions } from './transaction-server.js'

const CONNECTIONS = 32
const SERVER = new URL('./transaction-server.js', import.meta.url).pathname

/** Each way of preparing statements and of flushing the log: ours is compared with what is written by hand in the same way. */
const SETTINGS = [
  { prepare: false, fsync: 'on' },
  { prepare: true, fsync: 'on' },
  { prepare: false, fsync: 'off' },
  { prepare: true, fsync: 'off' },
] as const

/** What is sent to each server before it is measured. */
const WARM_UP_ROUNDS = 2

/** Measures what a transfer in `transaction()` costs beside the same transfer in a transaction with its own claim row. */
export async function benchTransactions(): Promise<void> {
  console.log(
    `\nTransfers a second, ${CONNECTIONS} connections, medians of ${ROUNDS} rounds of ${SECONDS} s. Cost: by hand / ours.\n`,
  )
  console.log('| statements | fsync | by hand | transaction() | cost |')
  console.log('|---|---|---|---|---|')
  for (const { prepare, fsync } of SETTINGS) {
    const postgres = await startPostgresServer({ settings: { fsync } })
    const rates = { 'by hand': [] as number[], ours: [] as number[] }
    const servers: BenchServer[] = []
    try {
      const measured = []
      for (const variant of ['by hand', 'ours'] as const) {
        const options = { variant, prepare, postgresUrl: postgres.url, connections: CONNECTIONS }
        const server = await startServer(SERVER, options satisfies TransactionServerOptions)
        servers.push(server)
        measured.push({ variant, server })
        // A process is several times slower in its first seconds, and a database in its first thousand rows.
        for (let round = 1; round <= WARM_UP_ROUNDS; round += 1) await transfersPerSecond(server)
      }
      for (let round = 1; round <= ROUNDS; round += 1) {
        for (const { variant, server } of round % 2 === 1 ? measured : measured.toReversed()) {
          const rate = await transfersPerSecond(server)
          rates[variant].push(rate)
          console.error(`round ${round} of ${ROUNDS}: ${variant}: ${Math.round(rate)} transfers a second`)
        }
      }
    } finally {
      for (const server of servers) server.kill()
      await postgres.stop()
    }
    const costs = rates.ours.map((rate, round) => (rates['by hand'][round] ?? rate) / rate)
    const [hand, ours] = [median(rates['by hand']), median(rates.ours)].map(Math.round)
    console.log(
      `| ${prepare ? 'prepared' : 'not prepared'} | ${fsync} | ${hand} | ${ours} | ${median(costs).toFixed(2)} |`,
    )
  }
}

async function transfersPerSecond({ url }: BenchServer): Promise<number> {
  const run = randomUUID()
  const request = (sent: number) => ({ key: `${run}-${sent}`, body: BODY })
  const { answers, seconds } = await applyLoad(url, { connections: CONNECTIONS, seconds: SECONDS, request })
  return answers / seconds
}
