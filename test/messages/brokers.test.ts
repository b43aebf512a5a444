import { randomUUID } from 'node:crypto'
import { Socket } from 'node:net'
import { jetstream, jetstreamManager } from '@nats-io/jetstream'
import { connect as connectToNats } from '@nats-io/transport-node'
import { Admin, Consumer, Producer, stringDeserializers, stringSerializers } from '@platformatic/kafka'
import { connect as connectToRabbitMq } from 'amqplib'
import { Kafka, logLevel } from 'kafkajs'
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { gate } from '../support/gate.js'
import { brokerUrl, describeWith } from '../support/services.js'

let openBefore: number
beforeEach(() => {
  openBefore = openSockets()
})
afterEach(() => vi.waitFor(() => expect(openSockets(), 'connections left open').toBe(openBefore), 10_000))

describeWith(['kafka'], 'Kafka for kafkajs', () => {
  it('takes a message and gives it to a consumer of its group', async () => {
    const topic = `orders-${randomUUID()}`
    const kafka = new Kafka({ brokers: brokerUrl('kafka').split(','), logLevel: logLevel.NOTHING })
    const admin = kafka.admin()
    await admin.connect()
    await admin.createTopics({ topics: [{ topic, numPartitions: 1 }] })
    await admin.disconnect()

    const producer = kafka.producer({ allowAutoTopicCreation: false })
    await producer.connect()
    await producer.send({ topic, messages: [{ key: 'o-1', value: 'paid' }] })
    await producer.disconnect()

    const consumer = kafka.consumer({ groupId: `billing-${randomUUID()}` })
    await consumer.connect()
    await consumer.subscribe({ topic, fromBeginning: true })
    const received: unknown[] = []
    const { opened: arrived, open } = gate()
    await consumer.run({
      async eachMessage({ message }) {
        received.push([message.key?.toString(), message.value?.toString()])
        open()
      },
    })
    await arrived
    await consumer.disconnect()
    expect(received).toEqual([['o-1', 'paid']])
  })
})

describeWith(['kafka'], 'Kafka for @platformatic/kafka', () => {
  it('takes a message and gives it to a consumer of its group', async () => {
    const topic = `orders-${randomUUID()}`
    const options = { clientId: 'oncekey', bootstrapBrokers: brokerUrl('kafka').split(',') }
    const admin = new Admin(options)
    await admin.createTopics({ topics: [topic], partitions: 1, replicas: 1 })
    await admin.close()

    const producer = new Producer({ ...options, serializers: stringSerializers })
    await producer.send({ messages: [{ topic, key: 'o-1', value: 'paid' }] })
    await producer.close()

    const consumer = new Consumer({
      ...options,
      groupId: `billing-${randomUUID()}`,
      deserializers: stringDeserializers,
    })
    const stream = await consumer.consume({ topics: [topic], mode: 'earliest', autocommit: false })
    const received: unknown[] = []
    for await (const message of stream) {
      received.push([message.key, message.value])
      await message.commit()
      break
    }
    await consumer.close(true)
    expect(received).toEqual([['o-1', 'paid']])
  })
})

describeWith(['rabbitmq'], 'RabbitMQ', () => {
  it('takes a message and gives it to a consumer of its queue', async () => {
    const queue = `orders-${randomUUID()}`
    const connection = await connectToRabbitMq(brokerUrl('rabbitmq'))
    const channel = await connection.createConfirmChannel()
    await channel.assertQueue(queue, { durable: true })
    channel.sendToQueue(queue, Buffer.from('paid'), { messageId: 'o-1', persistent: true })
    await channel.waitForConfirms()

    const received: unknown[] = []
    const { opened: arrived, open } = gate()
    await channel.consume(queue, (message) => {
      if (message === null) return
      received.push([message.properties.messageId, message.content.toString()])
      channel.ack(message)
      open()
    })
    await arrived
    expect(received).toEqual([['o-1', 'paid']])

    await channel.deleteQueue(queue)
    await connection.close()
  })
})

describeWith(['nats'], 'NATS', () => {
  it('takes a message and gives it to a consumer of its stream', async () => {
    const name = `orders-${randomUUID()}`
    const connection = await connectToNats({ servers: brokerUrl('nats') })
    const manager = await jetstreamManager(connection)
    await manager.streams.add({ name, subjects: [`${name}.*`] })
    await manager.consumers.add(name, { durable_name: 'billing', ack_policy: 'explicit' })

    const stream = jetstream(connection)
    await stream.publish(`${name}.paid`, 'o-1')
    const consumer = await stream.consumers.get(name, 'billing')
    const message = await consumer.next()
    expect([message?.subject, message?.string()]).toEqual([`${name}.paid`, 'o-1'])
    expect(await message?.ackAck()).toBe(true)

    await manager.streams.delete(name)
    await connection.close()
  })
})

/** Connections of clients in JavaScript. Those of Confluent's client are its library's, and not to be seen from here. */
function openSockets(): number {
  const { _getActiveHandles: handles } = process as unknown as { _getActiveHandles(): readonly unknown[] }
  return handles().filter((handle) => handle instanceof Socket && handle.remotePort !== undefined).length
}
