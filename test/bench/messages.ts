import { randomUUID } from 'node:crypto'
import { type ConsumerRunConfig, Kafka, logLevel } from 'kafkajs'
import { Pool } from 'pg'
import { produceEvents } from '../../examples/kafka-ledger/events.js'
import { applyPayments, openLedger, type Payment } from '../../examples/kafka-ledger/ledger.js'
import { createInbox, highWatermark } from '../../src/messages/inbox.js'
import { eachBatch, eachMessage, type KafkaMessage } from '../../src/messages/kafkajs.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { startKafkaServer } from '../support/kafka-server.js'
import { startPostgresServer } from '../support/postgres-server.js'
import { median, ROUNDS } from './measure.js'

const EVENTS = Number(process.env.BENCH_EVENTS ?? 3000)
const PARTITIONS = 6
const CONCURRENTLY = 6

type Way = (group: string) => ConsumerRunConfig

/**
 * Measures what a consumer of Kafka costs that processes each message once, beside one whose transactions are written by
 * hand and remember nothing. Each way reads the same topic anew, one after the other, in rounds.
 */
export async function benchMessages(): Promise<void> {
  const kafkaServer = await startKafkaServer()
  const kafka = new Kafka({ brokers: [kafkaServer.url], logLevel: logLevel.NOTHING })
  const topic = `payments-${randomUUID()}`
  const admin = kafka.admin()
  await admin.connect()
  await admin.createTopics({ topics: [{ topic, numPartitions: PARTITIONS }], waitForLeaders: true })
  await produceEvents(kafka, topic, { events: EVENTS, duplicates: 0 })
  console.log(
    `\nMessages a second, ${EVENTS} messages of ${PARTITIONS} partitions, medians of ${ROUNDS} rounds.\n`,
  )
  console.log('| fsync | way | messages a second | of by hand | of one by one |')
  console.log('|---|---|---|---|---|')
  for (const fsync of ['on', 'off']) {
    const postgres = await startPostgresServer({ settings: { fsync } })
    const pool = new Pool({ connectionString: postgres.url, max: CONCURRENTLY + 2 })
    await postgresStore(pool).migrate()
    const ways = waysOf(pool)
    const rates = new Map<string, number[]>(Object.keys(ways).map((name) => [name, []]))
    // The first round warms up the process and the tables.
    for (let round = 0; round <= ROUNDS; round += 1)
      for (const [name, way] of Object.entries(ways)) {
        await openLedger(pool)
        const rate = await rateOf(kafka, topic, way)
        if (round > 0) rates.get(name)?.push(rate)
        console.error(`fsync ${fsync}, round ${round} of ${ROUNDS}: ${name}: ${Math.round(rate)} a second`)
      }
    const hand = rates.get('by hand') ?? []
    const single = rates.get('one by one') ?? []
    for (const [name, list] of rates) {
      const share = (base: readonly number[]): string =>
        median(list.map((rate, round) => rate / (base[round] ?? rate))).toFixed(2)
      console.log(`| ${fsync} | ${name} | ${Math.round(median(list))} | ${share(hand)} | ${share(single)} |`)
    }
    await pool.end()
    await postgres.stop()
  }
  await admin.disconnect()
  await kafkaServer.stop()
}

function waysOf(pool: Pool): Readonly<Record<string, Way>> {
  const inbox = (consumer: string, options = {}) =>
    createInbox({ store: postgresStore(pool), consumer, sweep: false, ...options })
  return {
    'by hand': () => ({
      eachMessage: async ({ message }) => {
        const connection = await pool.connect()
        try {
          await connection.query('begin')
          await applyPayments(connection, [paymentOf(message)])
          await connection.query('commit')
        } finally {
          connection.release()
        }
      },
    }),
    'one by one': (group) =>
      eachMessage(inbox(group), ({ message }, { tx }) => applyPayments(tx, [paymentOf(message)])),
    watermark: (group) =>
      eachMessage(inbox(group, { strategy: highWatermark() }), ({ message }, { tx }) =>
        applyPayments(tx, [paymentOf(message)]),
      ),
    'in batches': (group) =>
      eachBatch(inbox(group), (deliveries, { tx }) =>
        applyPayments(
          tx,
          deliveries.map(({ message }) => paymentOf(message)),
        ),
      ),
  }
}

/** Reads the whole topic in a group of its own. The clock runs from the first message to the last. */
async function rateOf(kafka: Kafka, topic: string, way: Way): Promise<number> {
  const groupId = randomUUID()
  const consumer = kafka.consumer({ groupId })
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  let startedAt: number | undefined
  let left = EVENTS
  await new Promise<void>((resolve, reject) => {
    consumer.on(consumer.events.START_BATCH_PROCESS, () => {
      startedAt ??= performance.now()
    })
    consumer.on(consumer.events.END_BATCH_PROCESS, ({ payload }) => {
      left -= payload.batchSize
      if (left <= 0) resolve()
    })
    consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error))
    consumer.run({ partitionsConsumedConcurrently: CONCURRENTLY, ...way(groupId) }).catch(reject)
  })
  const seconds = (performance.now() - (startedAt ?? 0)) / 1000
  await consumer.disconnect()
  return EVENTS / seconds
}

function paymentOf({ value, headers }: KafkaMessage): { readonly event: string; readonly payment: Payment } {
  return { event: String(headers?.ce_id), payment: JSON.parse(String(value)) as Payment }
}
