import assert from 'node:assert/strict'
import type { IdempotencyStore } from '../../src/contract/store.js'

/** The store as an instance of a class would be it: its methods work when they are called on it, and not apart from it. */
export function asInstance<TStore extends IdempotencyStore>(store: TStore): TStore {
  const instance: Record<string, unknown> = {}
  for (const [name, method] of Object.entries(store))
    instance[name] = function (this: unknown, ...given: unknown[]) {
      assert.equal(this, instance, `${name} was called apart from its store`)
      return (method as (...given: unknown[]) => unknown)(...given)
    }
  return instance as unknown as TStore
}
