import { z } from 'zod'
import { parseOptions } from '../core/parse-options.js'
import {
  type ConsumeOptions,
  type Consumption,
  consumeShape,
  DRAIN_MS,
  openHand,
  refuseWatermark,
} from './consumption.js'
import type { Inbox } from './inbox.js'
import type { BrokerMessage } from './message-key.js'
import type { Attempt } from './message-processing.js'
import { createReceiver, type Incoming } from './receiver.js'

export type { ConsumeOptions, Consumption, ConsumptionEnd } from './consumption.js'

/** What is used of a message of `amqplib`. */
export interface AmqpMessage {
  readonly content: Uint8Array
  readonly fields: { readonly redelivered: boolean }
  readonly properties: {
    readonly headers?: Readonly<Record<string, unknown>> | undefined
    readonly contentType?: unknown
    readonly messageId?: unknown
    readonly appId?: unknown
  }
}

/** What is used of a channel of `amqplib`, a confirm channel or not. */
export interface AmqpChannel<Raw extends AmqpMessage> {
  prefetch(count: number): Promise<unknown>
  consume(queue: string, onMessage: (message: Raw | null) => void): Promise<{ readonly consumerTag: string }>
  cancel(consumerTag: string): Promise<unknown>
  ack(message: NoInfer<Raw>): void
  nack(message: NoInfer<Raw>, allUpTo: boolean, requeue: boolean): void
  on(event: 'close', listener: () => void): unknown
  off(event: 'close', listener: () => void): unknown
}

const WHERE = 'consume'

const schema = z.strictObject(consumeShape)

/**
 * Consumes a queue of RabbitMQ into an inbox. A message is acknowledged after its effect is committed, and never before.
 *
 * How many messages are in hand at once is the channel's `prefetch`, which is unlimited unless you set it: set it to at most
 * the connections of your pool.
 *
 * `order: 'block'` needs a classic queue with a single active consumer: it puts a message that is returned back in its place.
 * The prefetch is set to 1 then.
 *
 * @throws {OptionsError} naming the option that is wrong.
 */
export async function consume<Raw extends AmqpMessage, Context extends Attempt>(
  channel: AmqpChannel<Raw>,
  queue: string,
  inbox: Inbox<Context, unknown>,
  handler: (message: Raw, context: Context) => Promise<void> | void,
  options: ConsumeOptions<NoInfer<Raw>> = {},
): Promise<Consumption> {
  const { drainTimeout: drainMs = DRAIN_MS } = parseOptions(schema, options, WHERE)
  refuseWatermark(WHERE, inbox)
  const receiver = createReceiver<Raw, Context>(inbox, options)
  let consumerTag = ''
  const hand = openHand({ drainMs, leave: () => channel.cancel(consumerTag) })
  let isClosed = false

  async function take(message: Raw): Promise<void> {
    // It came between the wish to stop and the answer to that.
    if (hand.ending.aborted) return settle(() => channel.nack(message, false, true))
    const disposition = await receiver.receive(incomingOf(message, queue, hand.signal), handler)
    if (disposition.type === 'acknowledge') return settle(() => channel.ack(message))
    if (disposition.type === 'refuse') return settle(() => channel.nack(message, false, false))
    // AMQP has no delay of its own. The message keeps its place in the prefetch while it waits here.
    await hand.pause(disposition.delayMs)
    settle(() => channel.nack(message, false, true))
  }

  /** On a closed channel there is nothing to say: the broker has taken its messages back, and delivers them again. */
  function settle(say: () => void): void {
    if (isClosed) return
    try {
      say()
    } catch (error) {
      // It is closing, and has not said so yet.
      hand.lose(error)
    }
  }

  const onClose = (): void => {
    isClosed = true
    hand.lose(new Error(`The channel of the queue ${queue} was closed`))
  }
  channel.on('close', onClose)
  void hand.consumption.ended.then(() => channel.off('close', onClose))
  try {
    // Otherwise the next one would be here before one that fails is back in its place.
    if (inbox.order === 'block') await channel.prefetch(1)
    const consumer = await channel.consume(queue, (message) => {
      if (message === null)
        hand.lose(new Error(`RabbitMQ has cancelled the consumer of the queue ${queue}: was it deleted?`))
      else hand.hold(() => take(message))
    })
    consumerTag = consumer.consumerTag
  } catch (error) {
    hand.lose(error)
    throw error
  }
  return hand.consumption
}

function incomingOf<Raw extends AmqpMessage>(raw: Raw, queue: string, signal: AbortSignal): Incoming<Raw> {
  const { redelivered } = raw.fields
  // Quorum queues count, though not every return. A classic one only knows whether.
  const returns = raw.properties.headers?.['x-delivery-count']
  const counted = typeof returns === 'number' ? returns + 1 : 1
  return {
    raw,
    broker: brokerMessage(raw, queue),
    deliveryCount: redelivered ? Math.max(counted, 2) : counted,
    mayHaveCrashed: redelivered,
    signal,
  }
}

function brokerMessage({ content, properties }: AmqpMessage, queue: string): BrokerMessage {
  const { headers, contentType, messageId, appId } = properties
  return {
    header: (name) => text(name === 'content-type' ? contentType : headers?.[name]),
    body: content,
    origin: queue,
    position: undefined,
    messageId: text(messageId),
    appId: text(appId),
  }
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}
