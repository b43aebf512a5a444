import { Kafka, logLevel } from 'kafkajs'
import { eachBatch, eachMessage } from 'oncekey/kafkajs'
import { createInbox } from 'oncekey/messages'
import { postgresStore } from 'oncekey/postgres'
import { Pool } from 'pg'

/** How a consumer is set up that dies over a message: the first argument, as JSON. */
export interface MortalConsumerOptions {
  readonly brokers: readonly string[]
  readonly postgresUrl: string
  readonly topic: string
  readonly group: string
  readonly inBatches: boolean
  readonly attempts: number
}

/** Nothing is thrown and nothing is caught: the process is gone. */
export const DEADLY = 'deadly'

const options = JSON.parse(process.argv[2] ?? '{}') as MortalConsumerOptions
const { brokers, postgresUrl, topic, group, inBatches, attempts } = options

const pool = new Pool({ connectionString: postgresUrl, max: 4 })
const inbox = createInbox({
  store: postgresStore(pool),
  consumer: group,
  attempts: { max: attempts, delay: 50 },
})

const kafka = new Kafka({
  brokers: [...brokers],
  logLevel: logLevel.NOTHING,
  retry: { initialRetryTime: 50 },
})
const consumer = kafka.consumer({ groupId: group, sessionTimeout: 1500, heartbeatInterval: 300 })
await consumer.connect()
await consumer.subscribe({ topic, fromBeginning: true })

type Transaction = { query(text: string, values: unknown[]): Promise<unknown> }

async function apply(tx: Transaction, bodies: readonly string[]): Promise<void> {
  await tx.query('insert into mortal_effects select $1, unnest($2::text[])', [group, bodies])
  if (bodies.includes(DEADLY)) process.kill(process.pid, 'SIGKILL')
}

await consumer.run(
  inBatches
    ? eachBatch(inbox, (deliveries, { tx }) =>
        apply(
          tx,
          deliveries.map(({ message }) => String(message.value)),
        ),
      )
    : eachMessage(inbox, ({ message }, { tx }) => apply(tx, [String(message.value)])),
)
console.log('consuming')
