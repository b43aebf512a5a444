import { randomUUID } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { recordId } from '../../src/contract/key.js'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { createInbox, type Inbox, type InboxOptions } from '../../src/messages/inbox.js'
import { memoryStore } from '../../src/stores/memory.js'
import { aClaim, until } from '../../src/testing/store-fixtures.js'
import { aMessage, deadOf } from '../support/inbox-cases.js'

/** An inbox whose process has died, in an earlier life, while it handled `message`. */
async function afterACrash(options: Partial<InboxOptions> = {}) {
  const store = memoryStore()
  const consumer = randomUUID()
  const message = { source: 'payments', key: aMessage().key }
  const crash = async (attempt: number) => {
    const key = JSON.stringify([message.source, message.key, attempt])
    const id = recordId({ namespace: 'messages:', scope: consumer, key })
    const claim = aClaim({
      id,
      fingerprint: 'unchecked',
      leaseMs: 1,
      meta: { ...aClaim().meta, key, route: `message ${consumer}` },
    })
    await store.claim(claim)
    await until(store, id, (record) => record?.status === 'unknown')
    return claim
  }
  const claim = await crash(1)
  return {
    store,
    message,
    crash,
    claim,
    inbox: createInbox({ store, consumer, sweep: false, ...options }) as Inbox,
  }
}

describe('createInbox › by leases, after a process died in the middle', () => {
  it('gives the message up, and says that nobody knows', async () => {
    const { inbox, message } = await afterACrash()
    let runs = 0
    const handler = (): void => {
      runs += 1
    }
    expect(await inbox.processOnce(message, handler)).toBe('dead')
    expect(await inbox.processOnce(message, handler)).toBe('dead')
    expect(runs).toBe(0)
    expect(await deadOf(inbox)).toMatchObject([
      { ...message, error: expect.stringContaining('nobody knows') },
    ])
  })

  it('processes it again where it may, as another attempt', async () => {
    const { inbox, message } = await afterACrash({ onUnknown: 'rerun' })
    const attempts: number[] = []
    const handler = ({ attempt }: { attempt: number }): void => {
      attempts.push(attempt)
    }
    expect(await inbox.processOnce(message, handler)).toBe('processed')
    expect(await inbox.processOnce(message, handler)).toBe('duplicate')
    expect(attempts).toEqual([2])
  })

  it('gives it up when too many processes have died', async () => {
    const { inbox, message, crash } = await afterACrash({ onUnknown: 'rerun', attempts: { max: 2 } })
    // The first is settled as a failure when the second begins.
    await expect(
      inbox.processOnce(message, () => {
        throw new Error('not now')
      }),
    ).resolves.toBe('dead')
    expect(await deadOf(inbox)).toMatchObject([{ attempts: 2 }])
    await inbox.reset(message)
    await crash(1)
    await crash(2)
    let runs = 0
    const result = await inbox.processOnce(message, () => {
      runs += 1
    })
    expect([result, runs]).toEqual(['dead', 0])
  })

  it.each([
    ['processed', 'duplicate', 0],
    ['rerun', 'processed', 1],
    ['reject', 'dead', 0],
  ] as const)('lets a function find out: %s', async (answer, result, expected) => {
    const asked: unknown[] = []
    const { inbox, message } = await afterACrash({
      async onUnknown(unknown) {
        asked.push(unknown)
        return answer
      },
    })
    let runs = 0
    const handler = (): void => {
      runs += 1
    }
    expect(await inbox.processOnce(message, handler)).toBe(result)
    expect(runs).toBe(expected)
    expect(asked).toEqual([{ ...message, attempt: 1 }])
    expect(await inbox.processOnce(message, handler)).toBe(result === 'processed' ? 'duplicate' : result)
  })

  it('believes a process that comes back before anybody has decided', async () => {
    const { inbox, message, store, claim } = await afterACrash()
    const outcome = { result: 'succeeded', head: '{"state":"processed"}', body: new Uint8Array(0) } as const
    expect(await (store as IdempotencyStore).complete(claim.id, claim.token, outcome, 60_000)).toBe(true)
    expect(await inbox.processOnce(message, () => {})).toBe('duplicate')
  })

  it('processes a redriven message', async () => {
    const { inbox, message } = await afterACrash()
    expect(await inbox.processOnce(message, () => {})).toBe('dead')
    expect(await inbox.redrive(message)).toBe(true)
    expect(await inbox.processOnce(message, () => {})).toBe('processed')
  })

  it('remembers a failed attempt for longer than the one that it led to', async () => {
    const window = 60_000
    const { inbox, message, store } = await afterACrash({ onUnknown: 'rerun', window })
    expect(await inbox.processOnce(message, () => {})).toBe('processed')
    const expiry = async (attempt: number) => {
      const key = JSON.stringify([message.source, message.key, attempt])
      const id = recordId({ namespace: 'messages:', scope: inbox.consumer, key })
      return (await store.find(id))?.expiresInMs
    }
    expect(await expiry(2)).toBeLessThanOrEqual(window)
    expect(await expiry(1)).toBeGreaterThan(window)
  })
})
