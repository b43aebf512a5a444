import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import type {
  Completion,
  IdempotencyStore,
  TransactionEnd,
  TransactionResult,
  TransactionSettings,
} from '../contract/store.js'
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
      assert.deepEqual(await complete(store, claim), { committed: true, value: 'done' })
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
        await complete(store, claim, { outcome })
        const found = await store.find(claim.id)
        assert.ok(found?.status === 'completed')
        assertOutcome(found.outcome, outcome)
      },
    }),
  ),
  {
    name: 'keeps nothing when the work rejects, and rejects with the same',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      const failure = new Error('the work failed')
      const running = inTransaction(store, async () => {
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
      assert.deepEqual(await complete(store, claim, { token: aToken() }), { committed: false })
      assert.equal((await store.find(claim.id))?.status, 'running')
    },
  },
  ...[
    { what: 'a small body', body: Buffer.from('{}') },
    { what: 'a large body', body: randomBytes(256 * 1024) },
  ].map(
    ({ what, body }): StoreContractCase => ({
      name: `refuses to complete twice with one token: two transactions with ${what} never both commit`,
      async run(store) {
        const claim = aClaim()
        await store.claim(claim)
        const first = await complete(store, claim, { outcome: anOutcome({ head: 'first', body }) })
        const second = await complete(store, claim, { outcome: anOutcome({ head: 'second', body }) })
        assert.deepEqual([first.committed, second.committed], [true, false])
        const found = await store.find(claim.id)
        assert.ok(found?.status === 'completed')
        assertOutcome(found.outcome, anOutcome({ head: 'first', body }))
      },
    }),
  ),
  {
    name: 'refuses a large body as well, for a token that does not hold the id',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      const outcome = anOutcome({ body: randomBytes(256 * 1024) })
      assert.deepEqual(await complete(store, claim, { token: aToken(), outcome }), { committed: false })
      assert.equal((await store.find(claim.id))?.status, 'running')
    },
  },
  {
    name: 'commits a transaction that completes nothing',
    async run(store) {
      const plain = await inTransaction(store, async () => ({ value: 'plain', completion: undefined }))
      assert.deepEqual(plain, { committed: true, value: 'plain' })
    },
  },
  {
    name: 'refuses to complete what was released',
    async run(store) {
      const claim = aClaim()
      await store.claim(claim)
      await store.release(claim.id, claim.token)
      assert.deepEqual(await complete(store, claim), { committed: false })
      assert.equal(await store.find(claim.id), undefined)
    },
  },
  {
    name: 'lets a lapsed claim that nobody took complete',
    async run(store) {
      const claim = await lapsed(store)
      assert.equal((await complete(store, claim)).committed, true)
    },
  },
  {
    name: 'refuses to complete what was taken over, and keeps what the new holder completes',
    async run(store) {
      const first = await lapsed(store)
      const second = aClaim({ id: first.id, takeOver: true })
      assert.equal((await store.claim(second)).status, 'acquired')
      assert.equal((await complete(store, first)).committed, false)
      assert.equal((await complete(store, second)).committed, true)
    },
  },
  {
    name: 'takes a claim that may be lost like any other',
    async run(store) {
      const claim = aClaim({ mayBeLost: true })
      assert.deepEqual(await store.claim(claim), { status: 'acquired', fence: 1 })
      assert.equal((await store.claim(aClaim({ id: claim.id, mayBeLost: true }))).status, 'running')
      await complete(store, claim)
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
        assert.equal((await complete(store, claim, {}, settings)).committed, true)
        assert.equal((await store.find(claim.id))?.status, 'completed')
      },
    }),
  ),
]

/** A transaction that does nothing but complete a claim. */
function complete(
  store: IdempotencyStore,
  claim: Pick<Completion, 'id' | 'token'>,
  given: Partial<Completion> = {},
  settings: Partial<TransactionSettings> = {},
): Promise<TransactionResult<string>> {
  const { id, token } = claim
  const completion = { id, token, outcome: anOutcome(), ttlMs: HOUR, ...given }
  return inTransaction(store, async () => ({ value: 'done', completion }), settings)
}

function inTransaction<T>(
  store: IdempotencyStore,
  work: () => Promise<TransactionEnd<T>>,
  settings: Partial<TransactionSettings> = {},
): Promise<TransactionResult<T>> {
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
