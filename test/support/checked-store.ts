import type { IdempotencyStore } from '../../src/contract/store.js'

/** A store as it is after its check, which an engine asks for before its first claim. In Redis it shares commands then. */
export async function checked(store: IdempotencyStore): Promise<IdempotencyStore> {
  await store.check?.()
  return store
}
