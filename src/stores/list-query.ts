import type { ListQuery, StoredRecord } from '../contract/store.js'

/** Whether a query asks for a record, where a store has to read it to know. */
export function isAskedFor(record: StoredRecord, query: Omit<ListQuery, 'limit' | 'signal'>): boolean {
  const { status, route, olderThanMs = 0 } = query
  const { meta } = record
  if (status !== undefined && status !== record.status) return false
  return (route === undefined || route === meta.route) && Date.now() - meta.firstSeenAt >= olderThanMs
}
