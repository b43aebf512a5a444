import { connect } from 'amqplib'
import { consume } from 'oncekey/amqplib'
import { createInbox } from 'oncekey/messages'
import { postgresStore } from 'oncekey/postgres'
import { Pool } from 'pg'

/** Books the payments of a queue: each one once, however often RabbitMQ delivers it. */
export async function startLedger(at: { readonly amqpUrl: string; readonly postgresUrl: string }) {
  const pool = new Pool({ connectionString: at.postgresUrl, max: 10 })
  const store = postgresStore(pool)
  await store.migrate()
  const inbox = createInbox({ store, consumer: 'ledger' })
  inbox.on((event) => {
    // A message without an id is in nobody's list of the dead.
    if (event.type === 'message-refused') console.error(event.source, event.error)
  })

  const connection = await connect(at.amqpUrl)
  const channel = await connection.createChannel()
  await channel.assertQueue('payments.refused', { durable: true })
  await channel.assertQueue('payments', {
    durable: true,
    arguments: { 'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': 'payments.refused' },
  })
  await channel.prefetch(10)

  const consumption = await consume(channel, 'payments', inbox, async (message, { tx }) => {
    const { account, amount } = JSON.parse(message.content.toString())
    await tx.query('update ledger_accounts set balance = balance + $2 where name = $1', [account, amount])
  })

  return {
    /** When it is `lost`, begin again with a new channel. */
    ended: consumption.ended,
    async stop() {
      await consumption.stop()
      await connection.close()
      await inbox.close()
      await pool.end()
    },
  }
}

/** Publishes a payment. When this resolves, the broker has it; when it fails, publish it again with the same id. */
export async function publishPayment(
  channel: Awaited<ReturnType<Awaited<ReturnType<typeof connect>>['createConfirmChannel']>>,
  payment: { readonly id: string; readonly account: string; readonly amount: number },
): Promise<void> {
  channel.sendToQueue('payments', Buffer.from(JSON.stringify(payment)), {
    messageId: payment.id,
    appId: 'shop',
    persistent: true,
  })
  await channel.waitForConfirms()
}
