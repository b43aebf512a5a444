import { isIdempotencyError, StoreUnavailableError } from '../contract/errors.js'
import type { IdempotencyStore, ListQuery, StoredRecord } from '../contract/store.js'
import { createStoreCalls } from '../core/store-calls.js'

/** What a list came to. */
export interface Listed {
  /** The oldest first. */
  readonly records: readonly StoredRecord[]
  /** Whether that is all, or there are more than were asked for, or the time was up. */
  readonly ended: 'all' | 'limit' | 'time'
}

/** A store as a console needs it: every step in time, and one kind of failure. */
export interface StoreView extends Pick<IdempotencyStore, 'find' | 'settle'> {
  /** `undefined` where the store cannot list. */
  readonly list: ((query: LimitedQuery) => Promise<Listed>) | undefined
}

/** Which records, and how many at the most. A list ends when its `signal` aborts, too. */
export type LimitedQuery = ListQuery & { readonly limit: number }

/** A person waits longer than a customer's request. */
export const STEP_TIMEOUT_MS = 5000

/**
 * Looks at a store for people. A list ends after `timeoutMs` with what it has found: some stores have to read every
 * record for it.
 */
export function viewStore(store: IdempotencyStore, timeoutMs = STEP_TIMEOUT_MS): StoreView {
  const call = createStoreCalls({ events: { emit() {}, isHeard: () => false }, storeTimeoutMs: timeoutMs })
  const list = store.list?.bind(store)
  return {
    // No record is called so, and Postgres takes no text with it.
    find: async (id) => (id.includes('\0') ? undefined : call('find', () => store.find(id))),
    settle: (...args) => call('settle', () => store.settle(...args)),
    list: list && ((query) => listWithin(list, query, timeoutMs)),
  }
}

async function listWithin(
  list: NonNullable<IdempotencyStore['list']>,
  query: LimitedQuery,
  timeoutMs: number,
): Promise<Listed> {
  const { limit, signal: gone } = query
  const ending = new AbortController()
  const { signal } = ending
  const ended = new Promise<'time'>((resolve) => {
    signal.addEventListener('abort', () => resolve('time'))
  })
  const end = (): void => ending.abort()
  const timer = setTimeout(end, timeoutMs)
  gone?.addEventListener('abort', end)
  if (gone?.aborted) end()

  const records: StoredRecord[] = []
  try {
    // One more than is shown tells whether there are more.
    const iterator = list({ ...query, limit: limit + 1, signal })[Symbol.asyncIterator]()
    for (;;) {
      const next = await Promise.race([iterator.next(), ended])
      // It is not waited for: it may hang in the middle of a step. What it throws then has no reader.
      if (next === 'time' || (next.done === true && signal.aborted))
        return { records: byAge(records).slice(0, limit), ended: 'time' }
      if (next.done === true) {
        const isAll = records.length <= limit
        return { records: byAge(records).slice(0, limit), ended: isAll ? 'all' : 'limit' }
      }
      records.push(next.value)
    }
  } catch (error) {
    if (isIdempotencyError(error)) throw error
    throw new StoreUnavailableError('The store failed at "list"', { cause: error })
  } finally {
    clearTimeout(timer)
    gone?.removeEventListener('abort', end)
    // Also where a list has given enough, or too much: nobody reads on.
    end()
  }
}

function byAge(records: StoredRecord[]): readonly StoredRecord[] {
  return records.sort((one, other) => one.meta.firstSeenAt - other.meta.firstSeenAt)
}
