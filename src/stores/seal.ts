import {
  createCipheriv,
  createDecipheriv,
  createHmac,
  createSecretKey,
  type KeyObject,
  randomBytes,
} from 'node:crypto'
import { asBuffer } from '../contract/as-buffer.js'
import { OutcomeUnreadableError } from '../contract/errors.js'
import type { Outcome } from '../contract/store.js'
import { compressed, decompressed } from './compression.js'

/** Makes outcomes unreadable and unchangeable, and readable again. */
export interface Sealer {
  seal(id: string, outcome: Outcome): Promise<Outcome>

  /** @throws {OutcomeUnreadableError} when no key opens it, or it is not what was sealed for this id. */
  open(id: string, sealed: Outcome): Promise<Outcome>
}

/**
 * A sealed head is the format, the name of the key and the nonce, each after a space; a tombstone's has the sealed bytes
 * after that, in base64url, since it has no body to hold them. What is sealed, in one piece, is the length of the head in
 * four bytes, the head and the body: no head can be put beside another body. The highest bit of the length says that the body
 * is compressed. Then the length that it had stands before the head, in four more bytes.
 */
const FORMAT = '1'
const MARK = 'oncekey-sealed '
const PATTERN = new RegExp(`^${MARK}${FORMAT} ([\\w-]{11}) ([\\w-]{16})(?: ([\\w-]+))?$`)

const CIPHER = 'aes-256-gcm'
const NONCE_BYTES = 12
const TAG_BYTES = 16
const LENGTH_BYTES = 4
const COMPRESSED = 0x8000_0000
const NAME_BYTES = 8
const NO_BYTES = Buffer.alloc(0)

/** Whether an outcome says that it is sealed, in whatever format. */
export function isSealed({ head }: Outcome): boolean {
  return head.startsWith(MARK)
}

/**
 * Makes the sealer of some keys of 32 bytes: the first seals, every one opens. Bodies of more bytes than `above` are
 * compressed first, since what is sealed does not get shorter.
 */
export function createSealer(keys: readonly [Uint8Array, ...Uint8Array[]], above: number): Sealer {
  const secrets = new Map<string, KeyObject>()
  for (const key of keys) {
    const secret = createSecretKey(key)
    secrets.set(nameOf(secret), secret)
  }
  const first = createSecretKey(keys[0])
  const firstName = nameOf(first)

  return {
    async seal(id, outcome) {
      const { result, head, body } = outcome
      const length = body?.byteLength ?? 0
      const shorter = body !== null && length > above ? await compressed(asBuffer(body)) : undefined
      const nonce = randomBytes(NONCE_BYTES)
      const cipher = createCipheriv(CIPHER, recordKey(first, id), nonce)
      cipher.setAAD(associatedData(id, outcome))
      const headBytes = Buffer.from(head)
      const lengths = Buffer.alloc(shorter === undefined ? LENGTH_BYTES : 2 * LENGTH_BYTES)
      lengths.writeUInt32BE(headBytes.byteLength + (shorter === undefined ? 0 : COMPRESSED))
      if (shorter !== undefined) lengths.writeUInt32BE(length, LENGTH_BYTES)
      const pieces = [lengths, headBytes, shorter ?? body ?? NO_BYTES].map((piece) => cipher.update(piece))
      const sealed = Buffer.concat([...pieces, cipher.final(), cipher.getAuthTag()])
      const sealedHead = `${MARK}${FORMAT} ${firstName} ${nonce.toString('base64url')}`
      if (body !== null) return { result, head: sealedHead, body: sealed }
      return { result, head: `${sealedHead} ${sealed.toString('base64url')}`, body: null }
    },

    async open(id, outcome) {
      const [, name = '', nonce = '', inHead] = PATTERN.exec(outcome.head) ?? []
      const sealed = inHead === undefined ? outcome.body : Buffer.from(inHead, 'base64url')
      const hasOnePlace = (inHead === undefined) === (outcome.body !== null)
      if (name === '' || sealed === null || !hasOnePlace || sealed.byteLength < LENGTH_BYTES + TAG_BYTES)
        throw unreadable(id, 'was changed, or is sealed in a format that this version does not know')
      const secret = secrets.get(name)
      if (secret === undefined)
        throw unreadable(id, `is sealed with the key of the name ${name}, which is not among "keys"`)
      const end = sealed.byteLength - TAG_BYTES
      const decipher = createDecipheriv(CIPHER, recordKey(secret, id), Buffer.from(nonce, 'base64url'))
      decipher.setAAD(associatedData(id, outcome))
      decipher.setAuthTag(sealed.subarray(end))
      let opened: Buffer
      try {
        opened = Buffer.concat([decipher.update(sealed.subarray(0, end)), decipher.final()])
      } catch (cause) {
        throw unreadable(id, 'is not what was sealed for this record', { cause })
      }
      const lengthWord = opened.readUInt32BE()
      const isCompressed = lengthWord >= COMPRESSED
      const headStart = isCompressed ? 2 * LENGTH_BYTES : LENGTH_BYTES
      const bodyStart = headStart + (isCompressed ? lengthWord - COMPRESSED : lengthWord)
      const { result } = outcome
      const head = opened.toString('utf8', headStart, bodyStart)
      if (outcome.body === null) return { result, head, body: null }
      const body = opened.subarray(bodyStart)
      return {
        result,
        head,
        body: isCompressed ? await decompressed(body, opened.readUInt32BE(LENGTH_BYTES)) : body,
      }
    },
  }
}

/**
 * The key of one record. Random nonces of 96 bits are safe for 2^32 sealings with one key (NIST SP 800-38D, 8.3), which
 * a busy service reaches. A record is sealed a few times at the most, so with a key each there may be any number of them.
 */
function recordKey(secret: KeyObject, id: string): Buffer {
  return createHmac('sha256', secret).update('oncekey sealed outcome ').update(id).digest()
}

/** Names a key without telling anything about it: it stands beside what the key seals. */
function nameOf(secret: KeyObject): string {
  const digest = createHmac('sha256', secret).update('oncekey name of a key').digest()
  return digest.toString('base64url', 0, NAME_BYTES)
}

/** What stays readable and must not be changed either. The id comes last: it may be any text. */
function associatedData(id: string, { result, body }: Outcome): Buffer {
  return Buffer.from(`${MARK}${FORMAT} ${result} ${body === null ? 'tombstone' : 'body'} ${id}`)
}

function unreadable(id: string, why: string, options?: ErrorOptions): OutcomeUnreadableError {
  return new OutcomeUnreadableError(`The outcome of record ${id} ${why}`, options)
}
