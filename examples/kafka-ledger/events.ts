import { randomUUID } from 'node:crypto'
import type { Kafka, Message } from 'kafkajs'
import { anAccount, type Payment } from './ledger.js'

const AT_ONCE = 1000

/**
 * Produces payment events, as CloudEvents with their attributes in the headers. Some of them are produced twice, as by a
 * service that retries: the same event, at another offset.
 *
 * @returns how many messages that were.
 */
export async function produceEvents(
  kafka: Kafka,
  topic: string,
  { events, duplicates }: { readonly events: number; readonly duplicates: number },
): Promise<number> {
  const messages = Array.from({ length: events }, (_, number) => anEvent(number))
  for (let repeated = 0; repeated < duplicates; repeated += 1) {
    const original = Math.floor((repeated * events) / duplicates)
    // Some time after the first, and in the same partition, since they have the same key.
    messages.splice(
      Math.min(original + 1 + Math.floor(Math.random() * 500), messages.length),
      0,
      anEvent(original),
    )
  }
  const producer = kafka.producer()
  await producer.connect()
  for (let start = 0; start < messages.length; start += AT_ONCE)
    await producer.send({ topic, messages: messages.slice(start, start + AT_ONCE) })
  await producer.disconnect()
  return messages.length
}

const payments = new Map<number, Payment & { readonly id: string }>()

function anEvent(number: number): Message {
  const payment = payments.get(number) ?? {
    id: randomUUID(),
    from: anAccount(),
    to: anAccount(),
    cents: 1 + Math.floor(Math.random() * 10_000),
  }
  payments.set(number, payment)
  const { id, ...value } = payment
  return {
    key: value.from,
    value: JSON.stringify(value),
    headers: { ce_id: id, ce_source: '/payments', ce_specversion: '1.0', ce_type: 'payment.accepted' },
  }
}
