import { CommitUndecidedError, isIdempotencyError, OptionsError } from '../contract/errors.js'
import type { TransactionSettings } from '../contract/store.js'
import {
  assertCommitted,
  type DriverEnd,
  type DriverTransaction,
  isRefusal,
  lockTimeoutText,
  nameIgnoredFailure,
  type PostgresDriver,
  unlessAborted,
} from './postgres-driver.js'
import { createTransactionGuard, type TransactionGuard } from './postgres-porsager-guard.js'
import { createTurns } from './postgres-turns.js'
import { parseValue } from './postgres-values.js'

/** What a `postgres` client and its transactions have in common, as far as the Postgres store uses it. */
export interface PostgresJsQueries {
  unsafe(
    text: string,
    values?: unknown[],
    options?: { readonly prepare?: boolean },
  ): { raw(): PromiseLike<PostgresJsResult> }
}

/** The part of a `postgres` client (postgres.js) that the Postgres store uses. */
export interface PostgresJsClient extends PostgresJsQueries {
  begin(options: string, work: (transaction: PostgresJsQueries) => Promise<void>): Promise<unknown>
  readonly options: PostgresJsOptions
}

/** What the store has to know of how a client was made. */
export interface PostgresJsOptions {
  readonly max: number
  readonly transform: {
    readonly column: { readonly from?: ((name: string) => string) | undefined }
    readonly row: { readonly from?: unknown }
  }
}

/** Rows as they came: a list of columns each, as text in bytes. */
export type PostgresJsResult = readonly (readonly (Uint8Array | null)[])[] & {
  readonly columns: readonly { readonly name: string; readonly type: number }[]
  /** The command that was carried out: `COMMIT` is answered with `ROLLBACK` when a statement had failed before. */
  readonly command: string
}

/**
 * A `postgres` client (postgres.js) as a client for `postgresStore`. Give the store a client of its own: under load,
 * postgres.js can begin a transaction on a connection that others use at the same time, and only a client that nobody
 * else sends to can be kept from that. A transaction gets its `sql`, which refuses statements once its connection is lost
 * or it has ended; without that, postgres.js would run them on another connection, each for itself.
 *
 * @throws {OptionsError} when `sql` is no such client, or makes something else of its rows (`transform.row`).
 */
export function postgresJs(sql: PostgresJsClient): PostgresDriver {
  assertUsable(sql)
  // Never more than there are connections: then no statement is sent behind another, and none behind a BEGIN.
  const { max } = sql.options
  const turns = createTurns(max)
  // One connection is left for claims and renewals, however many transactions there are.
  const transactions = createTurns(Math.max(1, max - 1))
  let broken: Error | undefined

  async function inTurn<T>(step: () => PromiseLike<T>, signal?: AbortSignal): Promise<T> {
    const endTurn = await turns.take(signal)
    try {
      if (broken !== undefined) throw broken
      return await step()
    } finally {
      endTurn()
    }
  }

  return {
    query: (text, values, prepare) => inTurn(() => rowsOf(sql, sql.options, text, values, prepare)),

    async execute(text) {
      // What has been migrated already would be printed by the client as a notice.
      await inTurn(() => sql.unsafe(`set local client_min_messages = warning; ${text}`).raw())
    },

    async transaction(settings, work, first) {
      const endTransaction = await transactions.take(settings.signal)
      try {
        return await inTurn(() => transact(sql, settings, work, first), settings.signal)
      } catch (error) {
        if (codeOf(error) === 'UNSAFE_TRANSACTION') broken = beyondRepair(error)
        throw error
      } finally {
        endTransaction()
      }
    },
  }
}

function assertUsable(sql: PostgresJsClient): void {
  const { unsafe, begin, options } = (sql ?? {}) as Partial<PostgresJsClient>
  if (typeof unsafe !== 'function' || typeof begin !== 'function' || options === undefined)
    throw new OptionsError(
      'postgresJs: it takes a client of the package "postgres", as postgres(url) gives one',
    )
  if (options.transform.row.from !== undefined)
    throw new OptionsError(
      'postgresJs: this client makes something else of whole rows (transform.row), which the store cannot read: give it a client without that',
    )
}

