import { describe, expect, it } from 'vitest'
import { KeyInvalidError } from '../../src/contract/errors.js'
import type { Attempt, InboxEvent } from '../../src/messages/inbox.js'
import { createReceiver } from '../../src/messages/receiver.js'
import { memoryStore } from '../../src/stores/memory.js'
import { anInbox, messageEvents } from '../support/inbox-cases.js'

const TOO_LONG = 'x'.repeat(1025)

function receiverWith(key: () => string) {
  const inbox = anInbox(memoryStore())
  const told = messageEvents(inbox)
  const refused: InboxEvent[] = []
  inbox.on((event) => {
    if (event.type === 'message-refused') refused.push(event)
  })
  const receiver = createReceiver<string, Attempt>(inbox, { key })
  const receive = (position: string | undefined, handler: () => void = () => {}) =>
    receiver.receive(
      { raw: 'raw', broker: { header: () => undefined, body: undefined, origin: 'orders', position } },
      handler,
    )
  return { inbox, told, refused, receive }
}

const withoutKey = [
  { what: 'whose key cannot be kept', key: () => TOO_LONG, code: 'IDEMPOTENCY_KEY_INVALID' },
  {
    what: 'whose key cannot be found',
    key: (): string => {
      throw new KeyInvalidError('there is none')
    },
    code: 'IDEMPOTENCY_KEY_INVALID',
  },
]

describe.each(withoutKey)('createReceiver › of a message $what', ({ key, code }) => {
  it('gives it up by its place', async () => {
    const { told, refused, receive } = receiverWith(key)
    expect(await receive('7')).toEqual({ type: 'acknowledge', result: 'dead' })
    const message = { source: 'orders', key: '7', keyKind: 'position' }
    expect(told).toMatchObject([{ type: 'message-dead', message, error: { code } }, { type: 'message' }])
    expect(refused).toEqual([])
  })

  it('refuses it where it has no place, and reports it', async () => {
    const { inbox, refused, receive } = receiverWith(key)
    expect(await receive(undefined)).toEqual({ type: 'refuse' })
    expect(refused).toMatchObject([
      { type: 'message-refused', consumer: inbox.consumer, source: 'orders', error: { code } },
    ])
  })
})

describe('createReceiver', () => {
  it('takes what a handler says of the key of something else for a failed attempt', async () => {
    const { told, receive } = receiverWith(() => 'a key')
    const error = new KeyInvalidError('of a call')
    const disposition = await receive('7', () => {
      throw error
    })
    expect(disposition).toMatchObject({ type: 'retry', error })
    expect(told).toMatchObject([{ type: 'message-failed', attempt: 1 }])
  })
})
