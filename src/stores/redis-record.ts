import { isUtf8 } from 'node:buffer'
import { StoreUnfitError } from '../contract/errors.js'
import type { ClaimRequest, ClaimResult, Outcome, RecordMeta, StoredRecord } from '../contract/store.js'

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

/** Where the digits and the token begin, counted from 0. */
const TIME_START = 2
const TOKEN_START = 16

function metaOf({ bytes, metaStart, lineEnd }: RedisRecord): RecordMeta {
  const [key, route, scope, firstSeenAt] = JSON.parse(bytes.toString('utf8', metaStart, lineEnd))
  return { key, route, scope, firstSeenAt }
}

function outcomeOf({ bytes, lineEnd }: RedisRecord): Outcome {
  const lettersEnd = bytes.indexOf(LINE_FEED, lineEnd + 1)
  if (lettersEnd === -1) throw damaged()
  const letters = bytes.toString('latin1', lineEnd + 1, lettersEnd)
  const headEnd = lettersEnd + 1 + Number(letters.slice(2))
  return {
    result: letters[0] === 'f' ? 'failed' : 'succeeded',
    head: bytes.toString('utf8', lettersEnd + 1, headEnd),
    body: letters[1] === 't' ? null : bytes.subarray(headEnd),
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

/** An outcome as the scripts take it. */
export function encodeOutcome(outcome: Outcome): string | Buffer {
  const { result, head, body } = outcome
  const kind = body === null ? 't' : 'b'
  const start = `${result === 'failed' ? 'f' : 's'}${kind}${Buffer.byteLength(head)}\n${head}`
  if (body === null || body.byteLength === 0) return start
  const bytes = Buffer.from(body.buffer, body.byteOffset, body.byteLength)
  // Valid UTF-8 comes back as it was.
  if (bytes.byteLength <= LONGEST_TEXT && isUtf8(bytes)) return start + bytes.toString()
  return Buffer.concat([Buffer.from(start), bytes])
}

/** What a claim came to: a fence, or the record that was there, read at the server's time `now` in epoch milliseconds. */
export function asClaimResult(reply: unknown, now: number): ClaimResult {
  if (typeof reply === 'number') return { status: 'acquired', fence: reply }
  const record = parse(reply as Buffer)
  const { isCompleted, at, fence, fingerprint } = record
  if (isCompleted)
    return { status: 'completed', fingerprint, outcome: outcomeOf(record), ageMs: Math.max(0, now - at) }
  if (at > now) return { status: 'running', fingerprint, leaseLeftMs: at - now }
  return { status: 'unknown', fingerprint, fence: Number(fence), meta: metaOf(record) }
}

/** A record as `find` reports it. */
export function asStoredRecord(
  id: string,
  bytes: Buffer,
  read: { readonly now: number; readonly expiresInMs: number },
): StoredRecord {
  const record = parse(bytes)
  const { isCompleted, at, fence, fingerprint } = record
  const { now, expiresInMs } = read
  const base = { id, fingerprint, fence: Number(fence), meta: metaOf(record), expiresInMs }
  if (isCompleted)
    return { ...base, status: 'completed', outcome: outcomeOf(record), ageMs: Math.max(0, now - at) }
  if (at > now) return { ...base, status: 'running', leaseLeftMs: at - now }
  return { ...base, status: 'unknown' }
}
