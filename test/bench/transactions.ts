import { randomUUID } from 'node:crypto'
import { startPostgresServer } from '../support/postgres-server.js'
import { measureRate, median, ROUNDS, SECONDS, startServer } from './measure.js'
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
    try {
      for (let round = 1; round <= ROUNDS; round += 1) {
        for (const variant of ['by hand', 'ours'] as const) {
          const options: TransactionServerOptions = {
            variant,
            prepare,
            postgresUrl: postgres.url,
            connections: CONNECTIONS,
          }
          const server = await startServer(SERVER, options)
          const run = randomUUID()
          const keyOf = (sent: number): string => `${run}-${sent}`
          const rate = await measureRate(server.url, { connections: CONNECTIONS, keyOf })
          rates[variant].push(rate)
          console.error(`round ${round} of ${ROUNDS}: ${variant}: ${Math.round(rate)} transfers a second`)
          server.kill()
        }
      }
    } finally {
      await postgres.stop()
    }
    const costs = rates.ours.map((rate, round) => (rates['by hand'][round] ?? rate) / rate)
    const [hand, ours] = [median(rates['by hand']), median(rates.ours)].map(Math.round)
    console.log(
      `| ${prepare ? 'prepared' : 'not prepared'} | ${fsync} | ${hand} | ${ours} | ${median(costs).toFixed(2)} |`,
    )
  }
}
