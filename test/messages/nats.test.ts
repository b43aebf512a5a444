import { randomUUID } from 'node:crypto'
import {
  type ConsumerConfig,
  type JetStreamManager,
  type JsMsg,
  jetstream,
  jetstreamManager,
} from '@nats-io/jetstream'
import { connect, headers, type NatsConnection, nanos } from '@nats-io/transport-node'
import { afterAll, afterEach, beforeAll, describe, expect, expectTypeOf, it } from 'vitest'
import { highWatermark } from '../../src/messages/inbox.js'
import { consume } from '../../src/messages/nats.js'
import { gate } from '../support/gate.js'
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

const eventually = { timeout: 20_000, interval: 20 }
const NAME = 'ledger'

describeWith(['nats', 'postgres'], 'consume of oncekey/nats', () => {
  let connection: NatsConnection
  let manager: JetStreamManager
  const consuming: NatsConnection[] = []
  const streams: string[] = []

  beforeAll(async () => {
    await setUpQueueCases()
    connection = await connect({ servers: brokerUrl('nats') })
    manager = await jetstreamManager(connection)
  })
  afterEach(async () => {
    await closeConnections()
    for (const stream of streams.splice(0)) await manager.streams.delete(stream)
  })
  afterAll(async () => {
    await connection.close()
    await tearDownQueueCases()
  })

  async function closeConnections(): Promise<void> {
    for (const open of consuming.splice(0)) {
      // What was said before counts.
      if (!open.isClosed()) await open.flush()
      await open.close()
    }
  }

  async function aStream(
    config: Partial<ConsumerConfig> = {},
    name = `orders-${randomUUID()}`,
  ): Promise<string> {
    await manager.streams.add({ name, subjects: [`${name}.*`], duplicate_window: nanos(100) })
    await manager.consumers.add(name, {
      durable_name: NAME,
      ack_policy: 'explicit',
      ack_wait: nanos(1000),
      ...config,
    })
    streams.push(name)
    return name
  }

  async function aConsumer(stream: string) {
    const open = await connect({ servers: brokerUrl('nats') })
    consuming.push(open)
    return jetstream(open).consumers.get(stream, NAME)
  }

  async function publish(stream: string, body: string, named: Record<string, string> = {}): Promise<void> {
    const all = headers()
    for (const [name, value] of Object.entries(named)) all.set(name, value)
    // The stream itself keeps out what comes again too soon.
    await expect
      .poll(
        async () => (await jetstream(connection).publish(`${stream}.paid`, body, { headers: all })).duplicate,
        eventually,
      )
      .toBe(false)
  }

  const left = async (stream: string): Promise<number> => {
    // What the server calls pending may be one too many while a message comes again.
    const { num_ack_pending: out, delivered } = await manager.consumers.info(stream, NAME)
    const { state } = await manager.streams.info(stream)
    return out + state.last_seq - delivered.stream_seq
  }

  const byBody =
    (handler: QueueHandler) =>
    (message: JsMsg, context: Parameters<QueueHandler>[1]): Promise<void> =>
      handler(message.string(), context)

  async function newQueue(order: 'skip' | 'block'): Promise<Queue> {
    const stream = await aStream(order === 'block' ? { max_ack_pending: 1 } : {})
    return {
      source: stream,
      publish: (body, id = randomUUID()) => publish(stream, body, { 'Nats-Msg-Id': id }),
      consume: async (inbox, handler, options) =>
        consume(await aConsumer(stream), inbox, byBody(handler), { concurrency: 4, ...options }),
      async cutOff() {
        await closeConnections()
        return left(stream)
      },
    }
  }

  it.each(QUEUE_CASES)('$name', ({ run }) => run(newQueue))

  it('takes the key from CloudEvents, from the id of the message, or from its place', async () => {
    const stream = await aStream()
    const { inbox, events } = aQueueInbox()
    await publish(stream, 'a', { 'Nats-Msg-Id': 'm-1', 'ce-id': 'e-1', 'ce-source': '/shop' })
    const structured = JSON.stringify({ id: 'e-2', source: '/shop', specversion: '1.0' })
    await publish(stream, structured, { 'Content-Type': 'application/cloudevents+json; charset=utf-8' })
    await publish(stream, 'c', { 'Nats-Msg-Id': 'm-1' })
    await publish(stream, 'd')
    const consumption = await consume(await aConsumer(stream), inbox, (message, { tx }) => {
      expectTypeOf(message).toEqualTypeOf<JsMsg>()
      expectTypeOf(tx.query).toBeFunction()
    })
    const named = () =>
      events.flatMap((event) =>
        event.type === 'message'
          ? [[event.message.source, event.message.key, event.message.keyKind].join(' ')]
          : [],
      )
    await expect.poll(() => named().length, eventually).toBe(4)
    await consumption.stop()
    expect(named()).toEqual([
      '/shop e-1 cloudevents',
      '/shop e-2 cloudevents',
      `${stream} m-1 nats`,
      expect.stringMatching(`^${stream} 4@\\d{4}-\\d\\d-\\d\\dT[0-9:.]+Z position$`),
    ])
  })

  it('takes the messages of a stream that was made again for new ones', async () => {
    const stream = await aStream()
    const { inbox, results } = aQueueInbox()
    for (let round = 1; round <= 2; round += 1) {
      await publish(stream, 'no id')
      const consumption = await consume(await aConsumer(stream), inbox, () => {})
      await expect.poll(() => results.length, eventually).toBe(round)
      await consumption.stop()
      await closeConnections()
      await manager.streams.delete(stream)
      streams.length = 0
      await aStream({}, stream)
    }
    expect(results).toEqual(['processed', 'processed'])
  })

  it("gives up a message without an id where one is required, by the message's place", async () => {
    const stream = await aStream()
    const { inbox, results } = aQueueInbox()
    await publish(stream, 'no id')
    const consumption = await consume(await aConsumer(stream), inbox, () => expect.fail(), {
      key: 'require',
    })
    await expect.poll(() => results, eventually).toEqual(['dead'])
    await consumption.stop()
    await expect.poll(() => left(stream), eventually).toBe(0)
  })

  it('says that it is working for longer than the server would wait', async () => {
    const stream = await aStream({ ack_wait: nanos(500) })
    const { inbox, results } = aQueueInbox()
    const body = randomUUID()
    const finish = gate()
    await publish(stream, body)
    const consumption = await consume(
      await aConsumer(stream),
      inbox,
      async (message, context) => {
        await apply(message.string(), context)
        await finish.opened
      },
      { concurrency: 2 },
    )
    // The server owns this clock.
    await new Promise((resolve) => setTimeout(resolve, 1600))
    const { num_redelivered: redelivered } = await manager.consumers.info(stream, NAME)
    finish.open()
    await expect.poll(() => results.at(-1), eventually).toBe('processed')
    await consumption.stop()
    expect(redelivered).toBe(0)
    expect(results).toEqual(['processed'])
    expect(await effectsOf(body)).toBe(1)
  })

  it('says so only until a limit, and applies what is delivered again meanwhile once', async () => {
    const stream = await aStream({ ack_wait: nanos(500) })
    const { inbox, results } = aQueueInbox()
    const body = randomUUID()
    const finish = gate()
    await publish(stream, body)
    const consumption = await consume(
      await aConsumer(stream),
      inbox,
      async (message, context) => {
        await apply(message.string(), context)
        await finish.opened
      },
      { concurrency: 2, workingFor: 0 },
    )
    await expect.poll(() => results, eventually).toContain('in-progress')
    finish.open()
    await expect.poll(() => results, eventually).toContain('processed')
    await consumption.stop()
    expect(await effectsOf(body)).toBe(1)
    expect(new Set(results)).not.toContain('dead')
  })

  it('has as many messages in hand as it is told, and no more', async () => {
    const stream = await aStream()
    const { inbox, results } = aQueueInbox()
    for (let n = 0; n < 6; n += 1) await publish(stream, `${n}`)
    const inside: string[] = []
    const finish = gate()
    const consumption = await consume(
      await aConsumer(stream),
      inbox,
      async (message) => {
        inside.push(message.string())
        await finish.opened
      },
      { concurrency: 3 },
    )
    await expect.poll(() => inside.length, eventually).toBe(3)
    const { num_ack_pending: delivered } = await manager.consumers.info(stream, NAME)
    expect(delivered).toBe(3)
    finish.open()
    await expect.poll(() => results.length, eventually).toBe(6)
    await consumption.stop()
    expect(inside.toSorted()).toEqual(['0', '1', '2', '3', '4', '5'])
  })

  it('processes in order, one after the other, unless it is told otherwise', async () => {
    const stream = await aStream()
    const { inbox, results } = aQueueInbox()
    const order: string[] = []
    for (let n = 0; n < 5; n += 1) await publish(stream, `${n}`)
    const consumption = await consume(await aConsumer(stream), inbox, async (message, { tx }) => {
      order.push(`begin ${message.string()}`)
      await tx.query('select 1')
      order.push(`end ${message.string()}`)
    })
    await expect.poll(() => results.length, eventually).toBe(5)
    await consumption.stop()
    expect(order).toEqual([0, 1, 2, 3, 4].flatMap((n) => [`begin ${n}`, `end ${n}`]))
  })

  it('ends when its consumer is deleted, and when its connection is closed', async () => {
    const stream = await aStream()
    const { inbox } = aQueueInbox()
    const deleted = await consume(await aConsumer(stream), inbox, () => {})
    await expect
      .poll(async () => (await manager.consumers.info(stream, NAME)).num_waiting, eventually)
      .toBe(1)
    await manager.consumers.delete(stream, NAME)
    expect(await deleted.ended).toMatchObject({ reason: 'lost', error: expect.any(Error) })

    const other = await aStream()
    const closed = await consume(await aConsumer(other), inbox, () => {})
    await consuming.at(-1)?.close()
    expect(await closed.ended).toMatchObject({ reason: 'lost', error: expect.any(Error) })
    await closed.stop()
  })

  describe('refuses', () => {
    const unfit = [
      { config: { ack_policy: 'all' }, options: {}, says: 'ack_policy' },
      { config: { ack_policy: 'none', ack_wait: 0 }, options: {}, says: 'ack_policy' },
      { config: { max_deliver: 3 }, options: {}, says: 'max_deliver 3' },
      { config: { max_deliver: 100, max_ack_pending: 1 }, options: { order: 'block' }, says: 'max_deliver' },
      { config: {}, options: { order: 'block' }, says: 'max_ack_pending 1000' },
    ] as const
    it.each(unfit)(
      'a consumer with $config and an inbox with $options',
      async ({ config, options, says }) => {
        const stream = await aStream(config)
        const { inbox } = aQueueInbox(options)
        await expect(consume(await aConsumer(stream), inbox, () => {})).rejects.toThrow(says)
      },
    )

    it('options that it does not know, and a high watermark', async () => {
      const stream = await aStream({ max_deliver: 4 })
      const consumer = await aConsumer(stream)
      const { inbox } = aQueueInbox()
      await expect(consume(consumer, inbox, () => {}, { concurrency: 0 })).rejects.toThrow('"concurrency"')
      const marked = aQueueInbox({ strategy: highWatermark() })
      await expect(consume(consumer, marked.inbox, () => {})).rejects.toThrow('highWatermark()')
      await (await consume(consumer, inbox, () => {})).stop()
    })
  })
})
