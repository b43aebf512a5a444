import { OptionsError } from '../contract/errors.js'
import type { IdempotencyStore } from '../contract/store.js'

/**
 * Those of the methods that the store has, bound to it: a store around another one has an optional method only where
 * that one has it.
 */
export function passedOn<Name extends keyof IdempotencyStore>(
  store: IdempotencyStore,
  names: readonly Name[],
): Pick<IdempotencyStore, Name> {
  const methods = names.flatMap((name) => {
    const method: unknown = store[name]
    return typeof method === 'function' ? [[name, method.bind(store)] as const] : []
  })
  return Object.fromEntries(methods) as Pick<IdempotencyStore, Name>
}

/**
 * Refuses what is no store.
 *
 * @throws {OptionsError} naming `what`.
 */
export function assertStore(store: unknown, what: string): void {
  const { claim, find } = (store ?? {}) as Partial<IdempotencyStore>
  if (typeof claim === 'function' && typeof find === 'function') return
  throw new OptionsError(`${what} must be a store, such as redisStore(client) makes`)
}
