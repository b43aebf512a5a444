import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import type { ClaimResult, IdempotencyStore, ListQuery, StoredRecord } from '../contract/store.js'
import {
  aClaim,
  anId,
  anOutcome,
  assertBetween,
  assertOutcome,
  aToken,
  HOUR,
  lapsed,
  times,
  until,
} from './store-fixtures.js'

/** One promise of the store contract, and how to see whether a store keeps it. */
export interface StoreContractCase {
  readonly name: string
  /** Rejects when the store breaks the promise. Ids are new in every run, so one store can serve all cases. */
  run(store: IdempotencyStore): Promise<void>
}

/**
 * Every promise of `IdempotencyStore`. Run all of them against your store and its real backend, with any test runner:
 *
 * ```ts
 * it.each(storeContract)('$name', ({ run }) => run(createStore()))
 * ```
 */
export const storeContract: readonly StoreContractCase[] = [
  {
    name: 'gives a new id to its claimer, with fence 1',
    run: async (store) => assert.deepEqual(await store.claim(aClaim()), { status: 'acquired', fence: 1 }),
  },
  {
    name: 'gives an id to exactly one of many concurrent callers',
    async run(store) {
      const id = anId()
      const claims = await Promise.all(times(50, () => store.claim(aClaim({ id }))))
      assert.equal(claims.filter(({ status }) => status === 'acquired').length, 1)
      assert.equal(claims.filter(({ status }) => status === 'running').length, 49)
    },
  },
  {
    name: 'tells a second caller the fingerprint and the rest of the lease of a running claim',
    async run(store) {
      const first = aClaim({ leaseMs: 60_000 })
      await store.claim(first)
      const second = await store.claim(aClaim({ id: first.id, fingerprint: 'another', takeOver: true }))
      assert.equal(second.status, 'running')
      assert.equal(second.fingerprint, first.fingerprint)
      assertBetween(second.leaseLeftMs, 30_000, 60_000)
    },
  },
  {
    name: 'answers a claim repeated by its own token as acquired again, and renews its lease',
    async run(store) {
      const claim = aClaim({ leaseMs: 60_000 })
      await store.claim(claim)
      const again = await store.claim({ ...claim, leaseMs: 600_000 })
      assert.deepEqual(again, { status: 'acquired', fence: 1 })
      const other = await store.claim(aClaim({ id: claim.id }))
      assert.ok(other.status === 'running' && other.leaseLeftMs > 60_000)
    },
  },
  {
    name: 'keeps two ids apart',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      assert.equal((await store.claim({ ...aClaim(), token: claim.token })).status, 'acquired')
    },
  },
  {
    name: 'answers completed, with the outcome and its age, after completion',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      assert.equal(await store.complete(claim.id, claim.token, anOutcome(), HOUR), true)
      const retry = await store.claim(aClaim({ id: claim.id, fingerprint: 'another', takeOver: true }))
      assert.equal(retry.status, 'completed')
      assert.equal(retry.fingerprint, claim.fingerprint)
      assertOutcome(retry.outcome, anOutcome())
      assertBetween(retry.ageMs, 0, 10_000)
    },
  },
  ...[
    { what: 'every byte', outcome: anOutcome({ body: Uint8Array.from({ length: 256 }, (_, byte) => byte) }) },
    { what: 'a large body', outcome: anOutcome({ body: randomBytes(256 * 1024) }) },
    { what: 'an empty body', outcome: anOutcome({ body: new Uint8Array(0) }) },
    { what: 'a tombstone', outcome: anOutcome({ body: null }) },
    { what: 'a failure', outcome: anOutcome({ result: 'failed' }) },
    { what: 'a head of any text', outcome: anOutcome({ head: 'line\nline "quoted" \\ ü 漢 🚲' }) },
    { what: 'an empty head', outcome: anOutcome({ head: '' }) },
  ].map(
    ({ what, outcome }): StoreContractCase => ({
      name: `gives back ${what} as it was`,
      async run(store) {
        const claim = aClaim()
        await store.claim(claim)
        await store.complete(claim.id, claim.token, outcome, HOUR)
        const retry = await store.claim(aClaim({ id: claim.id }))
        assert.ok(retry.status === 'completed')
        assertOutcome(retry.outcome, outcome)
        const found = await store.find(claim.id)
        assert.ok(found?.status === 'completed')
        assertOutcome(found.outcome, outcome)
      },
    }),
  ),
  {
    name: 'does not notice what the caller does to its buffer after completion',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      const body = new Uint8Array([1, 2, 3])
      await store.complete(claim.id, claim.token, anOutcome({ body }), HOUR)
      body.fill(9)
      const found = await store.find(claim.id)
      assert.ok(found?.status === 'completed')
      assertOutcome(found.outcome, anOutcome({ body: new Uint8Array([1, 2, 3]) }))
    },
  },
  {
    name: 'answers true to a completion repeated by its own token, and changes nothing',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      await store.complete(claim.id, claim.token, anOutcome(), HOUR)
      const second = anOutcome({ head: 'second' })
      assert.equal(await store.complete(claim.id, claim.token, second, 2 * HOUR), true)
      const found = await store.find(claim.id)
      assert.ok(found?.status === 'completed')
      assertOutcome(found.outcome, anOutcome())
      assertBetween(found.expiresInMs, 0, HOUR)
    },
  },
  {
    name: 'refuses completion, renewal and release by a token that does not hold the id',
    async run(store) {
      const claim = aClaim({ leaseMs: 60_000 })
      await store.claim(claim)
      const before = await store.find(claim.id)
      for (const other of [aToken(), claim.token.slice(0, -1), `${claim.token}0`]) {
        assert.equal(await store.complete(claim.id, other, anOutcome(), HOUR), false)
        assert.equal(await store.renew(claim.id, other, HOUR), false)
        assert.equal(await store.release(claim.id, other), false)
      }
      const after = await store.find(claim.id)
      assert.ok(before?.status === 'running' && after?.status === 'running')
      assert.ok(after.leaseLeftMs <= before.leaseLeftMs)
    },
  },
  {
    name: 'refuses completion, renewal and release of an id that nobody claimed',
    async run(store) {
      const id = anId()
      assert.equal(await store.complete(id, aToken(), anOutcome(), HOUR), false)
      assert.equal(await store.renew(id, aToken(), HOUR), false)
      assert.equal(await store.release(id, aToken()), false)
      assert.equal(await store.settle(id, anOutcome(), HOUR), false)
      assert.equal(await store.find(id), undefined)
    },
  },
  {
    name: 'refuses renewal, release and settlement of what has completed',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      await store.complete(claim.id, claim.token, anOutcome(), HOUR)
      assert.equal(await store.renew(claim.id, claim.token, HOUR), false)
      assert.equal(await store.release(claim.id, claim.token), false)
      assert.equal(await store.settle(claim.id, 'release', HOUR), false)
      assert.equal((await store.find(claim.id))?.status, 'completed')
    },
  },
  {
    name: 'makes a renewed lease end later',
    async run(store) {
      const claim = aClaim({ leaseMs: 60_000 })
      await store.claim(claim)
      assert.equal(await store.renew(claim.id, claim.token, 600_000), true)
      const found = await store.find(claim.id)
      assert.ok(found?.status === 'running')
      assertBetween(found.leaseLeftMs, 300_000, 600_000)
    },
  },
  {
    name: 'reports a lapsed claim as unknown, with what its first claim said',
    async run(store) {
      const claim = await lapsed(store)
      const found = await store.claim(aClaim({ id: claim.id, fingerprint: 'another', takeOver: false }))
      assert.deepEqual(found, {
        status: 'unknown',
        fingerprint: claim.fingerprint,
        fence: 1,
        meta: claim.meta,
      } satisfies ClaimResult)
    },
  },
  {
    name: 'keeps the outcome of a late completion by the token that let its lease lapse',
    async run(store) {
      const claim = await lapsed(store)
      assert.equal(await store.complete(claim.id, claim.token, anOutcome(), HOUR), true)
      assert.equal((await store.claim(aClaim({ id: claim.id }))).status, 'completed')
    },
  },
  {
    name: 'revives a lapsed claim that nobody took when its token renews it',
    async run(store) {
      const claim = await lapsed(store)
      assert.equal(await store.renew(claim.id, claim.token, HOUR), true)
      assert.equal((await store.claim(aClaim({ id: claim.id, takeOver: true }))).status, 'running')
    },
  },
  {
    name: 'gives a lapsed claim to whoever takes it over, under the next fence',
    async run(store) {
      const first = await lapsed(store)
      const second = aClaim({ id: first.id, takeOver: true, meta: { ...first.meta, route: 'another' } })
      assert.deepEqual(await store.claim(second), { status: 'acquired', fence: 2 })
      assert.equal(await store.complete(first.id, first.token, anOutcome(), HOUR), false)
      assert.equal(await store.renew(first.id, first.token, HOUR), false)
      assert.equal(await store.release(first.id, first.token), false)
      const found = await store.find(first.id)
      assert.equal(found?.status, 'running')
      assert.deepEqual(found?.meta, first.meta)
      assert.equal(await store.complete(second.id, second.token, anOutcome(), HOUR), true)
    },
  },
  {
    name: 'does not give a lapsed claim to another fingerprint',
    async run(store) {
      const first = await lapsed(store)
      const other = await store.claim(aClaim({ id: first.id, fingerprint: 'another', takeOver: true }))
      assert.equal(other.status, 'unknown')
      assert.equal(await store.complete(first.id, first.token, anOutcome(), HOUR), true)
    },
  },
  {
    name: 'gives a lapsed claim to exactly one of many concurrent callers',
    async run(store) {
      const { id } = await lapsed(store)
      const claims = await Promise.all(times(20, () => store.claim(aClaim({ id, takeOver: true }))))
      assert.deepEqual(
        claims.filter(({ status }) => status === 'acquired'),
        [{ status: 'acquired', fence: 2 }],
      )
    },
  },
  {
    name: 'removes a first claim that is released',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      assert.equal(await store.release(claim.id, claim.token), true)
      assert.equal(await store.find(claim.id), undefined)
      assert.equal(await store.release(claim.id, claim.token), false)
      assert.deepEqual(await store.claim(aClaim({ id: claim.id })), { status: 'acquired', fence: 1 })
    },
  },
  {
    name: 'makes a taken-over claim unknown again when it is released',
    async run(store) {
      const { id } = await lapsed(store)
      const second = aClaim({ id, takeOver: true })
      await store.claim(second)
      assert.equal(await store.release(id, second.token), true)
      assert.equal(await store.release(id, second.token), false)
      assert.equal(await store.complete(id, second.token, anOutcome(), HOUR), false)
      const found = await store.find(id)
      assert.equal(found?.status, 'unknown')
      assert.equal(found?.fence, 2)
      assert.deepEqual(await store.claim(aClaim({ id, takeOver: true })), { status: 'acquired', fence: 3 })
    },
  },
  {
    name: 'finds a record as it is, and changes nothing',
    async run(store) {
      const claim = aClaim({ leaseMs: 60_000, ttlMs: HOUR })
      await store.claim(claim)
      await store.find(claim.id)
      const found = await store.find(claim.id)
      assert.ok(found?.status === 'running')
      const { leaseLeftMs, expiresInMs, ...rest } = found
      assertBetween(leaseLeftMs, 30_000, 60_000)
      assertBetween(expiresInMs, HOUR / 2, HOUR)
      const { id, fingerprint, meta } = claim
      assert.deepEqual(rest, { id, fingerprint, meta, fence: 1, status: 'running' })
    },
  },
  {
    name: 'gives back what a claim says about itself, whatever text it is',
    async run(store) {
      const meta = { key: `k "q" 'a' \\ ; -- %s`, route: 'POST /ü/:id\n', scope: '漢🚲', firstSeenAt: 1.5e12 }
      const claim = aClaim({ meta })
      await store.claim(claim)
      assert.deepEqual((await store.find(claim.id))?.meta, meta)
    },
  },
  {
    name: 'forgets an outcome after its ttl',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      await store.complete(claim.id, claim.token, anOutcome(), 50)
      await until(store, claim.id, (record) => record === undefined)
      const next = aClaim({ id: claim.id, fingerprint: 'another' })
      assert.deepEqual(await store.claim(next), { status: 'acquired', fence: 1 })
      assert.deepEqual((await store.find(claim.id))?.meta, next.meta)
    },
  },
  {
    name: 'forgets an unresolved claim after its ttl',
    async run(store) {
      const claim = aClaim({ leaseMs: 20, ttlMs: 60 })
      await store.claim(claim)
      await until(store, claim.id, (record) => record === undefined)
      assert.equal(await store.complete(claim.id, claim.token, anOutcome(), HOUR), false)
      assert.deepEqual(await store.claim(aClaim({ id: claim.id })), { status: 'acquired', fence: 1 })
    },
  },
  {
    name: 'never forgets a claim while its lease lasts',
    async run(store) {
      const claim = aClaim({ leaseMs: 60_000, ttlMs: 10 })
      const renewed = aClaim({ leaseMs: 100, ttlMs: 200 })
      const marker = aClaim()
      await Promise.all([claim, renewed, marker].map((one) => store.claim(one)))
      await store.renew(renewed.id, renewed.token, 60_000)
      // A record of a longer ttl that has gone shows that the store's clock is past the others' ttl.
      await store.complete(marker.id, marker.token, anOutcome(), 250)
      await until(store, marker.id, (record) => record === undefined)
      await store.sweep?.()
      assert.equal((await store.find(claim.id))?.status, 'running')
      assert.equal((await store.find(renewed.id))?.status, 'running')
    },
  },
  {
    name: 'settles an unknown record with an outcome, and its late token has lost it',
    async run(store) {
      const claim = await lapsed(store)
      assert.equal(await store.settle(claim.id, anOutcome(), HOUR), true)
      assert.equal(await store.complete(claim.id, claim.token, anOutcome({ head: 'late' }), HOUR), false)
      const found = await store.find(claim.id)
      assert.ok(found?.status === 'completed')
      assertOutcome(found.outcome, anOutcome())
      assertBetween(found.expiresInMs, HOUR / 2, HOUR)
    },
  },
  {
    name: 'settles an unknown record by removing it',
    async run(store) {
      const claim = await lapsed(store)
      assert.equal(await store.settle(claim.id, 'release', HOUR), true)
      assert.equal(await store.find(claim.id), undefined)
      assert.equal(await store.complete(claim.id, claim.token, anOutcome(), HOUR), false)
    },
  },
  {
    name: 'does not settle a claim that is running',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      assert.equal(await store.settle(claim.id, anOutcome(), HOUR), false)
      assert.equal(await store.settle(claim.id, 'release', HOUR), false)
      assert.equal((await store.find(claim.id))?.status, 'running')
    },
  },
  {
    name: 'wakes whoever watches a record when it completes, and when the watch is called off (where it can watch)',
    async run(store) {
      if (store.watch === undefined) return
      const claim = aClaim()
      await store.claim(claim)
      const watched = store.watch(claim.id, new AbortController().signal)
      await store.complete(claim.id, claim.token, anOutcome(), HOUR)
      await watched
      const controller = new AbortController()
      const calledOff = store.watch(claim.id, controller.signal)
      controller.abort()
      await calledOff
    },
  },
  {
    name: 'wakes whoever watches a record when it is released, after a take-over too, and when it is settled (where it can watch)',
    async run(store) {
      if (store.watch === undefined) return
      const { signal } = new AbortController()
      const claim = aClaim()
      await store.claim(claim)
      const released = store.watch(claim.id, signal)
      await store.release(claim.id, claim.token)
      await released
      const { id } = await lapsed(store)
      const taken = aClaim({ id, takeOver: true })
      await store.claim(taken)
      const releasedAgain = store.watch(id, signal)
      await store.release(id, taken.token)
      await releasedAgain
      const settled = store.watch(id, signal)
      await store.settle(id, anOutcome(), HOUR)
      await settled
    },
  },
  {
    name: 'lists records by status, route and age, each once (where it lists)',
    async run(store) {
      if (store.list === undefined) return
      const route = `POST /${anId()}`
      const meta = { ...aClaim().meta, route, firstSeenAt: Date.now() }
      const [running, done] = [aClaim({ meta }), aClaim({ meta })]
      for (const claim of [running, done]) await store.claim(claim)
      await store.complete(done.id, done.token, anOutcome(), HOUR)
      const unknown = aClaim({ meta, leaseMs: 1 })
      await store.claim(unknown)
      await until(store, unknown.id, (record) => record?.status === 'unknown')
      const listed = async (query: ListQuery): Promise<readonly string[]> => {
        const ids: string[] = []
        for await (const { id } of store.list?.({ route, ...query }) ?? []) ids.push(id)
        return ids.toSorted()
      }
      const all = [running.id, done.id, unknown.id].toSorted()
      assert.deepEqual(await listed({}), all)
      assert.deepEqual(await listed({ status: 'running' }), [running.id])
      assert.deepEqual(await listed({ status: 'completed' }), [done.id])
      assert.deepEqual(await listed({ status: 'unknown' }), [unknown.id])
      assert.deepEqual(await listed({ olderThanMs: HOUR }), [])
      assert.equal((await listed({ limit: 2 })).length, 2)
      assert.deepEqual(await listed({ route: `${route}/other` }), [])
      for await (const record of store.list({ route, status: 'completed' })) {
        assert.deepEqual(record, { ...(await store.find(done.id)), ...changing(record) })
      }
    },
  },
  {
    name: 'ends a list early when its signal aborts, and at once when it has aborted before (where it lists)',
    async run(store) {
      if (store.list === undefined) return
      const route = `POST /${anId()}`
      const meta = { ...aClaim().meta, route }
      const claims = times(300, () => aClaim({ meta }))
      await Promise.all(claims.map((claim) => store.claim(claim)))
      const controller = new AbortController()
      const { signal } = controller
      let listed = 0
      for await (const record of store.list({ route, signal })) {
        assert.equal(record.meta.route, route)
        listed += 1
        controller.abort()
      }
      assertBetween(listed, 1, claims.length - 1)
      for await (const record of store.list({ route, signal }))
        assert.fail(`It gave ${record.id}, though nobody listens any more`)
    },
  },
  {
    name: 'removes what has ended and what is unknown, and nothing that runs (where it removes)',
    async run(store) {
      if (store.remove === undefined) return
      const [running, done] = [aClaim(), aClaim()]
      for (const claim of [running, done]) await store.claim(claim)
      await store.complete(done.id, done.token, anOutcome(), HOUR)
      const unknown = await lapsed(store)
      assert.equal(await store.remove(running.id), false)
      assert.equal(await store.remove(anId()), false)
      assert.equal((await store.find(running.id))?.status, 'running')
      for (const { id } of [done, unknown]) {
        assert.equal(await store.remove(id), true)
        assert.equal(await store.find(id), undefined)
        assert.equal(await store.remove(id), false)
        assert.deepEqual(await store.claim(aClaim({ id })), { status: 'acquired', fence: 1 })
      }
    },
  },
  {
    name: 'sweeps what has expired, and nothing else (where it sweeps)',
    async run(store) {
      if (store.sweep === undefined) return
      const [gone, kept, unknown] = [aClaim(), aClaim(), await lapsed(store)]
      for (const claim of [gone, kept]) await store.claim(claim)
      await store.complete(gone.id, gone.token, anOutcome(), 1)
      await store.complete(kept.id, kept.token, anOutcome(), HOUR)
      await until(store, gone.id, (record) => record === undefined)
      assert.equal(typeof (await store.sweep()), 'number')
      assert.equal((await store.find(kept.id))?.status, 'completed')
      assert.equal((await store.find(unknown.id))?.status, 'unknown')
    },
  },
]

/** What of a record is another every time it is read. */
function changing(record: StoredRecord): Partial<StoredRecord> {
  const { expiresInMs } = record
  return record.status === 'completed' ? { expiresInMs, ageMs: record.ageMs } : { expiresInMs }
}
