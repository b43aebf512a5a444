import type { StoredRecord } from '../contract/store.js'

/** How many records are in each state. A tombstone is a completed record without its answer. */
export interface StateCounts {
  readonly running: number
  readonly unknown: number
  readonly completed: number
  readonly tombstone: number
}

/** The state of a record, as operators tell them apart. */
export type RecordState = keyof StateCounts

/** What a store holds. */
export interface RecordCounts extends StateCounts {
  readonly total: number
  /** The same for each route, the one with the most records first. */
  readonly routes: readonly ({ readonly route: string; readonly total: number } & StateCounts)[]
  /** The unknown record that was claimed first, longest ago. */
  readonly oldestUnknown: StoredRecord | undefined
}

/** So many routes are counted each for itself. What a client sends may be in a route's name, by mistake. */
const MAX_ROUTES = 1000

/** What the records of further routes are counted under. */
export const OTHER_ROUTES = '(other routes)'

/** The state of a record: as the store has it, but for tombstones. */
export function stateOf(record: StoredRecord): RecordState {
  return record.status === 'completed' && record.outcome.body === null ? 'tombstone' : record.status
}

/** Counts records, as `store.list({})` gives them, and keeps none of them. */
export async function countRecords(records: AsyncIterable<StoredRecord>): Promise<RecordCounts> {
  const all = noRecords()
  const routes = new Map<string, ReturnType<typeof noRecords>>()
  let oldestUnknown: StoredRecord | undefined
  for await (const record of records) {
    const { firstSeenAt } = record.meta
    const state = stateOf(record)
    const counts = countsOf(record.meta.route)
    for (const count of [all, counts]) {
      count[state] += 1
      count.total += 1
    }
    if (state === 'unknown' && firstSeenAt < (oldestUnknown?.meta.firstSeenAt ?? Number.POSITIVE_INFINITY))
      oldestUnknown = record
  }
  return {
    ...all,
    routes: [...routes].map(([route, counts]) => ({ route, ...counts })).sort((a, b) => b.total - a.total),
    oldestUnknown,
  }

  function countsOf(route: string): ReturnType<typeof noRecords> {
    const name = routes.has(route) || routes.size < MAX_ROUTES ? route : OTHER_ROUTES
    const counts = routes.get(name) ?? noRecords()
    routes.set(name, counts)
    return counts
  }
}

function noRecords() {
  return { total: 0, running: 0, unknown: 0, completed: 0, tombstone: 0 }
}
