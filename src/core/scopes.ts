import { LRUCache } from 'lru-cache'
import { ScopeMissingError } from '../contract/errors.js'
import { scopeHash, scopePrefix } from '../contract/key.js'

/** A scope, as its operations are named. */
export interface KnownScope {
  /** What their names begin with. */
  readonly prefix: string
  /** What operators and listeners get to see of it. */
  readonly hash: string
}

const REMEMBERED_SCOPES = 1000

/**
 * Remembers scopes, since most callers come again.
 *
 * @returns a function that throws a `ScopeMissingError` for what is no scope.
 */
export function createScopes(namespace: string): (scope: string) => KnownScope {
  const known = new LRUCache<string, KnownScope>({ max: REMEMBERED_SCOPES })
  return (scope) => {
    let found = known.get(scope)
    if (found === undefined) {
      if (scope === '' || !scope.isWellFormed()) throw new ScopeMissingError()
      found = { prefix: scopePrefix(namespace, scope), hash: scopeHash(namespace, scope) }
      known.set(scope, found)
    }
    return found
  }
}
