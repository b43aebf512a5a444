import { appendFileSync } from 'node:fs'
import { jetstream } from '@nats-io/jetstream'
import { connect as connectToNats } from '@nats-io/transport-node'
import { connect as connectToRabbitMq } from 'amqplib'
import { consume as consumeQueue } from 'oncekey/amqplib'
import { createInbox } from 'oncekey/messages'
import { consume as consumeStream } from 'oncekey/nats'
import { postgresStore } from 'oncekey/postgres'
import { Pool } from 'pg'

/** How a consumer of a queue is set up: the first argument, as JSON. */
export interface QueueConsumerOptions {
  readonly broker: 'rabbitmq' | 'nats'
  readonly brokerUrl: string
  readonly postgresUrl: string
  /** A queue, or a stream with a consumer of this name. */
  readonly queue: string
  readonly consumer: string
  /** The file to append a line to when the inbox is done with a delivery: `<result> <key>`. */
  readonly told: string
  /** It kills itself when it has committed so many messages, before it acknowledges the last of them. */
  readonly diesAfter?: number
}

const options = JSON.parse(process.argv[2] ?? '{}') as QueueConsumerOptions
const IN_HAND = 4

const pool = new Pool({ connectionString: options.postgresUrl, max: IN_HAND })
const inbox = createInbox({
  store: postgresStore(pool),
  consumer: options.consumer,
  attempts: { delay: 100 },
  lockTimeout: 100,
})
let committed = 0
inbox.on((event) => {
  if (event.type === 'message-failed') console.error(event.error)
  if (event.type !== 'message') return
  appendFileSync(options.told, `${event.result} ${event.message.key}\n`)
  // An inbox tells of the commit before its adapter hears of it.
  if (event.result === 'processed') committed += 1
  if (committed === options.diesAfter) process.kill(process.pid, 'SIGKILL')
})

async function apply(body: string, tx: { query(text: string, values: string[]): Promise<unknown> }) {
  await tx.query('insert into queue_kill_effects (queue, body) values ($1, $2)', [options.queue, body])
  await tx.query('select pg_sleep(0.01)', [])
}

async function start(): Promise<{ stop(): Promise<void> }> {
  if (options.broker === 'rabbitmq') {
    const connection = await connectToRabbitMq(options.brokerUrl)
    const channel = await connection.createChannel()
    await channel.prefetch(IN_HAND)
    const consumption = await consumeQueue(channel, options.queue, inbox, (message, { tx }) =>
      apply(String(message.content), tx),
    )
    return {
      async stop() {
        await consumption.stop()
        await connection.close()
      },
    }
  }
  const connection = await connectToNats({ servers: options.brokerUrl })
  const consumer = await jetstream(connection).consumers.get(options.queue, options.queue)
  const consumption = await consumeStream(consumer, inbox, (message, { tx }) => apply(message.string(), tx), {
    concurrency: IN_HAND,
  })
  return {
    async stop() {
      await consumption.stop()
      await connection.drain()
    },
  }
}

const consuming = await start()
process.once('SIGTERM', async () => {
  await consuming.stop()
  await inbox.close()
  await pool.end()
})
console.log('consuming')
