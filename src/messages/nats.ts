import { z } from 'zod'
import type { Duration } from '../contract/duration.js'
import { OptionsError } from '../contract/errors.js'
import { duration, parseOptions, wholeNumber } from '../core/parse-options.js'
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
import { createReceiver } from './receiver.js'

export type { Consumption, ConsumptionEnd } from './consumption.js'

/** What is used of a message of `@nats-io/jetstream`. */
export interface NatsMessage {
  readonly data: Uint8Array
  readonly headers?: { get(name: string): string } | undefined
  readonly seq: number
  /** When the stream took it, as an ISO date. */
  readonly timestamp: string
  readonly info: { readonly stream: string; readonly deliveryCount: number }
  ack(): void
  nak(delayMs?: number): void
  working(): void
  term(reason?: string): void
}

/** What is used of a pull consumer of `@nats-io/jetstream`. */
export interface NatsConsumer<Raw extends NatsMessage> {
  info(): Promise<NatsConsumerInfo>
  consume(options: {
    readonly max_messages: number
    readonly abort_on_missing_resource: boolean
  }): Promise<AsyncIterable<Raw> & { close(): Promise<unknown> }>
}

/** What is used of a consumer's settings. Its times are in nanoseconds. */
export interface NatsConsumerInfo {
  readonly name: string
  readonly config: {
    readonly ack_policy?: string
    readonly ack_wait?: number
    readonly backoff?: readonly number[]
    readonly max_deliver?: number
    readonly max_ack_pending?: number
  }
}

/** How a consumer of JetStream is consumed. */
export interface NatsConsumeOptions<Raw> extends ConsumeOptions<Raw> {
  /**
   * How many messages are in hand at once. With 1 they are processed in their order, but for those that fail: what is behind
   * them goes on while they wait. At most the connections of your pool.
   *
   * @default 1
   */
  readonly concurrency?: number

  /**
   * How long the server is told that a message is being worked on, so that it does not deliver it again. It is told three
   * times in each `ack_wait`.
   *
   * @default the `maxRun` of the inbox
   */
  readonly workingFor?: Duration
}

const WHERE = 'consume'

const schema = z.strictObject({
  ...consumeShape,
  concurrency: wholeNumber(1, 1000).optional(),
  workingFor: duration({ min: 0, max: '24d' }).optional(),
})

/**
 * Consumes a pull consumer of NATS JetStream into an inbox. A message is acknowledged after its effect is committed, and
 * never before.
 *
 * @throws {OptionsError} naming the option that is wrong, or the setting of the consumer.
 */
export async function consume<Raw extends NatsMessage, Context extends Attempt>(
  consumer: NatsConsumer<Raw>,
  inbox: Inbox<Context, unknown>,
  handler: (message: Raw, context: Context) => Promise<void> | void,
  options: NatsConsumeOptions<NoInfer<Raw>> = {},
): Promise<Consumption> {
  const { drainTimeout, concurrency = 1, workingFor, ...reading } = options
  const parsed = parseOptions(schema, options, WHERE)
  const workingForMs = parsed.workingFor ?? inbox.maxRunMs
  refuseWatermark(WHERE, inbox)
  const info = await consumer.info()
  refuseUnfit(info, inbox)
  const beatMs = leastAckWaitMs(info) / 3
  const receiver = createReceiver<Raw, Context>(inbox, reading)
  const hand = openHand({ drainMs: parsed.drainTimeout ?? DRAIN_MS, leave: async () => {} })

  async function work(): Promise<void> {
    while (!hand.ending.aborted) {
      const message = await next()
      if (message !== undefined) await take(message)
      else if (!hand.ending.aborted) throw new Error(`The connection of the consumer ${info.name} was closed`)
    }
  }

  /** One message, and no more: what waits in a buffer here would be delivered again when its time is up. */
  async function next(): Promise<Raw | undefined> {
    const messages = await consumer.consume({ max_messages: 1, abort_on_missing_resource: true })
    const close = (): void => void messages.close()
    hand.ending.addEventListener('abort', close, { once: true })
    if (hand.ending.aborted) close()
    try {
      for await (const message of messages) return message
      return undefined
    } finally {
      hand.ending.removeEventListener('abort', close)
    }
  }

  async function take(message: Raw): Promise<void> {
    // It came between the wish to stop and the end of the pull.
    if (hand.ending.aborted) return message.nak()
    const { stream, deliveryCount } = message.info
    const heart = setInterval(() => beat(message), beatMs)
    const limit = setTimeout(() => clearInterval(heart), workingForMs)
    try {
      const incoming = { raw: message, broker: brokerMessage(message, stream), deliveryCount }
      const disposition = await receiver.receive({ ...incoming, signal: hand.signal }, handler)
      // An acknowledgement that is lost leads to a duplicate, which the inbox knows: none is worth a round trip.
      if (disposition.type === 'acknowledge') message.ack()
      else if (disposition.type === 'refuse') message.term('nothing names it')
      // The server takes whole numbers only.
      else message.nak(Math.ceil(disposition.delayMs))
    } finally {
      clearInterval(heart)
      clearTimeout(limit)
    }
  }

  function beat(message: Raw): void {
    try {
      message.working()
    } catch (error) {
      // The connection is gone. The server delivers the message again, and the inbox knows whether it is in work.
      hand.lose(error)
    }
  }

  for (let worker = 0; worker < concurrency; worker += 1) hand.hold(work)
  return hand.consumption
}

/**
 * Refuses a consumer that would lose messages.
 *
 * @see https://docs.nats.io/nats-concepts/jetstream/consumers
 */
function refuseUnfit(
  { name, config }: NatsConsumerInfo,
  { order, maxAttempts }: Pick<Inbox, 'order' | 'maxAttempts'>,
): void {
  const { ack_policy: policy, max_deliver: most = -1, max_ack_pending: pending } = config
  const refuse = (what: string): never => {
    throw new OptionsError(`${WHERE}: the consumer ${name} ${what}`)
  }
  if (policy !== 'explicit')
    refuse(`has ack_policy "${policy}", which acknowledges messages that are not done. It must be "explicit"`)
  if (most > 0 && most <= maxAttempts)
    refuse(
      `has max_deliver ${most}: the server would drop messages before the inbox gives them up after ${maxAttempts} attempts. Leave it out`,
    )
  if (order !== 'block') return
  if (most > 0)
    refuse(
      `has max_deliver ${most}: with order "block" a dead message is delivered until it is redriven. Leave it out`,
    )
  if (pending !== 1)
    refuse(
      `has max_ack_pending ${pending}: with order "block" it must be 1, so that nothing overtakes a message`,
    )
}

const NANOSECONDS = 1_000_000

/** The server's own default. */
const ACK_WAIT_MS = 30_000

function leastAckWaitMs({ config }: NatsConsumerInfo): number {
  const waits = [config.ack_wait, ...(config.backoff ?? [])]
  const waitsMs = waits.flatMap((wait) => (wait === undefined || wait <= 0 ? [] : [wait / NANOSECONDS]))
  return waitsMs.length > 0 ? Math.min(...waitsMs) : ACK_WAIT_MS
}

function brokerMessage({ headers, data, seq, timestamp }: NatsMessage, stream: string): BrokerMessage {
  return {
    // An absent header is empty. Their names are case-sensitive here, and this one is written either way.
    header: (name) =>
      headers?.get(name) || (name === 'content-type' && headers?.get('Content-Type')) || undefined,
    body: data,
    origin: stream,
    // A stream that is made again begins with the same numbers, and not at the same time.
    position: `${seq}@${timestamp}`,
  }
}