/** A connection with an open transaction is among those for everybody. What is sent there may never be committed. */
function beyondRepair(cause: unknown): Error {
  return new Error(
    'postgresJs: postgres.js has begun a transaction on a connection that others use. Give the store a client of its own, and restart',
    { cause },
  )
}

async function rowsOf(
  sql: PostgresJsQueries,
  { transform }: PostgresJsOptions,
  ...[text, values, prepare]: Parameters<DriverTransaction['query']>
): Promise<readonly unknown[]> {
  // Raw, so that nothing that the client does to values of the application is done to ours.
  const result = await sql.unsafe(text, values, { prepare }).raw()
  const { columns } = result
  return result.map((fields) => {
    const row: Record<string, unknown> = {}
    for (const [index, { name, type }] of columns.entries()) {
      const field = fields[index]
      row[name] = field == null ? null : parseValue(type, Buffer.from(field).toString())
    }
    return transform.column.from === undefined ? row : underOwnNames(row, transform.column.from)
  })
}

/** Lets a row be read by the names that the statement gave, where the client has changed them, as to camel case. */
function underOwnNames(row: Record<string, unknown>, renamed: (name: string) => string): unknown {
  return new Proxy(row, { get: (target, name) => target[renamed(String(name))] })
}

/**
 * Runs a transaction in what `begin` reserves, and ends it itself. Left to postgres.js, `commit` is a prepared statement:
 * a PgBouncer may have no such statement on the connection, which fails the transaction, and postgres.js sends it again
 * and takes the roll-back that it then is for a commit. So postgres.js never hears that the work has ended.
 */
function transact<T>(
  sql: PostgresJsClient,
  settings: TransactionSettings,
  work: (transaction: DriverTransaction) => Promise<DriverEnd<T>>,
  first: string | undefined,
): Promise<T> {
  const { isolation } = settings
  const guard = createTransactionGuard()
  return new Promise((resolve, reject) => {
    let hasBegun = false
    const begun = sql.begin(isolation === undefined ? '' : `isolation level ${isolation}`, (transaction) => {
      hasBegun = true
      runIn(transaction, guard, sql.options, settings, work, first).then(resolve, reject)
      return new Promise(() => {})
    })
    begun.catch((error: unknown) => {
      // Once it has begun, all that can fail here is the connection, also long after the end of the transaction.
      if (hasBegun) guard.lose(error)
      else reject(error)
    })
  })
}

async function runIn<T>(
  transaction: PostgresJsQueries,
  guard: TransactionGuard,
  options: PostgresJsOptions,
  settings: TransactionSettings,
  work: (transaction: DriverTransaction) => Promise<DriverEnd<T>>,
  firstText: string | undefined,
): Promise<T> {
  const { signal } = settings
  const client = guard.guarded(transaction)

  async function run(): Promise<T> {
    signal.throwIfAborted()
    const lockTimeout = lockTimeoutText(settings)
    if (lockTimeout !== undefined) await client.unsafe(lockTimeout).raw()
    const query: DriverTransaction['query'] = (...args) => rowsOf(client, options, ...args)
    const first = firstText === undefined ? [] : await query(firstText, [], false)
    const { value, last } = await work({ client, first, isLost: () => guard.isLost, query })
    if (last !== undefined) await sendLast(last)
    return value
  }

  async function sendLast(text: string): Promise<void> {
    try {
      await client.unsafe(text).raw()
    } catch (error) {
      throw nameIgnoredFailure(error)
    }
  }

  let value: T
  try {
    value = await unlessAborted(signal, run())
  } catch (error) {
    guard.end(error)
    // A closed connection rolls back as well. What the work failed with matters more than that it was lost.
    await guard.unlessLost(() => transaction.unsafe('rollback').raw()).catch(() => {})
    throw error
  }
  guard.end(new Error('The transaction has ended'))
  const wasLost = guard.isLost
  try {
    assertCommitted(await guard.unlessLost(() => transaction.unsafe('commit').raw()))
  } catch (cause) {
    if (wasLost || isRefusal(cause) || isIdempotencyError(cause)) throw cause
    throw new CommitUndecidedError({ cause })
  }
  return value
}

function codeOf(error: unknown): unknown {
  return (error as { readonly code?: unknown } | undefined)?.code
}
