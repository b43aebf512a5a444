import { describe, expect, it } from 'vitest'
import type { Outcome, StoredRecord } from '../../src/contract/store.js'
import { countRecords, OTHER_ROUTES } from '../../src/core/record-counts.js'
import { memoryStore } from '../../src/stores/memory.js'

const kept: Outcome = { result: 'succeeded', head: '{}', body: Buffer.from('x') }

async function* list(records: readonly StoredRecord[]): AsyncIterable<StoredRecord> {
  yield* records
}

describe('countRecords', () => {
  it('counts a store by state and by route, and names the oldest unknown record', async () => {
    const store = memoryStore()
    const claim = async (id: string, route: string, leaseMs: number, firstSeenAt = 0) => {
      const meta = { key: id, route, scope: 's', firstSeenAt }
      const token = `token-${id}`
      await store.claim({
        ...{ id, token, fingerprint: 'f', leaseMs, ttlMs: 60_000, takeOver: false, mayBeLost: false, meta },
      })
      return token
    }
    await claim('running', 'POST /a', 60_000)
    await claim('younger', 'POST /b', 0, 2000)
    await claim('oldest', 'POST /b', 0, 1000)
    await store.complete('kept', await claim('kept', 'POST /b', 60_000), kept, 60_000)
    await store.complete('gone', await claim('gone', 'POST /b', 60_000), { ...kept, body: null }, 60_000)
    const counts = await countRecords(store.list?.({}) ?? expect.fail())
    expect(counts).toMatchObject({ total: 5, running: 1, unknown: 2, completed: 1, tombstone: 1 })
    expect(counts.oldestUnknown?.id).toBe('oldest')
    expect(counts.routes).toEqual([
      { route: 'POST /b', total: 4, running: 0, unknown: 2, completed: 1, tombstone: 1 },
      { route: 'POST /a', total: 1, running: 1, unknown: 0, completed: 0, tombstone: 0 },
    ])
  })

  it('stays bounded where routes are not', async () => {
    const records = Array.from({ length: 1500 }, (_, index): StoredRecord => {
      const meta = { key: 'k', route: `POST /tenants/${index}`, scope: 's', firstSeenAt: 0 }
      return { id: String(index), fingerprint: 'f', fence: 1, meta, expiresInMs: 1, status: 'unknown' }
    })
    const { total, routes } = await countRecords(list(records))
    expect(total).toBe(1500)
    expect(routes).toHaveLength(1001)
    expect(routes[0]).toMatchObject({ route: OTHER_ROUTES, total: 500 })
  })
})
