import { createHmac, randomBytes } from 'node:crypto'
import { OptionsError } from '../contract/errors.js'

/**
 * Makes a key for one downstream call of an operation: the same for every run of the operation, another for every
 * label, and unguessable without the secret. 43 characters of base64url: an `Idempotency-Key`, an AWS client token (up to
 * 64 characters) and a message id alike.
 */
export type DeriveKey = (label: string) => string

/** Makes the derived keys of an operation from its id. */
export type KeyDerivation = (id: string, label: string) => string

const SCHEME = 'oncekey-derived-1'

/** Makes the derivation of one engine. Without a secret, it throws when it is used. */
export function createKeyDerivation(secret: string | Uint8Array | undefined): KeyDerivation {
  if (secret !== undefined) return (id, label) => derived(secret, id, label)
  return () => {
    throw new OptionsError(
      'deriveKey needs the option "secret": 16 bytes or more, the same in all processes that run the same operations',
    )
  }
}

/** Keys for a request that has none itself: the same for one label, but only within this request. */
export function createLooseKeys(): DeriveKey {
  const seed = randomBytes(32)
  return (label) => derived(seed, '', label)
}

function derived(secret: string | Uint8Array, id: string, label: string): string {
  assertLabel(label)
  // HMAC (RFC 2104) keeps whoever knows one derived key, and the key that came in, from finding another. The id has no
  // fingerprint in it: a released key that comes back with another body must meet the first call's key downstream.
  return createHmac('sha256', secret).update(`${SCHEME} ${id.length}:${id} ${label}`).digest('base64url')
}

function assertLabel(label: unknown): void {
  if (typeof label === 'string' && label !== '' && label.isWellFormed()) return
  throw new OptionsError(
    'deriveKey: the label must be a non-empty, well-formed string that names the call, such as "psp"',
  )
}
