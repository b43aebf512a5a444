import { isUtf8 } from 'node:buffer'
import type { ClaimResult, Outcome, RecordMeta, StoredRecord } from '../contract/store.js'

/** A record as Redis holds it, read at the server's time `now` in epoch milliseconds. */
export interface RedisRecord {
  readonly state: 'R' | 'C'
  /** When the lease ends, or when it was completed. */
  readonly at: number
  readonly fence: number
  readonly fingerprint: string
  readonly meta: RecordMeta
  readonly outcome: Outcome
}

const LINE_FEED = 10

/** Reads a record whose format a script has checked. The layout is explained in `redis-scripts.ts`. */
export function decodeRecord(bytes: Buffer): RedisRecord {
  const end = bytes.indexOf(LINE_FEED)
  const fields = bytes.toString('latin1', 0, end).split(' ')
  const [stateAndTime = '', fence, , fingerprint = '', metaLength, headLength, letters = ''] = fields
  const headStart = end + 1 + Number(metaLength)
  const bodyStart = headStart + Number(headLength)
  return {
    state: stateAndTime[1] === 'C' ? 'C' : 'R',
    at: Number(stateAndTime.slice(2)),
    fence: Number(fence),
    fingerprint,
    meta: JSON.parse(bytes.toString('utf8', end + 1, headStart)) as RecordMeta,
    outcome: {
      result: letters[0] === 'f' ? 'failed' : 'succeeded',
      head: bytes.toString('utf8', headStart, bodyStart),
      body: letters[1] === 't' ? null : bytes.subarray(bodyStart),
    },
  }
}

/** An outcome as the scripts take it: head, letters and body. */
export function encodeOutcome(
  outcome: Outcome,
): readonly [head: string, letters: string, body: string | Buffer] {
  const { result, head, body } = outcome
  const letters = `${result === 'failed' ? 'f' : 's'}${body === null ? 't' : 'b'}`
  if (body === null) return [head, letters, '']
  const bytes = Buffer.from(body.buffer, body.byteOffset, body.byteLength)
  // A command of strings goes out in one piece, and one with bytes in it in several. Valid UTF-8 comes back as it was.
  const isShortText = bytes.byteLength <= 16_384 && isUtf8(bytes)
  return [head, letters, isShortText ? bytes.toString() : bytes]
}

/** What a claim found that did not acquire it. */
export function asClaimResult(record: RedisRecord, now: number): ClaimResult {
  const { state, at, fence, fingerprint, meta, outcome } = record
  if (state === 'C') return { status: 'completed', fingerprint, outcome, ageMs: Math.max(0, now - at) }
  if (at > now) return { status: 'running', fingerprint, leaseLeftMs: at - now }
  return { status: 'unknown', fingerprint, fence, meta }
}

/** A record as `find` reports it. */
export function asStoredRecord(
  id: string,
  record: RedisRecord,
  read: { readonly now: number; readonly expiresInMs: number },
): StoredRecord {
  const { state, at, fence, fingerprint, meta, outcome } = record
  const { now, expiresInMs } = read
  const base = { id, fingerprint, fence, meta, expiresInMs }
  if (state === 'C') return { ...base, status: 'completed', outcome, ageMs: Math.max(0, now - at) }
  if (at > now) return { ...base, status: 'running', leaseLeftMs: at - now }
  return { ...base, status: 'unknown' }
}
