import { isIdempotencyError } from '../contract/errors.js'
import { postgresStore } from '../stores/postgres.js'
import { poolDriver } from '../stores/postgres-driver.js'
import { tableNames } from '../stores/postgres-names.js'
import { expiredStatement } from '../stores/postgres-statements.js'
import { clientPackage, type OpenedStore, REACHED_WITHIN_MS, reached } from './opened-store.js'
import type { StoreFlags } from './store-flags.js'
import type { StoreLocation } from './store-location.js'

/** Reading or sweeping a large table takes its time, which one record does not. */
const LONG_QUERY_MS = 300_000

/**
 * Connects to Postgres.
 *
 * @param longQueryMs how long a statement may take that reads or sweeps a table.
 */
export async function openPostgres(
  location: StoreLocation,
  flags: StoreFlags,
  longQueryMs = LONG_QUERY_MS,
): Promise<OpenedStore> {
  const { default: pg } = await clientPackage('pg', () => import('pg'))
  const pool = new pg.Pool({
    connectionString: location.url,
    connectionTimeoutMillis: REACHED_WITHIN_MS,
    application_name: 'oncekey',
    max: 2,
  })
  pool.on('error', () => {
    // A connection that broke while it was idle. The next statement gets another one, or fails and is told.
  })
  const names = tableFlags(flags)
  const store = postgresStore(pool, { ...names, queryTimeout: REACHED_WITHIN_MS })
  const patient = postgresStore(pool, { ...names, queryTimeout: longQueryMs })
  try {
    await reached(location, pool.query('select 1'))
  } catch (error) {
    void pool.end()
    throw error
  }
  return {
    store: { ...store, list: patient.list as NonNullable<typeof patient.list> },
    async expired() {
      const statement = expiredStatement(tableNames(names).table)
      const [row] = await poolDriver(pool, longQueryMs).query(statement, [], false)
      return (row as { readonly expired: number } | undefined)?.expired ?? 0
    },
    sweep: patient.sweep as NonNullable<typeof patient.sweep>,
    tables: {
      async missing() {
        try {
          await store.check?.()
          return undefined
        } catch (error) {
          if (isIdempotencyError(error) && error.code === 'IDEMPOTENCY_STORE_UNFIT') return error.message
          throw error
        }
      },
      migrate: patient.migrate,
    },
    close: () => pool.end(),
  }
}

/** The names of the tables, as the store takes them. */
export function tableFlags({ schema, table }: StoreFlags): {
  readonly schema?: string
  readonly table?: string
} {
  return { ...(schema !== undefined && { schema }), ...(table !== undefined && { table }) }
}
