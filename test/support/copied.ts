import assert from 'node:assert/strict'
import type { IdempotencyStore } from '../../src/contract/store.js'
import type { TieredStoreOptions } from '../../src/stores/tiered.js'
import { aClaim } from '../../src/testing/store-fixtures.js'

/** The two stores of a tiered one. */
export type Tiers = Pick<TieredStoreOptions, 'durable' | 'replays'>

/** A record that ends sooner than this is not copied, or its copy may be gone before anybody looks. */
const SHORTEST_MS = 5000

/** Retries until the replays tier has a copy. One that takes longer than a second, as on a busy machine, is given up. */
export async function copied(store: IdempotencyStore, replays: IdempotencyStore, id: string): Promise<void> {
  const givesUpAt = Date.now() + 20_000
  while ((await replays.find(id))?.status !== 'completed') {
    assert.ok(Date.now() < givesUpAt, 'no copy was made within 20 seconds')
    await store.claim(aClaim({ id }))
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

/**
 * A tiered store whose every answer to a retry comes from a copy, and is checked to. Records that end too soon to be
 * copied are answered as they are.
 */
export function answeringFromCopies(
  tiers: Tiers,
  tiered: (tiers: Tiers) => IdempotencyStore,
): IdempotencyStore {
  let claims = 0
  const durable: IdempotencyStore = {
    ...tiers.durable,
    claim(request) {
      claims += 1
      return tiers.durable.claim(request)
    },
  }
  const store = tiered({ ...tiers, durable })
  return {
    ...store,
    async claim(request) {
      const answer = await store.claim(request)
      const record = answer.status === 'completed' ? await durable.find(request.id) : undefined
      if (record === undefined || record.expiresInMs < SHORTEST_MS) return answer
      await copied(store, tiers.replays, request.id)
      const claimsBefore = claims
      const later = await store.claim(request)
      assert.equal(claims, claimsBefore, 'the durable store was asked for an answer that was copied')
      return later
    },
  }
}
