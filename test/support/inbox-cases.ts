import { randomUUID } from 'node:crypto'
import { expect } from 'vitest'
import { MessageRejectedError } from '../../src/contract/errors.js'
import type { IdempotencyStore } from '../../src/contract/store.js'
import {
  createInbox,
  type DeadMessage,
  type DyingMessage,
  type Inbox,
  type InboxEvent,
  type InboxOptions,
  type Message,
} from '../../src/messages/inbox.js'
import { gate } from './gate.js'

/** What holds for every inbox, whatever keeps its messages. */
export interface InboxCase {
  readonly name: string
  run(store: IdempotencyStore): Promise<void>
}

/** A message that no other test has. */
export function aMessage(more: Partial<Message> = {}): Message {
  return { source: 'payments', key: randomUUID(), ...more }
}

/** An inbox of a consumer that no other test has. */
export function anInbox(store: IdempotencyStore, options: Partial<InboxOptions> = {}): Inbox {
  return createInbox({ store, consumer: `ledger-${randomUUID()}`, sweep: false, ...options })
}

/** Collects what an inbox reports of its messages. */
export function messageEvents(inbox: Inbox): InboxEvent[] {
  const events: InboxEvent[] = []
  inbox.on((event) => {
    if ('message' in event && typeof event.message === 'object') events.push(event)
  })
  return events
}

/** All dead messages, in the order of their keys. */
export async function deadOf(inbox: Inbox, source?: string) {
  const dead: DeadMessage[] = []
  for await (const message of inbox.listDead(source === undefined ? {} : { source })) dead.push(message)
  return dead.toSorted((one, other) => one.key.localeCompare(other.key))
}

async function failing(): Promise<never> {
  throw new Error('no such account')
}

