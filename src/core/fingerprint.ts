import { createHash, hash } from 'node:crypto'
import { FingerprintError } from '../contract/errors.js'
import { hashCanonical, hashCanonicalInSlices } from './canonical-hash.js'
import type { CanonicalPrefix } from './canonical-writer.js'

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
export function fingerprintOf(parts: FingerprintParts): string {
  const { body } = parts
  if (!isJson(body)) return hashPlain(parts)
  try {
    return hashCanonical(jsonPrefix(parts), body)
  } catch (cause) {
    throw asFingerprintError(cause)
  }
}

/**
 * The same, without holding the process up: a large body gives the event loop back several times, and nobody may change
 * it meanwhile. Throws or rejects as `fingerprintOf` throws.
 */
export function fingerprintInSlices(parts: FingerprintParts): string | Promise<string> {
  const { body } = parts
  if (!isJson(body)) return hashPlain(parts)
  try {
    const hash = hashCanonicalInSlices(jsonPrefix(parts), body)
    if (typeof hash === 'string') return hash
    return hash.catch((cause: unknown) => {
      throw asFingerprintError(cause)
    })
  } catch (cause) {
    throw asFingerprintError(cause)
  }
}

function isJson(body: unknown): boolean {
  return body !== undefined && typeof body !== 'string' && !(body instanceof Uint8Array)
}

function hashPlain({ method, path, body }: FingerprintParts): string {
  const head = headOf(method, path)
  if (body instanceof Uint8Array)
    return createHash('sha256').update(`${head}bytes `).update(body).digest('base64url')
  return hash('sha256', body === undefined ? `${head}none` : `${head}text ${body}`, 'base64url')
}

let last = { method: '', path: '', text: '' }

/** The same one for all requests to the same path in a row: its text need not be made again, nor written. */
function jsonPrefix({ method, path }: FingerprintParts): CanonicalPrefix {
  if (last.method !== method || last.path !== path)
    last = { method, path, text: `${headOf(method, path)}json ` }
  return last
}

/** Method and path are length-prefixed, so that no two requests run together into one text. */
function headOf(method: string, path: string): string {
  return `${SCHEME} ${method.length}:${method} ${path.length}:${path} `
}

function asFingerprintError(cause: unknown): FingerprintError {
  if (cause instanceof RangeError)
    return new FingerprintError('The request nests too deep to be compared', 400, { cause })
  const remedy = 'Give `fingerprint` a function that chooses plain fields'
  return new FingerprintError(`The request has no canonical JSON form. ${remedy}`, 500, { cause })
}
