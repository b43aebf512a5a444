import { randomUUID } from 'node:crypto'
import { jetstreamManager } from '@nats-io/jetstream'
import { connect as connectToNats } from '@nats-io/transport-node'
import { connect as connectToRabbitMq } from 'amqplib'
import { Pool } from 'pg'
import { afterAll, beforeAll, expect, inject, it } from 'vitest'
import * as nats from '../../examples/queues/nats.js'
import * as rabbitmq from '../../examples/queues/rabbitmq.js'
import { brokerUrl, describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')
const eventually = { timeout: 20_000, interval: 20 }

function accounts() {
  const account = randomUUID()
  let pool: Pool
  beforeAll(async () => {
    pool = new Pool({ connectionString: postgresUrl })
    await pool.query(
      'create table if not exists ledger_accounts (name text primary key, balance bigint not null)',
    )
    await pool.query('insert into ledger_accounts values ($1, 0)', [account])
  })
  afterAll(() => pool.end())
  return {
    account,
    async balance(): Promise<number> {
      const { rows } = await pool.query('select balance from ledger_accounts where name = $1', [account])
      return Number(rows[0].balance)
    },
  }
}

describeWith(['rabbitmq', 'postgres'], 'the ledger of payments from RabbitMQ', () => {
  const { account, balance } = accounts()

  it('books each payment once, and leaves one without an id to the refused', async () => {
    const ledger = await rabbitmq.startLedger({ amqpUrl: brokerUrl('rabbitmq'), postgresUrl })
    const connection = await connectToRabbitMq(brokerUrl('rabbitmq'))
    const channel = await connection.createConfirmChannel()
    const payment = { id: randomUUID(), account, amount: 5 }
    for (let time = 0; time < 3; time += 1) await rabbitmq.publishPayment(channel, payment)
    await rabbitmq.publishPayment(channel, { id: '', account, amount: 100 })
    await rabbitmq.publishPayment(channel, { id: randomUUID(), account, amount: 7 })
    await expect.poll(balance, eventually).toBe(12)
    await expect
      .poll(async () => (await channel.checkQueue('payments.refused')).messageCount, eventually)
      .toBe(1)
    await ledger.stop()
    expect(await ledger.ended).toEqual({ reason: 'stopped' })
    expect((await channel.checkQueue('payments')).messageCount).toBe(0)
    expect(await balance()).toBe(12)
    for (const queue of ['payments', 'payments.refused']) await channel.deleteQueue(queue)
    await connection.close()
  })
})

describeWith(['nats', 'postgres'], 'the ledger of payments from NATS', () => {
  const { account, balance } = accounts()

  it('books each payment once', async () => {
    const ledger = await nats.startLedger({ natsUrl: brokerUrl('nats'), postgresUrl })
    const connection = await connectToNats({ servers: brokerUrl('nats') })
    const payment = { id: randomUUID(), account, amount: 5 }
    for (let time = 0; time < 3; time += 1) await nats.publishPayment(connection, payment)
    await nats.publishPayment(connection, { id: randomUUID(), account, amount: 7 })
    await expect.poll(balance, eventually).toBe(12)
    await ledger.stop()
    expect(await ledger.ended).toEqual({ reason: 'stopped' })
    const manager = await jetstreamManager(connection)
    await expect
      .poll(async () => (await manager.consumers.info('payments', 'ledger')).num_ack_pending, eventually)
      .toBe(0)
    expect(await balance()).toBe(12)
    await manager.streams.delete('payments')
    await connection.close()
  })
})
