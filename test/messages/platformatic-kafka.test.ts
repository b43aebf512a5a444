import { randomUUID } from 'node:crypto'
import { Consumer, type Message, type MessagesStream } from '@platformatic/kafka'
import { Pool } from 'pg'
import { afterAll, afterEach, beforeAll, expect, inject, it } from 'vitest'
import type { Consumption } from '../../src/messages/consumption.js'
import { createInbox, type MessageResult } from '../../src/messages/inbox.js'
import { consume, consumeBatches } from '../../src/messages/platformatic-kafka.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { gate } from '../support/gate.js'
import { anOrder, type KafkaTopics, openTopics } from '../support/kafka-topics.js'
import { brokerUrl, describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')
const PATIENCE = { timeout: 60_000, interval: 50 }

describeWith(['kafka', 'postgres'], 'oncekey/platformatic-kafka', () => {
  let topics: KafkaTopics
  let pool: Pool
  const open: { readonly consumer: Consumer; readonly consumption: Consumption }[] = []
  beforeAll(async () => {
    topics = await openTopics()
    pool = new Pool({ connectionString: postgresUrl, max: 10 })
    await postgresStore(pool).migrate()
  }, 120_000)
  afterEach(() => stopAll())
  afterAll(async () => {
    await topics.close()
    await pool.end()
  })

  async function stopAll(): Promise<void> {
    for (const { consumer, consumption } of open.splice(0)) {
      await consumption.stop()
      await consumer.close()
    }
  }

  type Stream = MessagesStream<Buffer, Buffer, Buffer, Buffer>

  async function read(
    topic: string,
    groupId: string,
    start: (stream: Stream) => Consumption,
  ): Promise<Consumption> {
    const consumer = new Consumer({
      clientId: 'oncekey',
      bootstrapBrokers: brokerUrl('kafka').split(','),
      groupId,
    })
    const stream = await consumer.consume({
      topics: [topic],
      mode: 'committed',
      fallbackMode: 'earliest',
      autocommit: false,
      maxWaitTime: 100,
    })
    const consumption = start(stream)
    open.push({ consumer, consumption })
    return consumption
  }

  function anInbox(options: { readonly [name: string]: unknown } = {}) {
    const inbox = createInbox({
      store: postgresStore(pool),
      consumer: randomUUID(),
      sweep: false,
      lockTimeout: '20ms',
      attempts: { max: 3, delay: '20ms' },
      ...options,
    })
    const results: MessageResult[] = []
    inbox.on((event) => {
      if (event.type === 'message') results.push(event.result)
    })
    return { inbox, results }
  }

  const textOf = ({ value }: Message): string => String(value)
  const group = (): string => `ledger-${randomUUID()}`

  it('processes each message once and commits its offset after it, also when a group starts anew', async () => {
    const topic = await topics.topic([anOrder('1'), anOrder('2'), anOrder('3')])
    const { inbox, results } = anInbox()
    const applied: string[] = []
    for (const groupId of [group(), group()]) {
      await read(topic, groupId, (stream) =>
        consume(stream, inbox, (message) => void applied.push(textOf(message))),
      )
      await expect.poll(() => topics.committed(topic, groupId), PATIENCE).toEqual([3])
    }
    expect(applied).toEqual(['1', '2', '3'])
    expect(results.slice(3)).toEqual(['duplicate', 'duplicate', 'duplicate'])
  }, 60_000)

  it('commits no offset before its transaction, and loses nothing when it stops in the middle', async () => {
    const topic = await topics.topic([anOrder('1'), anOrder('2')])
    const groupId = group()
    const { inbox, results } = anInbox()
    const inside = gate()
    const finish = gate()
    const consumption = await read(topic, groupId, (stream) =>
      consume(stream, inbox, async (message) => {
        if (textOf(message) !== '2') return
        inside.open()
        await finish.opened
      }),
    )
    await inside.opened
    await expect.poll(() => topics.committed(topic, groupId), PATIENCE).toEqual([1])
    const stopped = consumption.stop()
    finish.open()
    await stopped
    expect(results).toEqual(['processed', 'processed'])
    await expect.poll(() => topics.committed(topic, groupId), PATIENCE).toEqual([2])
  }, 60_000)

  it('gives a poison message up after its attempts, and lets other partitions go on meanwhile', async () => {
    const topic = await topics.topic([], 2)
    const groupId = group()
    const { inbox } = anInbox()
    const release = gate()
    const applied: string[] = []
    await topics.produce(topic, [
      anOrder('poison', { partition: 0 }),
      anOrder('behind', { partition: 0 }),
      anOrder('beside', { partition: 1 }),
    ])
    await read(topic, groupId, (stream) =>
      consume(stream, inbox, async (message, { attempt }) => {
        if (textOf(message) === 'poison') {
          if (attempt === 3) await release.opened
          throw new Error('poison')
        }
        applied.push(textOf(message))
      }),
    )
    await expect.poll(() => applied, PATIENCE).toEqual(['beside'])
    release.open()
    await expect.poll(() => applied, PATIENCE).toEqual(['beside', 'behind'])
    await expect.poll(() => topics.committed(topic, groupId), PATIENCE).toEqual([2, 1])
  }, 60_000)

  it('processes batches, and finds the message that fails', async () => {
    const ids = Array.from({ length: 30 }, (_, number) => String(number))
    const topic = await topics.topic(ids.map((id) => anOrder(id)))
    const groupId = group()
    const { inbox, results } = anInbox()
    const applied: string[] = []
    const sizes: number[] = []
    await read(topic, groupId, (stream) =>
      consumeBatches(
        stream,
        inbox,
        (messages) => {
          const values = messages.map(({ message }) => textOf(message))
          if (values.includes('17')) throw new Error('poison')
          applied.push(...values)
          sizes.push(values.length)
        },
        { batchSize: 5 },
      ),
    )
    await expect.poll(() => topics.committed(topic, groupId), PATIENCE).toEqual([30])
    expect(applied).toEqual(ids.filter((id) => id !== '17'))
    expect(results.filter((result) => result === 'dead')).toHaveLength(1)
    expect(sizes).toContain(5)
  }, 60_000)
})
