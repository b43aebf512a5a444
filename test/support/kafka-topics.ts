import { randomUUID } from 'node:crypto'
import {
  type Admin,
  type Consumer,
  type ConsumerRunConfig,
  Kafka,
  logLevel,
  type Message,
  type Producer,
} from 'kafkajs'
import { brokerUrl } from './services.js'

/** Topics and consumers of KafkaJS that belong to a test file. */
export interface KafkaTopics {
  /** A topic that no other test has, with messages in it. */
  topic(messages?: readonly Message[], partitions?: number): Promise<string>
  produce(topic: string, messages: readonly Message[]): Promise<void>
  /** Makes a topic again, empty, under the same name. */
  makeAgain(topic: string): Promise<void>
  consumer(groupId: string): Promise<Consumer>
  /** Reads a topic from its beginning. */
  read(topic: string, groupId: string, config: ConsumerRunConfig): Promise<Consumer>
  /** The offsets that a group has committed, by partition; -1 for none. */
  committed(topic: string, groupId: string): Promise<readonly number[]>
  /** Stops all consumers. */
  stopConsumers(): Promise<void>
  close(): Promise<void>
}

/** Opens the topics of a test file. */
export async function openTopics(): Promise<KafkaTopics> {
  const kafka = new Kafka({
    brokers: brokerUrl('kafka').split(','),
    logLevel: logLevel.NOTHING,
    retry: { initialRetryTime: 50 },
  })
  const admin: Admin = kafka.admin()
  const producer: Producer = kafka.producer()
  await admin.connect()
  await producer.connect()
  const consumers: Consumer[] = []

  async function create(topic: string, numPartitions: number): Promise<void> {
    await admin.createTopics({ topics: [{ topic, numPartitions }], waitForLeaders: true })
  }

  const topics: KafkaTopics = {
    async topic(messages = [], partitions = 1) {
      const topic = `orders-${randomUUID()}`
      await create(topic, partitions)
      await topics.produce(topic, messages)
      return topic
    },
    async produce(topic, messages) {
      if (messages.length > 0) await producer.send({ topic, messages: [...messages] })
    },
    async makeAgain(topic) {
      await admin.deleteTopics({ topics: [topic] })
      for (let isThere = true; isThere; ) isThere = (await admin.listTopics()).includes(topic)
      await create(topic, 1)
    },
    async consumer(groupId) {
      const consumer = kafka.consumer({
        groupId,
        sessionTimeout: 6000,
        heartbeatInterval: 500,
        maxWaitTimeInMs: 100,
      })
      await consumer.connect()
      consumers.push(consumer)
      return consumer
    },
    async read(topic, groupId, config) {
      const consumer = await topics.consumer(groupId)
      await consumer.subscribe({ topic, fromBeginning: true })
      await consumer.run(config)
      return consumer
    },
    async committed(topic, groupId) {
      const [offsets] = await admin.fetchOffsets({ groupId, topics: [topic] })
      return (offsets?.partitions ?? [])
        .toSorted((one, other) => one.partition - other.partition)
        .map(({ offset }) => Number(offset))
    },
    async stopConsumers() {
      await Promise.all(consumers.splice(0).map((consumer) => consumer.disconnect()))
    },
    async close() {
      await topics.stopConsumers()
      await producer.disconnect()
      await admin.disconnect()
    },
  }
  return topics
}

/** A message whose value is its id as well. */
export function anOrder(id: string, more: Partial<Message> = {}): Message {
  return { key: 'the same partition', value: id, headers: { id }, ...more }
}
