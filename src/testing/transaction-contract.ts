import assert from 'node:assert/strict'
import type { IdempotencyStore, StoreTransaction, TransactionSettings } from '../contract/store.js'
import type { StoreContractCase } from './store-contract.js'
import { aClaim, anOutcome, assertOutcome, aToken, HOUR, lapsed } from './store-fixtures.js'

/**
 * Every promise of `IdempotencyStore.transaction`, for stores that have it. What it promises about the application's own
 * statements is a matter of its database, and of a test beside this suite.
 */
export const transactionContract: readonly StoreContractCase[] = [
  {
    name: 'keeps the outcome when a transaction commits, and gives back what the work returned',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      const returned = await inTransaction(store, async (tx) => {
        assert.equal(await tx.complete(claim.id, claim.token, anOutcome(), HOUR), true)
        return 'returned'
      })
      assert.equal(returned, 'returned')
      const found = await store.find(claim.id)
      assert.ok(found?.status === 'completed')
      assertOutcome(found.outcome, anOutcome())
    },
  },
  ...[
    { what: 'every byte', outcome: anOutcome({ body: Uint8Array.from({ length: 256 }, (_, byte) => byte) }) },
    { what: 'an empty body', outcome: anOutcome({ body: new Uint8Array(0) }) },
    { what: 'a tombstone', outcome: anOutcome({ body: null }) },
    {
      what: 'a head of any text',
      outcome: anOutcome({ head: 'line\n"quoted" \\ ü 漢 🚲', result: 'failed' }),
    },
  ].map(
    ({ what, outcome }): StoreContractCase => ({
      name: `gives back ${what} as it was committed`,
      async run(store) {
        const claim = aClaim()
        await store.claim(claim)
        await inTransaction(store, (tx) => tx.complete(claim.id, claim.token, outcome, HOUR))
        const found = await store.find(claim.id)
        assert.ok(found?.status === 'completed')
        assertOutcome(found.outcome, outcome)
      },
    }),
  ),
  {
    name: 'rolls the outcome back when the work rejects, and rejects with the same',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      const failure = new Error('the work failed')
      const running = inTransaction(store, async (tx) => {
        await tx.complete(claim.id, claim.token, anOutcome(), HOUR)
        throw failure
      })
      await assert.rejects(running, (error) => error === failure)
      assert.equal((await store.find(claim.id))?.status, 'running')
      assert.equal(await store.complete(claim.id, claim.token, anOutcome(), HOUR), true)
    },
  },
  {
    name: 'refuses to complete for a token that does not hold the id',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      const held = await inTransaction(store, (tx) => tx.complete(claim.id, aToken(), anOutcome(), HOUR))
      assert.equal(held, false)
      assert.equal((await store.find(claim.id))?.status, 'running')
    },
  },
  {
    name: 'refuses to complete twice with one token: two transactions of one claim never both commit',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      const complete = (head: string) =>
        inTransaction(store, (tx) => tx.complete(claim.id, claim.token, anOutcome({ head }), HOUR))
      assert.equal(await complete('first'), true)
      assert.equal(await complete('second'), false)
      const found = await store.find(claim.id)
      assert.ok(found?.status === 'completed')
      assertOutcome(found.outcome, anOutcome({ head: 'first' }))
    },
  },
  {
    name: 'refuses to complete what was released',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      await store.release(claim.id, claim.token)
      const held = await inTransaction(store, (tx) => tx.complete(claim.id, claim.token, anOutcome(), HOUR))
      assert.equal(held, false)
      assert.equal(await store.find(claim.id), undefined)
    },
  },
  {
    name: 'lets a lapsed claim that nobody took complete',
    async run(store) {
      const claim = await lapsed(store)
      const held = await inTransaction(store, (tx) => tx.complete(claim.id, claim.token, anOutcome(), HOUR))
      assert.equal(held, true)
    },
  },
  {
    name: 'refuses to complete what was taken over, and keeps what the new holder completes',
    async run(store) {
      const first = await lapsed(store)
      const second = aClaim({ id: first.id, takeOver: true })
      assert.equal((await store.claim(second)).status, 'acquired')
      const complete = (token: string) =>
        inTransaction(store, (tx) => tx.complete(first.id, token, anOutcome(), HOUR))
      assert.equal(await complete(first.token), false)
      assert.equal(await complete(second.token), true)
    },
  },
  {
    name: 'takes a claim that may be lost like any other',
    async run(store) {
      const claim = aClaim({ mayBeLost: true })
      assert.deepEqual(await store.claim(claim), { status: 'acquired', fence: 1 })
      assert.equal((await store.claim(aClaim({ id: claim.id, mayBeLost: true }))).status, 'running')
      await inTransaction(store, (tx) => tx.complete(claim.id, claim.token, anOutcome(), HOUR))
      assert.equal((await store.claim(aClaim({ id: claim.id, mayBeLost: true }))).status, 'completed')
    },
  },
  ...(['read committed', 'repeatable read', 'serializable'] as const).map(
    (isolation): StoreContractCase => ({
      name: `commits under ${isolation}`,
      async run(store) {
        const claim = aClaim()
        await store.claim(claim)
        const settings = { isolation, lockTimeoutMs: 1000 }
        const held = await inTransaction(
          store,
          (tx) => tx.complete(claim.id, claim.token, anOutcome(), HOUR),
          settings,
        )
        assert.equal(held, true)
        assert.equal((await store.find(claim.id))?.status, 'completed')
      },
    }),
  ),
]

function inTransaction<T>(
  store: IdempotencyStore,
  work: (tx: StoreTransaction) => Promise<T>,
  settings: Partial<TransactionSettings> = {},
): Promise<T> {
  assert.ok(store.transaction, 'the store has transactions')
  const { signal } = new AbortController()
  return store.transaction(work, {
    isolation: undefined,
    lockTimeoutMs: undefined,
    attempts: 1,
    signal,
    ...settings,
  })
}
