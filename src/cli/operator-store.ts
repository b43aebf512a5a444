import { isIdempotencyError } from '../contract/errors.js'
import type { IdempotencyStore, ListQuery, Outcome, StoredRecord } from '../contract/store.js'
import { isSealed } from '../stores/seal.js'
import { sealedStore } from '../stores/sealed.js'
import { StoreFailedError, UsageError } from './command.js'
import { openPostgres } from './open-postgres.js'
import { openRedis } from './open-redis.js'
import { type OpenedStore, reasonOf } from './opened-store.js'
import type { StoreFlags } from './store-flags.js'
import { type StoreLocation, storeLocation } from './store-location.js'

/** A store as commands use it. What the backend refuses or does not answer is a `StoreFailedError`. */
export interface OperatorStore {
  readonly location: StoreLocation
  /** Reads a record; its outcome is opened where it is sealed and a key for it was given. */
  find(id: string): Promise<StoredRecord | undefined>
  list(query: ListQuery): AsyncIterable<StoredRecord>
  /** Lets what the backend does not give be told as its failure. */
  reading<T>(items: AsyncIterable<T>): AsyncIterable<T>
  settle(id: string, resolution: Outcome | 'release', ttlMs: number): Promise<boolean>
  /** Whether outcomes are sealed here, and no key was given to seal another one. */
  lacksSealingKey(): Promise<boolean>
  readonly sweep: (() => Promise<number>) | undefined
  readonly expired: (() => Promise<number>) | undefined
  readonly tables: OpenedStore['tables']
  /** The store itself, for an inbox in it. */
  readonly backend: IdempotencyStore
}

/**
 * Opens the store that the options and the environment name, hands it to `work`, and closes it.
 *
 * @throws {UsageError} when none is named, or its client is not installed.
 * @throws {StoreFailedError} when it cannot be reached, or fails.
 */
export async function withStore<T>(
  flags: StoreFlags,
  work: (store: OperatorStore) => Promise<T>,
  needs: { readonly tables: boolean } = { tables: true },
): Promise<T> {
  const location = storeLocation(flags.store)
  const opened = await (location.kind === 'redis' ? openRedis : openPostgres)(location, flags)
  try {
    const store = operatorStore(location, opened)
    const missing = needs.tables ? await store.tables?.missing() : undefined
    if (missing !== undefined)
      throw new StoreFailedError(
        `${location.shown}: ${missing.replace('store.migrate()', 'store.migrate(), or "npx oncekey migrate",')}`,
      )
    return await work(store)
  } finally {
    // Not waited for: a connection that does not close by itself must not keep an operator.
    void opened.close().catch(() => {})
  }
}

function operatorStore(location: StoreLocation, opened: OpenedStore): OperatorStore {
  const { store, sweep, expired, tables } = opened
  const sealing = sealingStore(store)
  const asked = <T>(step: Promise<T>): Promise<T> => step.catch((error: unknown) => fail(location, error))
  async function* reading<T>(items: AsyncIterable<T>): AsyncIterable<T> {
    try {
      yield* items
    } catch (error) {
      fail(location, error)
    }
  }

  return {
    location,
    backend: sealing ?? store,

    find: (id) => asked(sealing === undefined ? store.find(id) : openedOrSealed(sealing, store, id)),

    list: (query) => reading(store.list(query)),

    reading,

    settle: (id, resolution, ttlMs) => asked((sealing ?? store).settle(id, resolution, ttlMs)),

    async lacksSealingKey() {
      if (sealing !== undefined) return false
      for await (const record of this.list({ status: 'completed', limit: 1 }))
        return record.status === 'completed' && isSealed(record.outcome)
      return false
    },

    sweep: sweep && (() => asked(sweep())),
    expired: expired && (() => asked(expired())),
    tables: tables && {
      missing: () => asked(tables.missing()),
      migrate: () => asked(tables.migrate()),
    },
  }
}

/** The keys are in the environment only: others see a command line. */
function sealingStore(store: IdempotencyStore): IdempotencyStore | undefined {
  const keys = process.env.ONCEKEY_SEALING_KEYS?.split(',').map((key) => key.trim())
  if (keys === undefined) return undefined
  return sealedStore(store, { keys, acceptUnsealed: true })
}

/** What cannot be opened is shown as it is: sealed. */
async function openedOrSealed(
  sealing: IdempotencyStore,
  store: IdempotencyStore,
  id: string,
): Promise<StoredRecord | undefined> {
  try {
    return await sealing.find(id)
  } catch (error) {
    if (isIdempotencyError(error) && error.code === 'IDEMPOTENCY_OUTCOME_UNREADABLE') return store.find(id)
    throw error
  }
}

function fail(location: StoreLocation, error: unknown): never {
  if (isIdempotencyError(error) || error instanceof UsageError || error instanceof StoreFailedError)
    throw error
  throw new StoreFailedError(`${location.shown} failed: ${reasonOf(error)}`, { cause: error })
}
