import { hash } from 'node:crypto'

/** The longest key, in UTF-16 code units. */
export const MAX_KEY_LENGTH = 255

/** Why `key` cannot be an idempotency key, or `undefined` when it can. */
export function keyProblem(key: unknown): string | undefined {
  if (typeof key !== 'string') return 'An idempotency key must be a string'
  if (key.length === 0) return 'An idempotency key must not be empty'
  if (key.length > MAX_KEY_LENGTH) return `An idempotency key has at most ${MAX_KEY_LENGTH} characters`
  if (/^[ -~]+$/.test(key)) return undefined
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is refused
  if (/[\u0000-\u001f\u007f]/.test(key)) return 'An idempotency key must not hold control characters'
  if (!key.isWellFormed()) return 'An idempotency key must be well-formed Unicode'
  return undefined
}

/** The name of one operation of one caller. The parts are length-prefixed: no two triples share an id. */
export function recordId(name: {
  readonly namespace: string
  readonly scope: string
  readonly key: string
}): string {
  return hashOfName(nameInScope(scopePrefix(name.namespace, name.scope), name.key))
}

/** What the names of all operations of a scope begin with. */
export function scopePrefix(namespace: string, scope: string): string {
  return `${namespace.length}:${namespace}${scope.length}:${scope}`
}

/** The name of one operation, before it is hashed. */
export function nameInScope(prefix: string, key: string): string {
  // Lengths in UTF-16 code units: each string must be well-formed, and then no two have the same bytes.
  return `${prefix}${key.length}:${key}`
}

/** The id of a record, by the name of its operation. */
export function hashOfName(name: string): string {
  return hash('sha256', name, 'base64url')
}

/** A hash of a scope that operators can compare and nobody can read. */
export function scopeHash(namespace: string, scope: string): string {
  return hash('sha256', `${namespace.length}:${namespace}${scope}`, 'base64url').slice(0, 22)
}
