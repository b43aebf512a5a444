import type { IdempotencyStore, Outcome, StoredRecord } from '../contract/store.js'
import type { AuditEntry } from '../telemetry/audit-log.js'

/** A record as the operator saw it when the decision was made. One that was claimed again since is another matter. */
export type SeenRecord = Pick<StoredRecord, 'id' | 'fence'> & {
  readonly meta: Pick<StoredRecord['meta'], 'firstSeenAt'>
}

/** What an operator has decided about an operation whose outcome is unknown. */
export interface Decision {
  readonly seen: SeenRecord
  /** How it ended, for its retries; or that it did not happen, so that a retry runs it. */
  readonly outcome: Outcome | 'release'
  /** The HTTP status that the outcome has, for the audit lines. */
  readonly status?: number | undefined
  /** How long a settled answer is kept, in milliseconds, at least: never shorter than the record had left. */
  readonly ttlMs: number
}

/** Where the changes of operators are written down. */
export interface AuditTrail {
  /** Writes down what is about to be done. When it throws, it is not done. */
  announce(entry: AuditEntry): void
  /** Writes down what was done. */
  done(entry: AuditEntry): void
}

/** What became of an operator's decision. */
export type Ending =
  /** It was done. `record` is what was there before. */
  | { readonly done: true; readonly record: StoredRecord }
  /** Nothing was done, because the record is not the unknown one that was seen. `now` is what is there, if anything. */
  | { readonly done: false; readonly now: StoredRecord | undefined }

/**
 * Settles or releases an operation whose outcome is unknown, on the word of an operator. An audit line says so before it is
 * done, and another one after. What is no longer the unknown record that was seen is left as it is.
 *
 * @throws what the store and the trail throw.
 */
export async function endUnknown(
  store: Pick<IdempotencyStore, 'find' | 'settle'>,
  { seen, outcome, status, ttlMs }: Decision,
  trail: AuditTrail,
): Promise<Ending> {
  const record = await store.find(seen.id)
  if (record === undefined || !isAsSeen(record, seen)) return { done: false, now: record }

  const { id, fence, meta } = record
  const { key, scope, route, firstSeenAt } = meta
  // Nothing else of what stands in the store: whoever can write there must not write audit lines.
  const about = { id, key, scope, route, firstSeenAt, fence, ...(status !== undefined && { status }) }
  const isRelease = outcome === 'release'
  // Before it is done: if this process ends here, or the answer of the store is lost, there is a line all the same.
  trail.announce({ ...about, event: isRelease ? 'releasing' : 'settling' })
  // A claim that takes it over between the look and this step is refused by the store: it is running then.
  const keptMs = Math.ceil(Math.max(ttlMs, record.expiresInMs))
  if (!(await store.settle(id, outcome, keptMs))) return { done: false, now: await store.find(id) }
  trail.done({ ...about, event: isRelease ? 'released' : 'settled' })
  return { done: true, record }
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
