import { beforeEach, describe, expect, it } from 'vitest'
import { keptBy, type Resolution } from '../../src/console/resolution.js'
import type { StoredRecord } from '../../src/contract/store.js'
import { answerOf } from '../../src/http/http-answer.js'
import { endUnknown } from '../../src/operator/end-unknown.js'
import { memoryStore } from '../../src/stores/memory.js'
import type { AuditEntry } from '../../src/telemetry/audit-log.js'
import { writeAudit } from '../../src/telemetry/audit-log.js'

const DAY_MS = 86_400_000
const PAID: Resolution = { kind: 'answer', response: { status: 201, body: { id: 'p-1' } } }

let store = memoryStore()
let lines: object[] = []
const logger = { info: (line: object) => lines.push(line), warn: (line: object) => lines.push(line) }
beforeEach(() => {
  store = memoryStore()
  lines = []
})

/** An operation whose process has died: its lease has lapsed by now. */
async function anUnknown({ route = 'POST /payments', firstSeenAt = 1000, ttlMs = 60_000 } = {}) {
  const token = `token-${firstSeenAt}`
  const meta = { key: 'order-1', route, scope: 'hash', firstSeenAt }
  const rest = { fingerprint: 'f', leaseMs: 0, ttlMs, takeOver: true, mayBeLost: false, meta }
  await store.claim({ id: 'an-id', token, ...rest })
  return (await store.find('an-id')) ?? expect.fail()
}

function end(seen: StoredRecord, resolution: Resolution, through = store) {
  const write = (entry: AuditEntry): void => void writeAudit(logger, { ...entry, by: 'ann' })
  return endUnknown(through, { seen, ttlMs: DAY_MS, ...keptBy(resolution) }, { announce: write, done: write })
}

describe('endUnknown', () => {
  it('keeps the answer that is given, and says who did it', async () => {
    const seen = await anUnknown()
    expect(await end(seen, PAID)).toMatchObject({ done: true, record: { status: 'unknown' } })
    const now = await store.find('an-id')
    if (now?.status !== 'completed') return expect.fail(now?.status)
    const kept = answerOf(now.outcome)
    expect(kept).toMatchObject({ kept: true, answer: { status: 201 } })
    expect(now.expiresInMs).toBeGreaterThan(DAY_MS - 10_000)
    const about = { id: 'an-id', scope: 'hash', route: 'POST /payments', fence: 1, by: 'ann', status: 201 }
    expect(lines).toMatchObject([
      { event: 'settling', ...about },
      { event: 'settled', ...about },
    ])
    expect(JSON.stringify(lines)).not.toContain('order-1')
  })

  it('keeps it no shorter than the record would have been remembered', async () => {
    await end(await anUnknown({ ttlMs: 7 * DAY_MS }), PAID)
    expect((await store.find('an-id'))?.expiresInMs).toBeGreaterThan(6 * DAY_MS)
  })

  it('keeps a tombstone with the status where the answer is not known', async () => {
    await end(await anUnknown(), { kind: 'tombstone', status: 201 })
    const now = await store.find('an-id')
    if (now?.status !== 'completed') return expect.fail(now?.status)
    expect(answerOf(now.outcome)).toEqual({ kept: false, status: 201 })
  })

  it('lets nothing that stands in the store rewrite its audit lines', async () => {
    const seen = await anUnknown()
    const more = { event: 'swept', by: 'nobody', id: 'another', audit: 'x', at: 'never', removed: 5 }
    const through = { ...store, find: async () => ({ ...seen, meta: { ...seen.meta, ...more } }) }
    await end(seen, PAID, through)
    const line = { audit: 'oncekey', id: 'an-id', by: 'ann', status: 201, at: expect.stringMatching(/Z$/) }
    expect(lines).toMatchObject([
      { event: 'settling', ...line },
      { event: 'settled', ...line },
    ])
    for (const one of lines) expect(one).not.toHaveProperty('removed')
  })

  it('ends what was first seen at no time that there is', async () => {
    const seen = await anUnknown({ firstSeenAt: 9e15 })
    expect(await end(seen, PAID)).toMatchObject({ done: true })
    expect(lines).toMatchObject([{ event: 'settling' }, { event: 'settled' }])
    for (const line of lines) expect(line).not.toHaveProperty('firstSeen')
  })

  it('removes what did not happen', async () => {
    await end(await anUnknown(), { kind: 'release' })
    expect(await store.find('an-id')).toBeUndefined()
    expect(lines).toMatchObject([
      { event: 'releasing', by: 'ann' },
      { event: 'released', by: 'ann' },
    ])
  })

  it('leaves alone what is no longer unknown, and tells what it is', async () => {
    const seen = await anUnknown()
    await store.complete('an-id', 'token-1000', { result: 'succeeded', head: '{}', body: null }, 1000)
    expect(await end(seen, { kind: 'release' })).toMatchObject({
      done: false,
      now: { status: 'completed' },
    })
    expect(lines).toEqual([])
  })

  it('leaves alone what was claimed again since it was seen, though it is unknown again', async () => {
    const seen = await anUnknown()
    await store.claim({
      ...{ id: 'an-id', token: 'second', fingerprint: 'f', leaseMs: 0, ttlMs: 1000, takeOver: true },
      ...{ mayBeLost: false, meta: seen.meta },
    })
    expect(await end(seen, { kind: 'release' })).toMatchObject({ done: false, now: { fence: 2 } })
  })

  it('leaves alone a key that was released and ran again, though its fence is the same', async () => {
    const seen = await anUnknown()
    await store.settle('an-id', 'release', 1000)
    expect(await anUnknown({ firstSeenAt: 2000 })).toMatchObject({ status: 'unknown', fence: 1 })
    expect(await end(seen, { kind: 'release' })).toMatchObject({ done: false })
    expect(await store.find('an-id')).toMatchObject({ status: 'unknown' })
  })

  it('has left an audit line when the answer of the store is lost', async () => {
    const seen = await anUnknown()
    const line = {
      ...store,
      async settle(...args: Parameters<typeof store.settle>): Promise<boolean> {
        await store.settle(...args)
        throw new Error('the answer was lost')
      },
    }
    await expect(end(seen, PAID, line)).rejects.toThrow('the answer was lost')
    expect(lines).toMatchObject([{ event: 'settling', by: 'ann' }])
  })
})
