import { OptionsError } from '../contract/errors.js'
import type { IdempotencyStore } from '../contract/store.js'

/**
 * Those of the members that the store has, methods bound to it: a store around another one has an optional member only
 * where that one has it.
 */
export function passedOn<Name extends keyof IdempotencyStore>(
  store: IdempotencyStore,
  names: readonly Name[],
): Pick<IdempotencyStore, Name> {
  const members = names.flatMap((name) => {
    const member: unknown = store[name]
    if (member === undefined) return []
    return [[name, typeof member === 'function' ? member.bind(store) : member] as const]
  })
  return Object.fromEntries(members) as Pick<IdempotencyStore, Name>
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
