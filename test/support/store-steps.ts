import type { IdempotencyStore } from '../../src/contract/store.js'
import { aClaim, anOutcome, HOUR } from '../../src/testing/store-fixtures.js'

/** Each step of a store once, in an order that makes sense, to count what it costs. */
export function everyStep(store: IdempotencyStore): readonly (() => Promise<unknown>)[] {
  const claim = aClaim()
  return [
    async () => store.claim(claim),
    () => store.renew(claim.id, claim.token, HOUR),
    () => store.find(claim.id),
    async () => store.complete(claim.id, claim.token, anOutcome(), HOUR),
    async () => store.claim(aClaim({ id: claim.id })),
    () => store.settle(claim.id, 'release', HOUR),
    () => store.release(claim.id, claim.token),
  ]
}
