import { CommitUndecidedError, OptionsError } from '../contract/errors.js'
import type { TransactionSettings } from '../contract/store.js'
import {
  type DriverEnd,
  type DriverTransaction,
  isRefusal,
  lockTimeoutText,
  nameIgnoredFailure,
  type PostgresDriver,
  unlessAborted,
} from './postgres-driver.js'
import { PARSED_TYPES, parseValue } from './postgres-values.js'

/** What a PGlite database and its transactions have in common, as far as the Postgres store uses it. */
export interface PGliteQueries {
  query(text: string, values?: unknown[], options?: PGliteQueryOptions): Promise<PGliteResult>
  exec(text: string): Promise<unknown>
}

/** The part of a PGlite database that the Postgres store uses. */
export interface PGliteDatabase extends PGliteQueries {
  transaction(work: (transaction: PGliteQueries) => Promise<void>): Promise<unknown>
}

/** How PGlite turns values into text, and text into values, by the type of the column or parameter. */
export interface PGliteQueryOptions {
  readonly parsers: Record<number, (text: string) => unknown>
  readonly serializers: Record<number, (value: unknown) => string>
}

/** What a query of PGlite gives. */
export interface PGliteResult {
  readonly rows: readonly unknown[]
}

// A database may have parsers of its own, and other versions of PGlite have other ones.
const OPTIONS: PGliteQueryOptions = {
  parsers: Object.fromEntries(PARSED_TYPES.map((type) => [type, (text: string) => parseValue(type, text)])),
  serializers: {
    16: String,
    17: (bytes) => `\\x${(bytes as Buffer).toString('hex')}`,
    20: String,
    25: String,
    701: String,
  },
}

/**
 * A PGlite database as a client for `postgresStore`. It has one connection: while a transaction is open, everything else
 * waits for its end, other requests and the renewal of its own claim among them. Keep transactions short, and send
 * nothing to `db` inside of one.
 *
 * @throws {OptionsError} when `db` is no PGlite database.
 */
export function pglite(db: PGliteDatabase): PostgresDriver {
  const methods = ['query', 'exec', 'transaction'] as const
  if (!methods.every((method) => typeof (db as Partial<PGliteDatabase> | undefined)?.[method] === 'function'))
    throw new OptionsError('pglite: it takes a PGlite database, as "await PGlite.create()" gives one')
  return {
    query: (...args) => rowsOf(db, args),

    async execute(text) {
      await db.exec(text)
    },

    async transaction<T>(
      settings: TransactionSettings,
      work: (transaction: DriverTransaction) => Promise<DriverEnd<T>>,
      firstText?: string,
    ): Promise<T> {
      const { signal } = settings
      let done: { readonly value: T } | undefined
      let isOver = false
      try {
        await db.transaction(async (transaction) => {
          signal.throwIfAborted()
          const text = settingsText(settings)
          if (text !== '') await transaction.exec(text)
          const client = guarded(transaction, () => isOver)
          const query: DriverTransaction['query'] = (...args) => rowsOf(client, args)
          try {
            const first = firstText === undefined ? [] : await query(firstText, [], false)
            // Work that never ends would lock everybody out of the only connection.
            const { value, last } = await unlessAborted(
              signal,
              work({ client, first, isLost: () => false, query }),
            )
            // Not every version says so when it rolls back in the place of a commit: a last statement does.
            await client.exec(last ?? 'select 1').catch((error: unknown) => {
              throw nameIgnoredFailure(error)
            })
            done = { value }
          } finally {
            isOver = true
          }
        })
      } catch (cause) {
        throw done === undefined || isRefusal(cause) ? cause : new CommitUndecidedError({ cause })
      }
      return (done as unknown as { readonly value: T }).value
    },
  }
}

/** A transaction that refuses statements after its end. Not every version does, and then they run outside of it. */
function guarded<TClient extends PGliteQueries>(transaction: TClient, isOver: () => boolean): TClient {
  return new Proxy(transaction, {
    get(target, name) {
      const value: unknown = Reflect.get(target, name)
      if (typeof value !== 'function') return value
      return async (...args: unknown[]) => {
        if (isOver()) throw new Error('The transaction has ended')
        return value.apply(target, args)
      }
    },
  })
}

function settingsText(settings: TransactionSettings): string {
  const { isolation } = settings
  const isolationText = isolation === undefined ? undefined : `set transaction isolation level ${isolation}`
  return [isolationText, lockTimeoutText(settings)].filter((text) => text !== undefined).join('; ')
}

async function rowsOf(
  client: PGliteQueries,
  [text, values]: Parameters<DriverTransaction['query']>,
): Promise<readonly unknown[]> {
  return (await client.query(text, values, OPTIONS)).rows
}
