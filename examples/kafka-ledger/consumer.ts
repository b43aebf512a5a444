import { Kafka, logLevel } from 'kafkajs'
import { eachBatch, eachMessage } from 'oncekey/kafkajs'
import { createInbox, highWatermark } from 'oncekey/messages'
import { postgresStore } from 'oncekey/postgres'
import { Pool } from 'pg'
import { applyPayments, type Payment } from './ledger.js'

/** What a consumer process is told. */
export interface ConsumerOptions {
  readonly brokers: readonly string[]
  readonly databaseUrl: string
  readonly topic: string
  readonly group: string
  /** What decides whether an event is new: its id, or the offset that was processed last. */
  readonly by: 'id' | 'watermark'
  readonly inBatches: boolean
}

const { brokers, databaseUrl, topic, group, by, inBatches } = JSON.parse(
  process.argv[2] ?? '{}',
) as ConsumerOptions

const pool = new Pool({ connectionString: databaseUrl, max: 8 })
const inbox = createInbox({
  store: postgresStore(pool),
  consumer: group,
  // This process is killed again and again, whatever it does: that is no fault of the message.
  attempts: { max: 100 },
  ...(by === 'watermark' && { strategy: highWatermark() }),
})
inbox.on((event) => {
  if (event.type === 'message-failed') console.error(`An attempt failed: ${event.error}`)
})

const kafka = new Kafka({
  brokers: [...brokers],
  logLevel: logLevel.NOTHING,
  retry: { initialRetryTime: 50 },
})
// A dead consumer is missed sooner than in production, so that a demonstration does not take an hour.
const consumer = kafka.consumer({ groupId: group, sessionTimeout: 2000, heartbeatInterval: 300 })
await consumer.connect()
await consumer.subscribe({ topic, fromBeginning: true })
const applied = inBatches
  ? eachBatch(inbox, async (deliveries, { tx }) => {
      await applyPayments(
        tx,
        deliveries.map(({ message }) => paymentOf(message)),
      )
    })
  : eachMessage(inbox, async ({ message }, { tx }) => {
      await applyPayments(tx, [paymentOf(message)])
    })
await consumer.run({ partitionsConsumedConcurrently: 3, ...applied })

function paymentOf({
  value,
  headers,
}: {
  readonly value: Buffer | null
  readonly headers?: { readonly [name: string]: unknown } | undefined
}): { readonly event: string; readonly payment: Payment } {
  return { event: String(headers?.ce_id), payment: JSON.parse(String(value)) as Payment }
}
