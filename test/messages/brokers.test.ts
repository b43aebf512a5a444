import { randomUUID } from 'node:crypto'
import { Kafka, logLevel } from 'kafkajs'
import { expect, it } from 'vitest'
import { gate } from '../support/gate.js'
import { brokerUrl, describeWith } from '../support/services.js'

describeWith(['kafka'], 'Kafka', () => {
  it('takes a message and gives it to kafkajs', async () => {
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
