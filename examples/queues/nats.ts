import { jetstream, jetstreamManager } from '@nats-io/jetstream'
import { connect, headers, type NatsConnection, nanos } from '@nats-io/transport-node'
import { createInbox } from 'oncekey/messages'
import { consume } from 'oncekey/nats'
import { postgresStore } from 'oncekey/postgres'
import { Pool } from 'pg'

/** Books the payments of a stream: each one once, however often NATS delivers it. */
export async function startLedger(at: { readonly natsUrl: string; readonly postgresUrl: string }) {
  const pool = new Pool({ connectionString: at.postgresUrl, max: 10 })
  const store = postgresStore(pool)
  await store.migrate()
  const inbox = createInbox({ store, consumer: 'ledger' })

  const connection = await connect({ servers: at.natsUrl })
  const manager = await jetstreamManager(connection)
  await manager.streams.add({ name: 'payments', subjects: ['payments.*'] })
  await manager.consumers.add('payments', {
    durable_name: 'ledger',
    ack_policy: 'explicit',
    ack_wait: nanos(30_000),
  })

  const consumer = await jetstream(connection).consumers.get('payments', 'ledger')
  const consumption = await consume(
    consumer,
    inbox,
    async (message, { tx }) => {
      const { account, amount } = message.json<{ account: string; amount: number }>()
      await tx.query('update ledger_accounts set balance = balance + $2 where name = $1', [account, amount])
    },
    { concurrency: 10 },
  )

  return {
    /** When it is `lost`, begin again. */
    ended: consumption.ended,
    async stop() {
      await consumption.stop()
      // It sends the last acknowledgements before it closes.
      await connection.drain()
      await inbox.close()
      await pool.end()
    },
  }
}

/** Publishes a payment. When this resolves, the stream has it; when it fails, publish it again with the same id. */
export async function publishPayment(
  connection: NatsConnection,
  payment: { readonly id: string; readonly account: string; readonly amount: number },
): Promise<void> {
  const named = headers()
  named.set('Nats-Msg-Id', payment.id)
  await jetstream(connection).publish('payments.made', JSON.stringify(payment), { headers: named })
}
