import { randomUUID } from 'node:crypto'
import { Pool } from 'pg'
import { afterAll, afterEach, beforeAll, expect, inject, it } from 'vitest'
import { createInbox, highWatermark, type InboxEvent, type MessageResult } from '../../src/messages/inbox.js'
import { eachBatch, eachMessage } from '../../src/messages/kafkajs.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { gate } from '../support/gate.js'
import { anOrder, type KafkaTopics, openTopics } from '../support/kafka-topics.js'
import { describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')
const PATIENCE = { timeout: 60_000, interval: 50 }

describeWith(['kafka', 'postgres'], 'oncekey/kafkajs', () => {
  let topics: KafkaTopics
  let pool: Pool
  beforeAll(async () => {
    topics = await openTopics()
    pool = new Pool({ connectionString: postgresUrl, max: 10 })
    await postgresStore(pool).migrate()
  }, 120_000)
  afterEach(() => topics.stopConsumers())
  afterAll(async () => {
    await topics.close()
    await pool.end()
  })

  function anInbox(options: { readonly [name: string]: unknown } = {}) {
    const inbox = createInbox({
      store: postgresStore(pool),
      consumer: randomUUID(),
      sweep: false,
      lockTimeout: '20ms',
      attempts: { max: 3, delay: '20ms' },
      ...options,
    })
    const events: InboxEvent[] = []
    const results: MessageResult[] = []
    inbox.on((event) => {
      events.push(event)
      if (event.type === 'message') results.push(event.result)
    })
    return { inbox, events, results }
  }

  /** A handler that notes what it was given, and fails for what is `poison`. */
  function aHandler() {
    const applied: string[] = []
    let poison = ''
    return {
      applied,
      poisonedBy(id: string) {
        poison = id
      },
      async handle({ message }: { readonly message: { readonly value: Buffer | null } }): Promise<void> {
        const id = String(message.value)
        if (id === poison) throw new Error(`${id} is poison`)
        applied.push(id)
      },
    }
  }

  const group = (): string => `ledger-${randomUUID()}`

  it('commits the offset of a message after its transaction, and none before', async () => {
    const topic = await topics.topic([anOrder('1'), anOrder('2')])
    const groupId = group()
    const { inbox } = anInbox()
    const inside = gate()
    const finish = gate()
    const seen: string[] = []
    await topics.read(topic, groupId, {
      autoCommitInterval: 50,
      ...eachMessage(inbox, async ({ message }, { tx }) => {
        await tx.query('select 1')
        seen.push(String(message.value))
        if (seen.length === 2) {
          inside.open()
          await finish.opened
        }
      }),
    })
    await inside.opened
    await expect.poll(() => topics.committed(topic, groupId), PATIENCE).not.toEqual([2])
    expect((await topics.committed(topic, groupId))[0]).toBeLessThanOrEqual(1)
    finish.open()
    await expect.poll(() => topics.committed(topic, groupId), PATIENCE).toEqual([2])
    expect(seen).toEqual(['1', '2'])
  }, 60_000)

  it('replays nothing when a group starts anew', async () => {
    const topic = await topics.topic([anOrder('1'), anOrder('2'), anOrder('3')])
    const { inbox, results } = anInbox()
    const { applied, handle } = aHandler()
    for (const groupId of [group(), group()]) {
      await topics.read(topic, groupId, eachMessage(inbox, handle))
      await expect.poll(() => topics.committed(topic, groupId), PATIENCE).toEqual([3])
    }
    expect(applied).toEqual(['1', '2', '3'])
    expect(results).toEqual(['processed', 'processed', 'processed', 'duplicate', 'duplicate', 'duplicate'])
  }, 60_000)

  it('gives a poison message up after its attempts, and processes the others, and it once it is redriven', async () => {
    const topic = await topics.topic(['1', '2', '3', '4'].map((id) => anOrder(id)))
    const { inbox, events } = anInbox()
    const { applied, poisonedBy, handle } = aHandler()
    poisonedBy('2')
    const [first, second] = [group(), group()]
    await topics.read(topic, first, eachMessage(inbox, handle))
    await expect.poll(() => topics.committed(topic, first), PATIENCE).toEqual([4])
    expect(applied).toEqual(['1', '3', '4'])
    expect(events).toContainEqual(expect.objectContaining({ type: 'message-dead', attempts: 3 }))
    poisonedBy('')
    expect(await inbox.redrive({ source: topic, key: '2' })).toBe(true)
    await topics.stopConsumers()
    await topics.read(topic, second, eachMessage(inbox, handle))
    await expect.poll(() => topics.committed(topic, second), PATIENCE).toEqual([4])
    expect(applied).toEqual(['1', '3', '4', '2'])
  }, 60_000)

  it('lets other partitions go on while one waits for its next attempt', async () => {
    const topic = await topics.topic([], 2)
    const groupId = group()
    const { inbox } = anInbox({ attempts: { max: 100, delay: '100ms' } })
    const { applied, poisonedBy, handle } = aHandler()
    poisonedBy('poison')
    await topics.produce(topic, [anOrder('poison', { partition: 0 })])
    await topics.read(topic, groupId, eachMessage(inbox, handle))
    for (const id of ['1', '2', '3']) await topics.produce(topic, [anOrder(id, { partition: 1 })])
    await expect.poll(() => applied, PATIENCE).toEqual(['1', '2', '3'])
    expect((await topics.committed(topic, groupId))[0]).toBeLessThanOrEqual(0)
  }, 60_000)

  it('does not acknowledge a message that somebody else is at', async () => {
    const topic = await topics.topic([anOrder('1')])
    const groupId = group()
    const { inbox, results } = anInbox()
    const { applied, handle } = aHandler()
    const other = await pool.connect()
    await other.query('begin')
    expect(await inbox.enlist(other, { source: topic, key: '1' })).toBe('fresh')
    await topics.read(topic, groupId, eachMessage(inbox, handle))
    await expect.poll(() => results, PATIENCE).toContain('in-progress')
    expect((await topics.committed(topic, groupId))[0]).toBeLessThanOrEqual(0)
    await other.query('commit')
    other.release()
    await expect.poll(() => topics.committed(topic, groupId), PATIENCE).toEqual([1])
    expect(applied).toEqual([])
    expect(results.at(-1)).toBe('duplicate')
  }, 60_000)

  it('keeps the messages behind a dead one, where the order is kept, until it is redriven', async () => {
    const topic = await topics.topic(['1', '2', '3'].map((id) => anOrder(id)))
    const groupId = group()
    const { inbox, results } = anInbox({ order: 'block', attempts: { max: 1, delay: '20ms' } })
    const { applied, poisonedBy, handle } = aHandler()
    poisonedBy('2')
    await topics.read(topic, groupId, eachMessage(inbox, handle))
    await expect.poll(() => results.filter((result) => result === 'dead').length, PATIENCE).toBeGreaterThan(1)
    expect(applied).toEqual(['1'])
    poisonedBy('')
    await inbox.redrive({ source: topic, key: '2' })
    await expect.poll(() => topics.committed(topic, groupId), PATIENCE).toEqual([3])
    expect(applied).toEqual(['1', '2', '3'])
  }, 60_000)

  it('processes batches, each in one transaction, and gives up what fails alone', async () => {
    const ids = Array.from({ length: 25 }, (_, number) => String(number))
    const topic = await topics.topic(ids.map((id) => anOrder(id)))
    const groupId = group()
    const { inbox } = anInbox()
    const applied: string[] = []
    const sizes: number[] = []
    const config = eachBatch(
      inbox,
      async (deliveries, { tx }) => {
        const values = deliveries.map(({ message }) => String(message.value))
        await tx.query('select 1')
        if (values.includes('13')) throw new Error('13 is poison')
        applied.push(...values)
        sizes.push(values.length)
      },
      { batchSize: 5 },
    )
    await topics.read(topic, groupId, config)
    await expect.poll(() => topics.committed(topic, groupId), PATIENCE).toEqual([25])
    expect(applied).toEqual(ids.filter((id) => id !== '13'))
    // The first five are watched one by one, and those beside the poison are alone too.
    expect(sizes.slice(0, 5)).toEqual([1, 1, 1, 1, 1])
    expect(sizes).toContain(5)
  }, 60_000)

  it('finds the key of an event, of an outbox, or by its place, and says which it was', async () => {
    const structured = JSON.stringify({
      specversion: '1.0',
      id: 'e-2',
      source: '/shop',
      type: 'order.placed',
    })
    const topic = await topics.topic([
      { value: '1', headers: { ce_id: 'e-1', ce_source: '/shop' } },
      { value: structured, headers: { 'content-type': 'application/cloudevents+json' } },
      { value: '3', headers: { id: ['d-0', 'd-1'] } },
      { value: '4' },
    ])
    const groupId = group()
    const { inbox, events } = anInbox()
    await topics.read(
      topic,
      groupId,
      eachMessage(inbox, () => {}),
    )
    await expect.poll(() => topics.committed(topic, groupId), PATIENCE).toEqual([4])
    const { consumer } = inbox
    expect(events.flatMap((event) => (event.type === 'message' ? [event.message] : []))).toEqual([
      { consumer, source: '/shop', key: 'e-1', keyKind: 'cloudevents' },
      { consumer, source: '/shop', key: 'e-2', keyKind: 'cloudevents' },
      { consumer, source: topic, key: 'd-1', keyKind: 'debezium' },
      { consumer, source: topic, key: '0/3', keyKind: 'position' },
    ])
  }, 60_000)

  it.each(['eachMessage', 'eachBatch'] as const)(
    'gives up what has no key of its own, where one is required: %s',
    async (how) => {
      const topic = await topics.topic([anOrder('1'), { value: '2' }, anOrder('3')])
      const groupId = group()
      const { inbox, results } = anInbox()
      const options = { key: 'require' } as const
      const config =
        how === 'eachMessage' ? eachMessage(inbox, () => {}, options) : eachBatch(inbox, () => {}, options)
      await topics.read(topic, groupId, config)
      await expect.poll(() => topics.committed(topic, groupId), PATIENCE).toEqual([3])
      expect(results).toEqual(['processed', 'dead', 'processed'])
    },
    60_000,
  )

  it('stops at a topic that was made again under a high watermark, and skips nothing', async () => {
    const topic = await topics.topic([anOrder('1'), anOrder('2')])
    const { inbox, events } = anInbox({ strategy: highWatermark() })
    const { applied, handle } = aHandler()
    const [first, second] = [group(), group()]
    await topics.read(topic, first, eachMessage(inbox, handle))
    await expect.poll(() => topics.committed(topic, first), PATIENCE).toEqual([2])
    await topics.stopConsumers()
    await topics.makeAgain(topic)
    await topics.produce(topic, [anOrder('3'), anOrder('4')])
    await topics.read(topic, second, eachMessage(inbox, handle))
    const replaced = expect.objectContaining({ code: 'IDEMPOTENCY_LOG_REPLACED' })
    await expect
      .poll(() => events, PATIENCE)
      .toContainEqual(expect.objectContaining({ type: 'message-failed', error: replaced }))
    expect((await topics.committed(topic, second))[0]).toBeLessThanOrEqual(0)
    expect(applied).toEqual(['1', '2'])
    await inbox.reset({ source: topic })
    await expect.poll(() => applied, PATIENCE).toEqual(['1', '2', '3', '4'])
  }, 90_000)

  it('loses nothing when a consumer stops in the middle of a message', async () => {
    const topic = await topics.topic(['1', '2', '3'].map((id) => anOrder(id)))
    const groupId = group()
    const { inbox, results } = anInbox()
    const inside = gate()
    const finish = gate()
    const consumer = await topics.read(
      topic,
      groupId,
      eachMessage(inbox, async () => {
        inside.open()
        await finish.opened
      }),
    )
    await inside.opened
    const stopped = consumer.stop()
    finish.open()
    await stopped
    expect(results).toEqual(['processed'])
    await topics.stopConsumers()
    await topics.read(
      topic,
      groupId,
      eachMessage(inbox, () => {}),
    )
    await expect.poll(() => topics.committed(topic, groupId), PATIENCE).toEqual([3])
    expect(results.filter((result) => result === 'processed')).toHaveLength(3)
  }, 60_000)

  it.each([
    [{ batchSize: 0 }, /"batchSize" must be a whole number/],
    [{ heartbeatFor: 'long' }, /"heartbeatFor" must be a duration/],
    [{ consumer: {} }, /"consumer" must be a consumer of KafkaJS/],
    [{ key: 'none' }, /"key" must be 'auto', 'require' or a function/],
  ])('refuses the options %j', (options, message) => {
    expect(() => eachBatch(anInbox().inbox, () => {}, options as object)).toThrow(message)
  })
})
