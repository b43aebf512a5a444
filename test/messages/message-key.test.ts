import { describe, expect, it } from 'vitest'
import { type BrokerMessage, messageKey } from '../../src/messages/inbox.js'

function aMessage(
  headers: Readonly<Record<string, string>> = {},
  more: Partial<BrokerMessage> = {},
): BrokerMessage {
  return {
    header: (name) => headers[name],
    body: undefined,
    origin: 'orders',
    position: '0/17',
    ...more,
  }
}

const EVENT = JSON.stringify({ specversion: '1.0', id: 'e-1', source: '/shop', type: 'order.placed' })
const STRUCTURED = { 'content-type': 'application/cloudevents+json; charset=UTF-8' }

describe('messageKey', () => {
  it.each([
    ['in the headers of Kafka', { ce_id: 'e-1', ce_source: '/shop' }],
    ['in the properties of AMQP 1.0', { 'cloudEvents:id': 'e-1', 'cloudEvents:source': '/shop' }],
    [
      'in the properties of AMQP, as some clients spell it',
      { cloudEvents_id: 'e-1', cloudEvents_source: '/shop' },
    ],
    ['in the headers of HTTP and NATS', { 'ce-id': 'e-1', 'ce-source': '/shop' }],
  ])('finds the id and the source of a CloudEvent %s', (_, headers) => {
    expect(messageKey(aMessage(headers), true)).toEqual({ source: '/shop', key: 'e-1', kind: 'cloudevents' })
  })

  it.each([EVENT, Buffer.from(EVENT)])('finds those of a structured CloudEvent', (body) => {
    expect(messageKey(aMessage(STRUCTURED, { body }), true)).toEqual({
      source: '/shop',
      key: 'e-1',
      kind: 'cloudevents',
    })
  })

  it.each([['not json'], ['{"id":1,"source":"/shop"}'], ['null'], [undefined]])(
    'does not take %s for a structured CloudEvent',
    (body) => {
      expect(messageKey(aMessage(STRUCTURED, { body }), true).kind).toBe('position')
    },
  )

  it('takes the first that there is, in the order of what says most', () => {
    const all = { ce_id: 'e-1', ce_source: '/shop', id: 'd-1', 'Nats-Msg-Id': 'n-1' }
    const { ce_id: _, ...withoutEvent } = all
    const { id: __, ...withoutDebezium } = withoutEvent
    const amqp = { messageId: 'a-1', appId: 'billing' }
    expect(messageKey(aMessage(all, amqp), true).kind).toBe('cloudevents')
    expect(messageKey(aMessage(withoutEvent, amqp), true)).toEqual({
      source: 'orders',
      key: 'd-1',
      kind: 'debezium',
    })
    expect(messageKey(aMessage(withoutDebezium, amqp), true)).toEqual({
      source: 'billing',
      key: 'a-1',
      kind: 'amqp',
    })
    expect(messageKey(aMessage(withoutDebezium), true)).toEqual({
      source: 'orders',
      key: 'n-1',
      kind: 'nats',
    })
    expect(messageKey(aMessage(), true)).toEqual({ source: 'orders', key: '0/17', kind: 'position' })
  })

  it('does not take an event without its source for one', () => {
    expect(messageKey(aMessage({ ce_id: 'e-1' }), true).kind).toBe('position')
  })

  it('finds none where the position must not stand for it, or is unknown', () => {
    const missing = expect.objectContaining({ code: 'IDEMPOTENCY_KEY_MISSING' })
    expect(() => messageKey(aMessage(), false)).toThrow(missing)
    expect(() => messageKey(aMessage({}, { position: undefined }), true)).toThrow(missing)
  })
})
