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
  /** What some completed records say about sealing, and the keys that were given. */
  sealing(): Promise<Sealing>
  readonly sweep: (() => Promise<number>) | undefined
  readonly expired: (() => Promise<number>) | undefined
  readonly tables: OpenedStore['tables']
  /** The store itself, for an inbox in it. */
  readonly backend: IdempotencyStore
}

/**
 * Whether an outcome that is settled here could be opened by the application: `no-key` and `other-key` where one was found
 * that is sealed and cannot be opened; `not-known` where there was none to look at, and no key was given.
 */
export type Sealing = 'fits' | 'no-key' | 'other-key' | 'not-known'

/** Enough to find sealed ones among those of before sealing was switched on, and few enough to be read for one answer. */
const SEALING_SAMPLES = 50

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

    async sealing() {
      let isKnown = sealing !== undefined
      for await (const record of this.list({ status: 'completed', limit: SEALING_SAMPLES })) {
        isKnown = true
        if (!isClosed(record)) continue
        if (sealing === undefined) return 'no-key'
        if (isClosed(await this.find(record.id))) return 'other-key'
      }
      return isKnown ? 'fits' : 'not-known'
    },

    sweep: sweep && (() => asked(sweep())),
    expired: expired && (() => asked(expired())),
    tables: tables && {
      missing: () => asked(tables.missing()),
      migrate: () => asked(tables.migrate()),
    },
  }
}

function isClosed(record: StoredRecord | undefined): boolean {
  return record?.status === 'completed' && isSealed(record.outcome)
}

/** The keys are in the environment only: others see a command line. */
function sealingStore(store: IdempotencyStore): IdempotencyStore | undefined {
  const given = process.env.ONCEKEY_SEALING_KEYS
  // Empty is how a deployment says that there is none.
  if (!given) return undefined
  const keys = given.split(',').map((key) => key.trim())
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
