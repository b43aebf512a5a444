import { isUtf8 } from 'node:buffer'
import { asBuffer } from '../contract/as-buffer.js'
import { OutcomeUnreadableError, StoreUnfitError } from '../contract/errors.js'
import { isPromise, type MaybePromise } from '../contract/maybe-promise.js'
import type { ClaimRequest, ClaimResult, Outcome, RecordMeta, StoredRecord } from '../contract/store.js'
import { compressed, decompressed } from './compression.js'
import { TIME_START, TOKEN_START } from './redis-scripts.js'

/** A record as Redis holds it, and nothing of it decoded that not everybody needs. */
interface RedisRecord {
  readonly isCompleted: boolean
  /** When the lease ends, or when it was completed. */
  readonly at: number
  readonly fence: string
  readonly fingerprint: string
  readonly bytes: Buffer
  /** Where the meta begins, and the line feed behind it. */
  readonly metaStart: number
  readonly lineEnd: number
}

const LINE_FEED = 10
const LETTER_C = 67

/** The length of a text in bytes up to which its outcome is sent as text. */
const LONGEST_TEXT = 16_384

/** Takes a record apart. The layout is explained in `redis-scripts.ts`. */
function parse(bytes: Buffer): RedisRecord {
  const lineEnd = bytes.indexOf(LINE_FEED)
  const line = bytes.toString('latin1', 0, lineEnd)
  const tokenEnd = line.indexOf(' ', TOKEN_START)
  const fenceEnd = line.indexOf(' ', tokenEnd + 1)
  const fingerprintEnd = line.indexOf(' ', fenceEnd + 1)
  // A script looks at the format of a completed record only, where it is not the first of these spaces that is missing.
  if (lineEnd === -1 || tokenEnd === -1 || fenceEnd === -1 || fingerprintEnd === -1) throw damaged()
  return {
    isCompleted: bytes[1] === LETTER_C,
    at: Number(line.slice(TIME_START, TOKEN_START - 1)),
    fence: line.slice(tokenEnd + 1, fenceEnd),
    fingerprint: line.slice(fenceEnd + 1, fingerprintEnd),
    bytes,
    metaStart: fingerprintEnd + 1,
    lineEnd,
  }
}

function metaOf({ bytes, metaStart, lineEnd }: RedisRecord): RecordMeta {
  const [key, route, scope, firstSeenAt] = JSON.parse(bytes.toString('utf8', metaStart, lineEnd))
  return { key, route, scope, firstSeenAt }
}

function outcomeOf(record: RedisRecord): MaybePromise<Outcome> {
  const { bytes, lineEnd } = record
  const lettersEnd = bytes.indexOf(LINE_FEED, lineEnd + 1)
  if (lettersEnd === -1) throw damaged()
  const letters = bytes.toString('latin1', lineEnd + 1, lettersEnd)
  const headEnd = lettersEnd + 1 + Number.parseInt(letters.slice(2), 10)
  const result = letters[0] === 'f' ? 'failed' : 'succeeded'
  const head = bytes.toString('utf8', lettersEnd + 1, headEnd)
  if (letters[1] === 't') return { result, head, body: null }
  const body = bytes.subarray(headEnd)
  if (letters[1] === 'b') return { result, head, body }
  return decompress(record, body, Number(letters.slice(letters.indexOf(' ')))).then((whole) => ({
    result,
    head,
    body: whole,
  }))
}

async function decompress(record: RedisRecord, body: Buffer, length: number): Promise<Buffer> {
  try {
    return await decompressed(body, length)
  } catch (cause) {
    const message = `The outcome of key ${metaOf(record).key} cannot be decompressed: it was changed, or cut`
    throw new OutcomeUnreadableError(message, { cause })
  }
}

function damaged(): StoreUnfitError {
  return new StoreUnfitError('Redis holds a record that is damaged, or was not written by oncekey')
}

/** A claim as the script takes it. */
export function encodeClaim({ token, fingerprint, meta }: ClaimRequest): string {
  const { key, route, scope, firstSeenAt } = meta
  return `${token} 1 ${fingerprint} ${JSON.stringify([key, route, scope, firstSeenAt])}\n`
}

/** An outcome as the scripts take it, its body compressed where it has more bytes than `above` and gets shorter by it. */
export function encodeOutcome(outcome: Outcome, above: number): MaybePromise<string | Buffer> {
  const { body } = outcome
  if (body === null || body.byteLength === 0) return beginning(outcome, body === null ? 't' : 'b')
  const bytes = asBuffer(body)
  if (bytes.byteLength <= above) return asTheyAre(outcome, bytes)
  const shorter = compressed(bytes)
  const encode = (found: Buffer | undefined): string | Buffer =>
    found === undefined
      ? asTheyAre(outcome, bytes)
      : Buffer.concat([Buffer.from(beginning(outcome, 'z', ` ${bytes.byteLength}`)), found])
  return isPromise(shorter) ? shorter.then(encode) : encode(shorter)
}

function asTheyAre(outcome: Outcome, bytes: Buffer): string | Buffer {
  const start = beginning(outcome, 'b')
  // Valid UTF-8 comes back as it was.
  if (bytes.byteLength <= LONGEST_TEXT && isUtf8(bytes)) return start + bytes.toString()
  return Buffer.concat([Buffer.from(start), bytes])
}

function beginning({ result, head }: Outcome, kind: 'b' | 't' | 'z', length = ''): string {
  return `${result === 'failed' ? 'f' : 's'}${kind}${Buffer.byteLength(head)}${length}\n${head}`
}

/** What a claim came to: a fence, or the record that was there, read at the server's time `now` in epoch milliseconds. */
export function asClaimResult(reply: unknown, now: number): MaybePromise<ClaimResult> {
  if (typeof reply === 'number') return { status: 'acquired', fence: reply }
  const record = parse(reply as Buffer)
  const { isCompleted, at, fence, fingerprint } = record
  if (isCompleted) {
    const ageMs = Math.max(0, now - at)
    const outcome = outcomeOf(record)
    if (!isPromise(outcome)) return { status: 'completed', fingerprint, outcome, ageMs }
    return outcome.then((whole) => ({ status: 'completed', fingerprint, outcome: whole, ageMs }))
  }
  if (at > now) return { status: 'running', fingerprint, leaseLeftMs: at - now }
  return { status: 'unknown', fingerprint, fence: Number(fence), meta: metaOf(record) }
}

/** A record as `find` reports it. */
export async function asStoredRecord(
  id: string,
  bytes: Buffer,
  read: { readonly now: number; readonly expiresInMs: number },
): Promise<StoredRecord> {
  const record = parse(bytes)
  const { isCompleted, at, fence, fingerprint } = record
  const { now, expiresInMs } = read
  const base = { id, fingerprint, fence: Number(fence), meta: metaOf(record), expiresInMs }
  if (isCompleted)
    return { ...base, status: 'completed', outcome: await outcomeOf(record), ageMs: Math.max(0, now - at) }
  if (at > now) return { ...base, status: 'running', leaseLeftMs: at - now }
  return { ...base, status: 'unknown' }
}
