import { KeyMissingError } from '../contract/errors.js'

/** Where the key of a message was found. */
export type KeyKind = 'cloudevents' | 'debezium' | 'amqp' | 'nats' | 'position' | 'custom'

/** What names a message: the same for every delivery of it, and for no other message of its source. */
export interface MessageKey {
  /** Who gave the key: the same key of two sources is two messages. */
  readonly source: string
  readonly key: string
  readonly kind: KeyKind
}

/** A message as its broker's client has it, in the words that the brokers share. */
export interface BrokerMessage {
  /** Headers, or properties, by their names. */
  header(name: string): string | undefined
  /** The body, for events that are structured. */
  readonly body: Uint8Array | string | null | undefined
  /** What it came from: a topic, a stream, a queue. */
  readonly origin: string
  /** Its place in what it came from, where there is one: partition and offset, or a sequence number. */
  readonly position: string | undefined
  /** The message id of AMQP 0-9-1, and the application that gave it. */
  readonly messageId?: string | undefined
  readonly appId?: string | undefined
}

/** How a message gets its key. */
export type KeyOption<Message> =
  /** By what the message says of itself, or else by its position. */
  | 'auto'
  /** By what the message says of itself. One that says nothing is given up. */
  | 'require'
  /** By the application's own rule: a key of the message's origin, or a key and its source. */
  | ((message: Message) => string | { readonly source: string; readonly key: string })

/**
 * Finds the key of a message: CloudEvents' source and id, in headers or in a structured body; else the `id` header of
 * Debezium's outbox events; else the `messageId` of AMQP; else `Nats-Msg-Id`; else the message's position.
 *
 * @throws {KeyMissingError} when there is none.
 * @see https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md#required-attributes source and id together
 *   are unique for each event
 * @see https://debezium.io/documentation/reference/stable/transformations/outbox-event-router.html the `id` header
 */
export function messageKey(message: BrokerMessage, allowsPosition: boolean): MessageKey {
  const { origin, position, messageId, appId } = message
  const event = cloudEvent(message)
  if (event !== undefined) return { ...event, kind: 'cloudevents' }
  const debeziumId = message.header('id')
  if (debeziumId) return { source: origin, key: debeziumId, kind: 'debezium' }
  if (messageId) return { source: appId ?? '', key: messageId, kind: 'amqp' }
  const natsId = message.header('Nats-Msg-Id')
  if (natsId) return { source: origin, key: natsId, kind: 'nats' }
  if (allowsPosition && position !== undefined) return { source: origin, key: position, kind: 'position' }
  throw new KeyMissingError('with the id of the message (CloudEvents, Debezium, AMQP or NATS)')
}

/** The names that the bindings give the attributes of an event: those of Kafka, of AMQP, and of HTTP and NATS. */
const PREFIXES = ['ce_', 'cloudEvents:', 'cloudEvents_', 'ce-']

function cloudEvent(message: BrokerMessage): { readonly source: string; readonly key: string } | undefined {
  for (const prefix of PREFIXES) {
    const key = message.header(`${prefix}id`)
    const source = message.header(`${prefix}source`)
    if (key && source) return { source, key }
  }
  const type = message.header('content-type')
  if (!type?.toLowerCase().startsWith('application/cloudevents+json')) return undefined
  return structuredEvent(message.body)
}

function structuredEvent(
  body: BrokerMessage['body'],
): { readonly source: string; readonly key: string } | undefined {
  try {
    const { id, source } = JSON.parse(Buffer.from(body ?? '').toString()) as Record<string, unknown>
    return typeof id === 'string' && typeof source === 'string' ? { source, key: id } : undefined
  } catch {
    // It says that it is an event, and is none. The handler will find that out as well.
    return undefined
  }
}
