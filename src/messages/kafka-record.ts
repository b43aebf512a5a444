import type { BrokerMessage } from './message-key.js'
import type { Incoming } from './receiver.js'

/** A header as clients of Kafka have it: it may come several times. */
export type KafkaHeader = Buffer | string | readonly (Buffer | string)[] | undefined

/** The part of a message that is read here, as KafkaJS has it, and whoever follows it. */
export interface KafkaMessage {
  readonly key?: Buffer | string | null
  readonly value: Buffer | null
  readonly headers?: { readonly [name: string]: KafkaHeader } | undefined
  readonly offset: string
  readonly timestamp: string
}

/** A message with its place. */
export interface KafkaDelivery<M extends KafkaMessage = KafkaMessage> {
  readonly topic: string
  readonly partition: number
  readonly message: M
}

/** A message of Kafka as an inbox takes it. */
export function incomingFrom<D extends KafkaDelivery>(delivery: D): Incoming<D> {
  const { topic, partition, message } = delivery
  const { offset, timestamp, headers, value } = message
  const broker: BrokerMessage = {
    header: (name) => headerText(headers?.[name]),
    body: value,
    origin: topic,
    position: `${partition}/${offset}`,
  }
  const position = { topic, partition, offset: BigInt(offset), timestampMs: Number(timestamp) }
  return { raw: delivery, broker, position }
}

/** The last of several says what the header is. */
function headerText(header: KafkaHeader): string | undefined {
  const last = Array.isArray(header) ? header.at(-1) : (header as Buffer | string | undefined)
  return last?.toString()
}
