import { randomUUID } from 'node:crypto'
import { type Channel, type ChannelModel, type ConsumeMessage, connect } from 'amqplib'
import { afterAll, afterEach, beforeAll, describe, expect, expectTypeOf, it } from 'vitest'
import { consume } from '../../src/messages/amqplib.js'
import { highWatermark } from '../../src/messages/inbox.js'
import {
  apply,
  aQueueInbox,
  effectsOf,
  QUEUE_CASES,
  type Queue,
  type QueueHandler,
  setUpQueueCases,
  tearDownQueueCases,
} from '../support/queue-cases.js'
import { brokerUrl, describeWith } from '../support/services.js'

describeWith(['rabbitmq', 'postgres'], 'consume of oncekey/amqplib', () => {
  let connection: ChannelModel
  let publisher: Awaited<ReturnType<ChannelModel['createConfirmChannel']>>
  const channels: Channel[] = []
  const queues: string[] = []

  beforeAll(async () => {
    await setUpQueueCases()
    connection = await connect(brokerUrl('rabbitmq'))
    publisher = await connection.createConfirmChannel()
  })
  afterEach(async () => {
    await closeChannels()
    for (const queue of queues.splice(0)) await publisher.deleteQueue(queue)
  })
  afterAll(async () => {
    await connection.close()
    await tearDownQueueCases()
  })

  async function aChannel(prefetch: number): Promise<Channel> {
    const channel = await connection.createChannel()
    await channel.prefetch(prefetch)
    channels.push(channel)
    return channel
  }

  async function closeChannels(): Promise<void> {
    for (const channel of channels.splice(0)) await channel.close()
  }

  async function aQueue(args: Readonly<Record<string, unknown>> = {}): Promise<string> {
    const queue = `orders-${randomUUID()}`
    await publisher.assertQueue(queue, { durable: true, arguments: args })
    queues.push(queue)
    return queue
  }

  async function publish(
    queue: string,
    body: string,
    options: Parameters<Channel['publish']>[3] = {},
  ): Promise<void> {
    publisher.sendToQueue(queue, Buffer.from(body), { persistent: true, ...options })
    await publisher.waitForConfirms()
  }

  const ready = async (queue: string): Promise<number> => (await publisher.checkQueue(queue)).messageCount

  const byBody =
    (handler: QueueHandler) =>
    ({ content }: ConsumeMessage, context: Parameters<QueueHandler>[1]): Promise<void> =>
      handler(content.toString(), context)

  async function newQueue(args: Readonly<Record<string, unknown>>): Promise<Queue> {
    const queue = await aQueue(args)
    return {
      source: '',
      publish: (body, id = randomUUID()) => publish(queue, body, { messageId: id }),
      consume: async (inbox, handler, options) =>
        consume(await aChannel(4), queue, inbox, byBody(handler), options),
      async cutOff() {
        await closeChannels()
        return ready(queue)
      },
    }
  }

  describe('from a classic queue', () => {
    it.each(QUEUE_CASES)('$name', ({ run }) => run(() => newQueue({})))
  })
  describe('from a quorum queue', () => {
    // It puts what is returned behind all others, or gives it up after so many returns.
    const cases = QUEUE_CASES.filter(({ name }) => !name.startsWith('holds back'))
    it.each(cases)('$name', ({ run }) => run(() => newQueue({ 'x-queue-type': 'quorum' })))
  })

  it('takes the key from CloudEvents, from the message id and its application, or from where it is told', async () => {
    const queue = await aQueue()
    const { inbox, events } = aQueueInbox()
    await publish(queue, 'a', { messageId: 'm-1', appId: 'shop' })
    await publish(queue, 'b', {
      messageId: 'm-2',
      headers: { 'cloudEvents:id': 'e-1', 'cloudEvents:source': '/shop' },
    })
    const structured = JSON.stringify({ id: 'e-2', source: '/shop', specversion: '1.0' })
    await publish(queue, structured, { contentType: 'application/cloudevents+json' })
    const channel = await aChannel(1)
    const consumption = await consume(channel, queue, inbox, (message, { tx }) => {
      expectTypeOf(message).toEqualTypeOf<ConsumeMessage>()
      expectTypeOf(tx.query).toBeFunction()
    })
    const named = () =>
      events.flatMap((event) =>
        event.type === 'message'
          ? [[event.message.source, event.message.key, event.message.keyKind].join(' ')]
          : [],
      )
    await expect
      .poll(named, { timeout: 20_000 })
      .toEqual(['shop m-1 amqp', '/shop e-1 cloudevents', '/shop e-2 cloudevents'])
    await consumption.stop()

    await publish(queue, 'c', { headers: { order: 'o-1' } })
    const own = await consume(channel, queue, inbox, () => {}, {
      key: ({ properties }) => ({ source: 'orders', key: String(properties.headers?.order) }),
    })
    await expect.poll(() => named().at(-1), { timeout: 20_000 }).toBe('orders o-1 custom')
    await own.stop()
  })

  it('leaves a message that nothing names to the dead letter exchange, and reports it', async () => {
    const dead = await aQueue()
    const queue = await aQueue({ 'x-dead-letter-exchange': '', 'x-dead-letter-routing-key': dead })
    const { inbox, events } = aQueueInbox()
    await publish(queue, 'nameless')
    const body = randomUUID()
    await publish(queue, body, { messageId: body })
    const consumption = await consume(await aChannel(2), queue, inbox, byBody(apply))
    await expect.poll(() => ready(dead), { timeout: 20_000 }).toBe(1)
    await expect.poll(() => effectsOf(body), { timeout: 20_000 }).toBe(1)
    await consumption.stop()
    const refused = events.filter(({ type }) => type === 'message-refused')
    expect(refused).toMatchObject([{ source: queue, error: { code: 'IDEMPOTENCY_KEY_MISSING' } }])
    await closeChannels()
    expect([await ready(queue), await ready(dead)]).toEqual([0, 1])
  })

  it('ends when its queue is deleted', async () => {
    const queue = await aQueue()
    const { inbox } = aQueueInbox()
    const consumption = await consume(await aChannel(1), queue, inbox, () => {})
    await publisher.deleteQueue(queue)
    expect(await consumption.ended).toMatchObject({
      reason: 'lost',
      error: { message: expect.stringContaining(queue) },
    })
    await consumption.stop()
  })

  it('warns of nothing with many messages in hand', async () => {
    const queue = await aQueue()
    const { inbox, results } = aQueueInbox()
    const warnings: Error[] = []
    const onWarning = (warning: Error): void => void warnings.push(warning)
    process.on('warning', onWarning)
    for (let n = 0; n < 40; n += 1) await publish(queue, 'many', { messageId: randomUUID() })
    const consumption = await consume(await aChannel(40), queue, inbox, () => {})
    await expect.poll(() => results.length, { timeout: 20_000 }).toBe(40)
    await consumption.stop()
    process.off('warning', onWarning)
    expect(warnings).toEqual([])
  })

  it('refuses what it cannot do', async () => {
    const { inbox } = aQueueInbox()
    const marked = aQueueInbox({ strategy: highWatermark() })
    const channel = await aChannel(1)
    await expect(consume(channel, 'any', marked.inbox, () => {})).rejects.toThrow('highWatermark()')
    await expect(consume(channel, 'any', inbox, () => {}, { key: 'none' as 'auto' })).rejects.toThrow('"key"')
    channels.length = 0
    const missing = await connection.createChannel()
    missing.on('error', () => {})
    await expect(consume(missing, `no-${randomUUID()}`, inbox, () => {})).rejects.toThrow('NOT_FOUND')
    await channel.close()
  })
})
