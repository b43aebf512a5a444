import { createHash, hash } from 'node:crypto'
import { FingerprintError } from '../contract/errors.js'
import { hashCanonical } from './canonical-hash.js'

/** What a fingerprint is made of. */
export interface FingerprintParts {
  /** The HTTP method, or the kind of operation. */
  readonly method: string
  /** Path with query as the client sent it, or the operation's name. */
  readonly path: string
  /** What the request says: bytes and text as they are, anything else as JSON. `undefined` for nothing. */
  readonly body: unknown
}

/** Changes whenever the way of hashing does: fingerprints of two schemes are never equal by chance. */
const SCHEME = 'oncekey-1'

/**
 * Which request a key stands for: SHA-256 over scheme, method, path and canonical body, base64url.
 *
 * @throws {FingerprintError} when the body has no canonical form.
 */
export function fingerprintOf({ method, path, body }: FingerprintParts): string {
  // Method and path are length-prefixed, so that no two requests run together into one text.
  const head = `${SCHEME} ${method.length}:${method} ${path.length}:${path} `
  if (body === undefined) return hash('sha256', `${head}none`, 'base64url')
  if (typeof body === 'string') return hash('sha256', `${head}text ${body}`, 'base64url')
  if (body instanceof Uint8Array)
    return createHash('sha256').update(`${head}bytes `).update(body).digest('base64url')
  try {
    return hashCanonical(`${head}json `, body)
  } catch (cause) {
    if (cause instanceof RangeError)
      throw new FingerprintError('The request nests too deep to be compared', 400, { cause })
    const remedy = 'Give `fingerprint` a function that chooses plain fields'
    throw new FingerprintError(`The request has no canonical JSON form. ${remedy}`, 500, { cause })
  }
}
