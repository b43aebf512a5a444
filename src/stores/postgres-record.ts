import { StoreUnfitError } from '../contract/errors.js'
import type { ClaimResult, Outcome, RecordMeta, StoredRecord } from '../contract/store.js'

/** The format of records that this version writes. */
export const FORMAT = 1

/** How many seconds of expiry share one entry of the index that sweeping uses. */
const BUCKET_SECONDS = 10

/**
 * When a record expires, coarsely. It is what is indexed: a completion makes the expiry a little later, and an update that
 * changes no indexed column leaves every index alone.
 */
export function bucketOf(expiresAt: string): string {
  return `floor(date_part('epoch', ${expiresAt}) / ${BUCKET_SECONDS})::int`
}

/** An interval of so many milliseconds. */
export function ms(milliseconds: string): string {
  return `${milliseconds}::float8 * interval '1 millisecond'`
}

/**
 * What a statement says about a record that is there: JSON, since each column of a row has its cost. `now` is the time by
 * which whoever asks has looked at it.
 */
export function foundText(row: string, now = 'clock_timestamp()'): string {
  const msUntil = (at: string): string => `extract(epoch from ${row}.${at} - ${now})::float8 * 1000`
  return `json_build_object(
  'format', ${row}.format, 'status', ${row}.status, 'fingerprint', ${row}.fingerprint, 'fence', ${row}.fence,
  'key', ${row}.key, 'route', ${row}.route, 'scope', ${row}.scope, 'firstSeenAt', ${row}.first_seen_at,
  'leaseLeftMs', ${msUntil('lease_until')}, 'ageMs', -(${msUntil('completed_at')}), 'expiresInMs', ${msUntil('expires_at')},
  'result', ${row}.result, 'head', ${row}.head, 'body', encode(${row}.body, '${BODY_ENCODING}')
)::text`
}

/** How bytes travel in JSON. */
export const BODY_ENCODING = 'base64'

/** A row with `foundText`. */
export interface FoundRow {
  readonly existing: string
}

interface Found {
  readonly format: number
  readonly status: 'running' | 'completed'
  readonly fingerprint: string
  readonly fence: number
  readonly key: string
  readonly route: string
  readonly scope: string
  readonly firstSeenAt: number
  readonly leaseLeftMs: number
  readonly ageMs: number
  readonly expiresInMs: number
  readonly result: Outcome['result']
  readonly head: string
  readonly body: string | null
}

/** What a claim gives that is not a new record: the fence, or the record that is in its way. */
export type Claimed = Found | { readonly acquired: number }

/** The result of a claim that made a new record. */
export const NEWLY_ACQUIRED: ClaimResult = { status: 'acquired', fence: 1 }

/** The result of a claim. */
export function claimResultOf(claimed: Claimed | null): ClaimResult {
  if (claimed === null) return NEWLY_ACQUIRED
  if ('acquired' in claimed) return { status: 'acquired', fence: claimed.acquired }
  const found = readable(claimed)
  const { fingerprint, fence, leaseLeftMs } = found
  if (found.status === 'completed')
    return { status: 'completed', fingerprint, outcome: outcomeOf(found), ageMs: Math.max(0, found.ageMs) }
  if (leaseLeftMs > 0) return { status: 'running', fingerprint, leaseLeftMs }
  return { status: 'unknown', fingerprint, fence, meta: metaOf(found) }
}

/** A record as `find` reports it. */
export function asStoredRecord(id: string, row: FoundRow): StoredRecord {
  const found = readable(JSON.parse(row.existing) as Found)
  const { fingerprint, fence, expiresInMs, leaseLeftMs } = found
  const base = { id, fingerprint, fence, meta: metaOf(found), expiresInMs }
  if (found.status === 'completed')
    return { ...base, status: 'completed', outcome: outcomeOf(found), ageMs: Math.max(0, found.ageMs) }
  if (leaseLeftMs > 0) return { ...base, status: 'running', leaseLeftMs }
  return { ...base, status: 'unknown' }
}

function readable(found: Found): Found {
  if (found.format === FORMAT) return found
  throw new StoreUnfitError(
    'Postgres holds a record that a newer version of oncekey wrote: update this service',
  )
}

function outcomeOf({ result, head, body }: Found): Outcome {
  return { result, head, body: body === null ? null : Buffer.from(body, BODY_ENCODING) }
}

function metaOf({ key, route, scope, firstSeenAt }: Found): RecordMeta {
  return { key, route, scope, firstSeenAt }
}
