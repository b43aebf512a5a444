import type { IdempotencyStore, Outcome, StoredRecord } from '../contract/store.js'
import { outcomeOf } from '../http/http-answer.js'
import { outcomeOfResponse, type PlainResponse } from '../http/response-outcome.js'
import { type AuditLogger, type AuditOptions, writeAudit } from '../telemetry/audit-log.js'

/** What an operator found out about an operation whose outcome is unknown. */
export type Resolution =
  /** It ended, and this is its answer: retries get it. */
  | { readonly kind: 'answer'; readonly response: PlainResponse }
  /** It ended with this status, and its answer is not known: retries are told so, and run nothing. */
  | { readonly kind: 'tombstone'; readonly status: number }
  /** It did not happen: a retry runs it. */
  | { readonly kind: 'release' }

/** A record as the operator saw it when the decision was made. One that was claimed again since is another matter. */
export type SeenRecord = Pick<StoredRecord, 'id' | 'fence'> & {
  readonly meta: Pick<StoredRecord['meta'], 'firstSeenAt'>
}

/** What became of an operator's decision. */
export type Ending =
  /** It was done. `record` is what was there before. */
  | { readonly done: true; readonly record: StoredRecord }
  /** Nothing was done, because the record is not the unknown one that was seen. `now` is what is there, if anything. */
  | { readonly done: false; readonly why: 'changed'; readonly now: StoredRecord | undefined }
  /** Nothing was done: only an HTTP service reads such an answer, and this record is of a function or a message. */
  | { readonly done: false; readonly why: 'not-http'; readonly now: StoredRecord }

/**
 * Settles or releases an operation whose outcome is unknown, on the word of an operator. An audit line says so before it is
 * done, and another one after. What is no longer the unknown record that was seen is left as it is.
 *
 * @throws what the store throws.
 */
export async function endUnknown(
  store: Pick<IdempotencyStore, 'find' | 'settle'>,
  decision: {
    readonly seen: SeenRecord
    readonly resolution: Resolution
    /** How long a settled answer is kept, in milliseconds, at least: never shorter than the record had left. */
    readonly ttlMs: number
    /** Who decided. */
    readonly by: string
  },
  audit: { readonly logger: AuditLogger; readonly options?: AuditOptions | undefined },
): Promise<Ending> {
  const { seen, resolution, ttlMs, by } = decision
  const record = await store.find(seen.id)
  if (record === undefined || !isAsSeen(record, seen)) return { done: false, why: 'changed', now: record }
  if (resolution.kind !== 'release' && !isOfHttp(record)) return { done: false, why: 'not-http', now: record }

  const { logger, options } = audit
  const { id, fence, meta } = record
  const { key, scope, route, firstSeenAt } = meta
  const status = statusOf(resolution)
  const about = { id, scope, key, route, firstSeenAt, fence, by, ...(status !== undefined && { status }) }
  const isRelease = resolution.kind === 'release'
  // Before it is done: if this process ends here, or the answer of the store is lost, there is a line all the same.
  writeAudit(logger, { event: isRelease ? 'releasing' : 'settling', ...about }, options)
  // A claim that takes it over between the look and this step is refused by the store: it is running then.
  const keptMs = Math.ceil(Math.max(ttlMs, record.expiresInMs))
  const isDone = await store.settle(id, outcomeOfResolution(resolution), keptMs)
  if (!isDone) return { done: false, why: 'changed', now: await store.find(id) }
  writeAudit(logger, { event: isRelease ? 'released' : 'settled', ...about }, options)
  return { done: true, record }
}

function statusOf(resolution: Resolution): number | undefined {
  switch (resolution.kind) {
    case 'release':
      return undefined
    case 'answer':
      return resolution.response.status
    case 'tombstone':
      return resolution.status
  }
}

/** Whether the record is of a request: method and route. Functions and messages keep outcomes in forms of their own. */
export function isOfHttp({ meta }: Pick<StoredRecord, 'meta'>): boolean {
  return /^[A-Z]+ \S/.test(meta.route)
}

/** Whether a record is still the unknown one that was seen. */
export function isAsSeen(record: StoredRecord, seen: SeenRecord): boolean {
  return (
    record.status === 'unknown' &&
    record.fence === seen.fence &&
    // A released key that was claimed again begins with fence 1 again.
    record.meta.firstSeenAt === seen.meta.firstSeenAt
  )
}

function outcomeOfResolution(resolution: Resolution): Outcome | 'release' {
  switch (resolution.kind) {
    case 'release':
      return 'release'
    case 'answer':
      return outcomeOfResponse(resolution.response)
    case 'tombstone':
      return outcomeOf({ status: resolution.status, headers: [], body: 'not-kept', isText: false })
  }
}