export const INBOX_CASES: readonly InboxCase[] = [
  {
    name: 'processes a message once, and knows it again',
    async run(store) {
      const inbox = anInbox(store)
      const message = aMessage()
      const attempts: number[] = []
      const handler = ({ attempt }: { attempt: number }): void => {
        attempts.push(attempt)
      }
      expect(await inbox.processOnce(message, handler)).toBe('processed')
      expect(await inbox.processOnce(message, handler)).toBe('duplicate')
      expect(attempts).toEqual([1])
    },
  },
  {
    name: 'keeps consumers, sources and namespaces apart',
    async run(store) {
      const { key } = aMessage()
      const consumer = `c-${randomUUID()}`
      const first = createInbox({ store, consumer, sweep: false })
      const second = createInbox({ store, consumer: `${consumer}-2`, sweep: false })
      const third = createInbox({ store, consumer, namespace: 'other', sweep: false })
      const results = []
      for (const inbox of [first, second, third])
        for (const source of ['a', 'b']) results.push(await inbox.processOnce({ key, source }, () => {}))
      expect(results).toEqual(Array.from({ length: 6 }, () => 'processed'))
      expect(await first.processOnce({ key, source: 'a' }, () => {})).toBe('duplicate')
    },
  },
  {
    name: 'answers in-progress while somebody else is at a message',
    async run(store) {
      const inbox = anInbox(store, store.inbox && { lockTimeout: '50ms' })
      const message = aMessage()
      const inside = gate()
      const finish = gate()
      let runs = 0
      const first = inbox.processOnce(message, async () => {
        runs += 1
        inside.open()
        await finish.opened
      })
      await inside.opened
      expect(
        await inbox.processOnce(message, () => {
          runs += 1
        }),
      ).toBe('in-progress')
      finish.open()
      expect(await first).toBe('processed')
      expect(
        await inbox.processOnce(message, () => {
          runs += 1
        }),
      ).toBe('duplicate')
      expect(runs).toBe(1)
    },
  },
  {
    name: 'answers in-progress for a batch by what may be acknowledged, and no more',
    async run(store) {
      const inbox = anInbox(store, store.inbox && { lockTimeout: '50ms' })
      const [one, held, three] = [aMessage(), aMessage(), aMessage()]
      const inside = gate()
      const finish = gate()
      const holder = inbox.processOnce(held, async () => {
        inside.open()
        await finish.opened
      })
      await inside.opened
      await expect(inbox.processBatch([one, held, three], () => {})).rejects.toMatchObject({
        results: ['processed'],
        cause: { code: 'IDEMPOTENCY_KEY_IN_PROGRESS' },
      })
      finish.open()
      expect(await holder).toBe('processed')
      expect(await inbox.processBatch([one, held, three], () => {})).toEqual([
        'duplicate',
        'duplicate',
        'processed',
      ])
    },
  },
  {
    name: 'lets one of many concurrent deliveries through',
    async run(store) {
      const inbox = anInbox(store)
      const message = aMessage()
      let runs = 0
      const results = await Promise.all(
        Array.from({ length: 8 }, () =>
          inbox.processOnce(message, () => {
            runs += 1
          }),
        ),
      )
      expect(runs).toBe(1)
      expect(results.filter((result) => result === 'processed')).toHaveLength(1)
    },
  },
  {
    name: 'rethrows what the handler throws, counts attempts, and gives the message up after the last',
    async run(store) {
      const dying: DyingMessage[] = []
      const inbox = anInbox(store, {
        attempts: { max: 3 },
        onDead: (message) => {
          dying.push(message)
        },
      })
      const events = messageEvents(inbox)
      const message = aMessage({ payload: 'the payload' })
      const attempts: number[] = []
      const handler = ({ attempt, redelivered }: { attempt: number; redelivered: boolean }) => {
        expect(redelivered).toBe(attempt > 1)
        attempts.push(attempt)
        return failing()
      }
      await expect(inbox.processOnce(message, handler)).rejects.toThrow('no such account')
      await expect(inbox.processOnce(message, handler)).rejects.toThrow('no such account')
      expect(dying).toEqual([])
      expect(await inbox.processOnce(message, handler)).toBe('dead')
      expect(await inbox.processOnce(message, handler)).toBe('dead')
      expect(attempts).toEqual([1, 2, 3])
      const { source, key } = message
      expect(dying).toEqual([
        { source, key, attempts: 3, error: new Error('no such account'), payload: 'the payload' },
      ])
      expect(await deadOf(inbox)).toMatchObject([
        { source, key, attempts: 3, error: expect.stringContaining('no such account') },
      ])
      expect(events.map(({ type }) => type)).toEqual([
        'message-failed',
        'message-failed',
        'message-dead',
        'message',
        'message',
      ])
    },
  },
  {
    name: 'processes a message that failed before',
    async run(store) {
      const inbox = anInbox(store)
      const message = aMessage()
      await expect(inbox.processOnce(message, failing)).rejects.toThrow()
      const seen: number[] = []
      expect(await inbox.processOnce(message, ({ attempt }) => void seen.push(attempt))).toBe('processed')
      expect(await inbox.processOnce(message, failing)).toBe('duplicate')
      expect(seen).toEqual([2])
    },
  },
  {
    name: 'gives a message up at once when its handler rejects it',
    async run(store) {
      const inbox = anInbox(store)
      const message = aMessage()
      const result = await inbox.processOnce(message, () => {
        throw new MessageRejectedError('it is no payment')
      })
      expect(result).toBe('dead')
      expect(await deadOf(inbox)).toMatchObject([{ key: message.key, attempts: 1 }])
    },
  },
  {
    name: 'gives a message up without an attempt, when it is told to',
    async run(store) {
      const inbox = anInbox(store)
      const message = aMessage()
      expect(await inbox.giveUp(message, new Error('it cannot be read'))).toBe('dead')
      expect(await inbox.processOnce(message, () => {})).toBe('dead')
      expect(await deadOf(inbox)).toMatchObject([{ key: message.key, error: 'Error: it cannot be read' }])
      const done = aMessage()
      await inbox.processOnce(done, () => {})
      await expect(inbox.giveUp(done, new Error('too late')).catch(() => 'duplicate')).resolves.toBe(
        'duplicate',
      )
      expect(await deadOf(inbox)).toHaveLength(1)
    },
  },
  {
    name: 'processes a redriven message, with all of its attempts',
    async run(store) {
      const inbox = anInbox(store, { attempts: { max: 2 } })
      const message = aMessage()
      await expect(inbox.processOnce(message, failing)).rejects.toThrow()
      expect(await inbox.redrive(message as { key: string })).toBe(false)
      expect(await inbox.processOnce(message, failing)).toBe('dead')
      expect(await inbox.redrive({ source: 'payments', key: message.key })).toBe(true)
      expect(await deadOf(inbox)).toEqual([])
      const seen: number[] = []
      await expect(
        inbox.processOnce(message, ({ attempt }) => {
          seen.push(attempt)
          return failing()
        }),
      ).rejects.toThrow()
      expect(await inbox.processOnce(message, ({ attempt }) => void seen.push(attempt))).toBe('processed')
      expect(seen).toEqual([1, 2])
      expect(await inbox.processOnce(message, failing)).toBe('duplicate')
      expect(await inbox.redrive({ source: 'payments', key: message.key })).toBe(false)
    },
  },
  {
    name: 'processes again what was reset, and nothing else',
    async run(store) {
      const inbox = anInbox(store)
      const [one, two, three] = [aMessage(), aMessage(), aMessage({ source: 'orders' })]
      const all = [one, two, three]
      for (const message of all) await inbox.processOnce(message, () => {})
      expect(await inbox.reset({ source: 'payments', key: one.key })).toBe(1)
      const again = async () => {
        const results = []
        for (const message of all) results.push(await inbox.processOnce(message, () => {}))
        return results
      }
      expect(await again()).toEqual(['processed', 'duplicate', 'duplicate'])
      expect(await inbox.reset({ source: 'payments' })).toBe(2)
      expect(await again()).toEqual(['processed', 'processed', 'duplicate'])
      expect(await inbox.reset({ source: 'payments', key: 'unheard of' })).toBe(0)
    },
  },
  {
    name: 'gives up a message whose key stands for another one, and skips neither',
    async run(store) {
      const inbox = anInbox(store)
      const message = aMessage({ fingerprint: 'one' })
      let runs = 0
      expect(
        await inbox.processOnce(message, () => {
          runs += 1
        }),
      ).toBe('processed')
      const other = { ...message, fingerprint: 'another' }
      expect(
        await inbox.processOnce(other, () => {
          runs += 1
        }),
      ).toBe('dead')
      expect(
        await inbox.processOnce(other, () => {
          runs += 1
        }),
      ).toBe('dead')
      expect(
        await inbox.processOnce(message, () => {
          runs += 1
        }),
      ).toBe('duplicate')
      expect(runs).toBe(1)
      expect(await deadOf(inbox)).toMatchObject([{ error: expect.stringContaining('KeyReusedError') }])
    },
  },
  {
    name: 'does not count an attempt that was taken back',
    async run(store) {
      const inbox = anInbox(store, { attempts: { max: 1 } })
      const message = aMessage()
      const taken = new AbortController()
      const delivery = inbox.processOnce({ ...message, signal: taken.signal }, async ({ signal }) => {
        const aborted = new Promise((resolve) => signal.addEventListener('abort', resolve))
        taken.abort(new Error('revoked'))
        await aborted
        signal.throwIfAborted()
      })
      await expect(delivery).rejects.toThrow('revoked')
      expect(await inbox.processOnce(message, () => {})).toBe('processed')
    },
  },
  {
    name: 'does not count a message as dead when onDead fails, and tells it again',
    async run(store) {
      let calls = 0
      const inbox = anInbox(store, {
        attempts: { max: 1 },
        onDead: () => {
          calls += 1
          if (calls === 1) throw new Error('the topic for the dead is away')
        },
      })
      const events = messageEvents(inbox)
      const message = aMessage()
      await expect(inbox.processOnce(message, failing)).rejects.toThrow('no such account')
      expect(await deadOf(inbox)).toEqual([])
      expect(events.map(({ type }) => type)).toContain('on-dead-failed')
      expect(await inbox.processOnce(message, failing)).toBe('dead')
      expect(calls).toBe(2)
      expect(await deadOf(inbox)).toHaveLength(1)
    },
  },
  {
    name: 'derives one key for a downstream call in every attempt, and another for every label and message',
    async run(store) {
      const inbox = anInbox(store, { secret: 'a secret of sixteen bytes' })
      const message = aMessage()
      const keys: string[] = []
      const handler = ({ deriveKey }: { deriveKey(label: string): string }) => {
        keys.push(deriveKey('psp'), deriveKey('mail'))
        return failing()
      }
      await expect(inbox.processOnce(message, handler)).rejects.toThrow()
      await expect(inbox.processOnce(message, handler)).rejects.toThrow()
      await expect(inbox.processOnce(aMessage(), handler)).rejects.toThrow()
      expect(keys.slice(2, 4)).toEqual(keys.slice(0, 2))
      expect(new Set(keys).size).toBe(4)
    },
  },
  {
    name: 'refuses a key that it cannot keep',
    async run(store) {
      const inbox = anInbox(store)
      for (const key of ['', 'a\0b', '\ud800', 'x'.repeat(1025)])
        await expect(inbox.processOnce({ key }, () => {})).rejects.toMatchObject({
          code: 'IDEMPOTENCY_KEY_INVALID',
        })
    },
  },
  {
    name: 'keeps the longest keys, and lists them when they are dead',
    async run(store) {
      const inbox = anInbox(store, { attempts: { max: 1 } })
      const message = { source: 's'.repeat(1024), key: `${'ü'.repeat(1023)}"` }
      expect(await inbox.processOnce(message, failing)).toBe('dead')
      expect(await deadOf(inbox, message.source)).toMatchObject([message])
      expect(await inbox.redrive(message)).toBe(true)
      expect(await inbox.processOnce(message, () => {})).toBe('processed')
      expect(await inbox.reset({ source: message.source })).toBeGreaterThan(0)
      expect(await inbox.processOnce(message, () => {})).toBe('processed')
    },
  },
  {
    name: 'processes a batch, without what was processed before or comes twice',
    async run(store) {
      const inbox = anInbox(store)
      const [one, two, three] = [aMessage(), aMessage(), aMessage()]
      await inbox.processOnce(two, () => {})
      const handled: string[] = []
      const results = await inbox.processBatch([one, two, three, one], (messages) => {
        for (const { message } of messages) handled.push(message.key)
      })
      expect(results).toEqual(['processed', 'duplicate', 'processed', 'duplicate'])
      expect(handled).toEqual([one.key, three.key])
      expect(await inbox.processBatch([], failing)).toEqual([])
    },
  },
  {
    name: 'isolates the message of a batch that fails, and goes on behind it once it is dead',
    async run(store) {
      const inbox = anInbox(store, { attempts: { max: 2 } })
      const messages = Array.from({ length: 5 }, () => aMessage())
      const poison = messages[2]
      const done: string[] = []
      const process = () =>
        inbox.processBatch(messages, async (given) => {
          if (given.some(({ message }) => message === poison)) await failing()
          for (const { message } of given) done.push(message.key)
        })
      await expect(process()).rejects.toMatchObject({
        code: 'IDEMPOTENCY_BATCH_INTERRUPTED',
        results: ['processed', 'processed'],
        cause: { message: 'no such account' },
      })
      expect(await process()).toEqual(['duplicate', 'duplicate', 'dead', 'processed', 'processed'])
      expect(done).toEqual([0, 1, 3, 4].map((place) => messages[place]?.key))
      expect(await deadOf(inbox)).toMatchObject([{ key: poison?.key, attempts: 2 }])
    },
  },
  {
    name: 'holds back what is behind a dead message, where the order is kept',
    async run(store) {
      const inbox = anInbox(store, { attempts: { max: 1 }, order: 'block' })
      const messages = [aMessage(), aMessage(), aMessage()]
      const poison = messages[1] as Message
      const seen: string[] = []
      let isMended = false
      const process = () =>
        inbox.processBatch(messages, async (given) => {
          if (!isMended && given.some(({ message }) => message === poison)) await failing()
          for (const { message } of given) seen.push(message.key)
        })
      for (let round = 0; round < 2; round += 1)
        await expect(process()).rejects.toMatchObject({
          results: [round === 0 ? 'processed' : 'duplicate'],
          cause: { code: 'IDEMPOTENCY_MESSAGE_DEAD' },
        })
      isMended = true
      expect(await inbox.redrive({ source: 'payments', key: poison.key })).toBe(true)
      expect(await process()).toEqual(['duplicate', 'processed', 'processed'])
      expect(seen).toEqual(messages.map(({ key }) => key))
    },
  },
]
