import { parseArgs } from 'node:util'
import { startKafkaServer } from '../../test/support/kafka-server.js'
import { startPostgresServer } from '../../test/support/postgres-server.js'
import { type ChaosReport, runChaos } from './chaos.js'

const { values } = parseArgs({
  options: {
    events: { type: 'string', default: '20000' },
    /** Decide by the offset that was processed last, and not by the id of each event. */
    watermark: { type: 'boolean', default: false },
    /** Apply events in batches, and not one by one. */
    batches: { type: 'boolean', default: false },
  },
})

/** Lets consumers die over a ledger, and counts the money. */
async function demo(): Promise<void> {
  const events = Number(values.events)
  const kafka = await ours(process.env.KAFKA_BROKERS, startKafkaServer)
  const postgres = await ours(process.env.DATABASE_URL, startPostgresServer)
  try {
    const report = await runChaos({
      brokers: kafka.url.split(','),
      databaseUrl: postgres.url,
      events,
      // The watermark sees the offset of a message, and not that two of them are the same event.
      duplicates: values.watermark ? 0 : Math.floor(events / 10),
      by: values.watermark ? 'watermark' : 'id',
      inBatches: values.batches,
      consumers: 3,
      partitions: 6,
      killEveryMs: values.batches ? 1000 : 3000,
      tell: (line) => console.log(line),
    })
    show(report)
    if (report.applied !== report.events || report.appliedTwice > 0 || !report.isBalanced)
      process.exitCode = 1
  } finally {
    await kafka.stop()
    await postgres.stop()
  }
}

function show(report: ChaosReport): void {
  const { events, messages, kills, seconds, applied, appliedTwice, isBalanced } = report
  console.log(`
events            ${events}
messages          ${messages}
kills             ${kills}, in ${seconds.toFixed(0)} s
events applied    ${applied}
applied twice     ${appliedTwice}
books balanced    ${isBalanced ? 'yes' : 'no'}`)
}

interface Server {
  readonly url: string
  stop(): Promise<void>
}

/** A server that somebody names, or one that is started here and stopped afterwards. */
async function ours(url: string | undefined, start: () => Promise<Server>): Promise<Server> {
  return url === undefined ? start() : { url, stop: async () => {} }
}

await demo()
