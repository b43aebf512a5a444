import { CommitUndecidedError, TransactionMisuseError } from '../contract/errors.js'
import type { TransactionSettings } from '../contract/store.js'

/** The way to a Postgres server. Made of a `pg` Pool by the store itself, and of other clients by a function each. */
export interface PostgresDriver {
  /** Runs one statement on any connection, and gives its rows. `prepare` lets the connection keep its plan. */
  query(text: string, values: unknown[], prepare: boolean): Promise<readonly unknown[]>
  /** Runs a text of several statements without values, as one transaction. */
  execute(text: string): Promise<void>
  /**
   * Runs `work` in a transaction, and commits it when `work` resolves: with its last statement, in one round trip where
   * the client can. When `work` rejects or the last statement fails, it rolls back, and hands the rejection on. When the
   * signal aborts, it rolls back by giving the connection up, where it has one to give up.
   *
   * `first` is a statement without values that comes right after the begin: in one round trip, where the client can. When
   * it fails, it rolls back, and `work` is not run.
   *
   * @throws {CommitUndecidedError} when the commit was asked for and its answer never came.
   */
  transaction<T>(
    settings: TransactionSettings,
    work: (transaction: DriverTransaction) => Promise<DriverEnd<T>>,
    first?: string,
  ): Promise<T>
}

/** What the work of a transaction came to. */
export interface DriverEnd<T> {
  readonly value: T
  /** A statement without values that comes right before the commit, or `undefined`. */
  readonly last: string | undefined
}

/** A transaction on one connection. */
export interface DriverTransaction {
  /** What the application gets. */
  readonly client: unknown
  /** The rows of the first statement. */
  readonly first: readonly unknown[]
  /** Whether its connection was lost: then whatever failed says nothing about who sent it. */
  isLost(): boolean
  query(text: string, values: unknown[], prepare: boolean): Promise<readonly unknown[]>
}

/** The part of a `pg` Pool that the Postgres store uses. Transactions need `connect`. */
export interface PostgresPool {
  query(query: string | PostgresQuery): Promise<PostgresResult>
  connect?(): Promise<PostgresConnection>
}

/** The part of a connection of a `pg` Pool that the Postgres store uses. */
export interface PostgresConnection {
  query(query: string | PostgresQuery): Promise<PostgresResult>
  /** Gives the connection back, or with an error closes it. */
  release(error?: Error): void
  on(event: 'error', listener: (error: Error) => void): unknown
  off(event: 'error', listener: (error: Error) => void): unknown
}

/** A statement as `pg` takes it. */
export interface PostgresQuery {
  readonly text: string
  readonly values: unknown[]
  /** With a name, a connection prepares it once. */
  readonly name?: string
  /** After so many milliseconds without an answer, `pg` fails the query, and a Pool closes its connection. */
  readonly query_timeout?: number
}

/** What a query gives. */
export interface PostgresResult {
  readonly rows: readonly unknown[]
  /** The command that was carried out: `COMMIT` is answered with `ROLLBACK` when a statement had failed before. */
  readonly command?: string
}

/** Makes a driver of a `pg` Pool. A connection that owes an answer for `queryTimeoutMs` outside of transactions is closed. */
export function poolDriver(pool: PostgresPool, queryTimeoutMs: number): PostgresDriver {
  return {
    async query(text, values, prepare) {
      const { rows } = await pool.query({
        ...statement(text, values, prepare),
        query_timeout: queryTimeoutMs,
      })
      return rows
    },

    async execute(text) {
      await pool.query(text)
    },

    async transaction(settings, work, first) {
      const connection = await connect(pool, settings.signal)
      return runOn(connection, settings, work, first)
    },
  }
}

const names = new Map<string, string>()

function statement(text: string, values: unknown[], prepare: boolean): PostgresQuery {
  if (!prepare) return { text, values }
  let name = names.get(text)
  if (name === undefined) {
    name = `oncekey_${names.size + 1}`
    names.set(text, name)
  }
  return { name, text, values }
}

async function connect(pool: PostgresPool, signal: AbortSignal): Promise<PostgresConnection> {
  if (pool.connect === undefined) throw new Error('The client has no connections of its own: give a pg Pool')
  const connecting = pool.connect()
  return new Promise((resolve, reject) => {
    const onAbort = (): void => {
      reject(signal.reason)
      // It comes too late for this transaction, and is as good as any for the next one.
      connecting.then(
        (connection) => connection.release(),
        () => {},
      )
    }
    signal.addEventListener('abort', onAbort, { once: true })
    connecting.then(
      (connection) => {
        signal.removeEventListener('abort', onAbort)
        resolve(connection)
      },
      (error: unknown) => {
        signal.removeEventListener('abort', onAbort)
        reject(error)
      },
    )
  })
}

async function runOn<T>(
  connection: PostgresConnection,
  settings: TransactionSettings,
  work: (transaction: DriverTransaction) => Promise<DriverEnd<T>>,
  firstText: string | undefined,
): Promise<T> {
  const { signal } = settings
  let isOurs = true
  let broken: Error | undefined
  /** Gives the connection back, or closes it when nobody can tell what state it is in. */
  function giveBack(error?: Error): void {
    if (!isOurs) return
    isOurs = false
    connection.off('error', onBroken)
    // A closed connection may still report that it has ended. Nobody listens to it any more, and nobody needs to.
    if (error !== undefined) connection.on('error', () => {})
    connection.release(error)
  }
  // Without a listener, a connection that breaks between two statements ends the process.
  const onBroken = (error: Error): void => {
    broken = error
  }
  const onAbort = (): void => giveBack(asError(signal.reason))
  connection.on('error', onBroken)
  signal.addEventListener('abort', onAbort, { once: true })

  try {
    const transaction: DriverTransaction = {
      client: connection,
      first: await begin(),
      isLost: () => broken !== undefined,
      query: async (text, values, prepare) => (await connection.query(statement(text, values, prepare))).rows,
    }
    let end: DriverEnd<T>
    try {
      end = await work(transaction)
    } catch (error) {
      await rollBack()
      throw error
    }
    await commit(end.last)
    return end.value
  } finally {
    signal.removeEventListener('abort', onAbort)
    giveBack(broken)
  }

  async function begin(): Promise<readonly unknown[]> {
    const text = beginText(settings)
    try {
      if (firstText === undefined) {
        await connection.query(text)
        return []
      }
      return lastOf(await connection.query(`${text}; ${firstText}`))?.rows ?? []
    } catch (error) {
      // Where it may have begun and failed after that, nobody else should get it.
      if (isRefusal(error)) await rollBack()
      else giveBack(asError(error))
      throw error
    }
  }

  async function rollBack(): Promise<void> {
    if (!isOurs) return
    try {
      await connection.query('rollback')
    } catch (error) {
      // A closed connection rolls back as well. What the work failed with matters more than this.
      broken ??= asError(error)
      giveBack(broken)
    }
  }

  async function commit(last: string | undefined): Promise<void> {
    let result: PostgresResult | readonly PostgresResult[]
    try {
      result = await connection.query(last === undefined ? 'commit' : `${last}; commit`)
    } catch (cause) {
      if (!isRefusal(cause)) {
        giveBack(asError(cause))
        throw new CommitUndecidedError({ cause })
      }
      // After a refused commit there is nothing to roll back, after a failed last statement there is.
      await rollBack()
      throw nameIgnoredFailure(cause)
    }
    assertCommitted(lastOf(result))
  }
}

/** The result of the last statement of a text that may have several. */
function lastOf(result: PostgresResult | readonly PostgresResult[]): PostgresResult | undefined {
  return Array.isArray(result)
    ? (result as readonly PostgresResult[]).at(-1)
    : (result as PostgresResult | undefined)
}

/** The text that begins a transaction. */
export function beginText(settings: TransactionSettings): string {
  const { isolation } = settings
  const begin = isolation === undefined ? 'begin' : `begin isolation level ${isolation}`
  const lockTimeout = lockTimeoutText(settings)
  return lockTimeout === undefined ? begin : `${begin}; ${lockTimeout}`
}

/** The text that limits how long statements of this transaction wait for locks, where they are limited. */
export function lockTimeoutText({ lockTimeoutMs }: TransactionSettings): string | undefined {
  return lockTimeoutMs === undefined ? undefined : `set local lock_timeout = ${Math.ceil(lockTimeoutMs)}`
}

/**
 * Whether the server itself has refused a commit. Anything else, a closing server (class 57), a lost connection (class
 * 08) or one that says itself that it does not know (40003) among it, leaves open whether it was committed.
 *
 * @see https://www.postgresql.org/docs/current/errcodes-appendix.html
 */
export function isRefusal(error: unknown): boolean {
  const { code, severity } = (error ?? {}) as { readonly code?: unknown; readonly severity?: unknown }
  if (typeof code !== 'string' || !/^[0-9A-Z]{5}$/.test(code)) return false
  return severity === 'ERROR' && code !== '40003' && !code.startsWith('57') && !code.startsWith('08')
}

/**
 * A commit after a failed statement is answered as a roll-back, and not as an error.
 *
 * @throws {TransactionMisuseError} when nothing was committed.
 */
export function assertCommitted(result: Pick<PostgresResult, 'command'> | undefined): void {
  if (result?.command === 'ROLLBACK') throw ignoredFailure()
}

/**
 * Names the failure of a transaction that went on after one of its statements had failed: whatever comes then is refused
 * by the server, and says nothing about the cause. Any other failure stays as it is.
 */
export function nameIgnoredFailure(error: unknown): unknown {
  // in_failed_sql_transaction
  return (error as { readonly code?: unknown } | undefined)?.code === '25P02' ? ignoredFailure(error) : error
}

function ignoredFailure(cause?: unknown): TransactionMisuseError {
  return new TransactionMisuseError(
    'The transaction was rolled back: one of its statements had failed, and its error was ignored',
    { cause },
  )
}

/** Waits for `promise`, and no longer than until `signal` aborts. It may settle unobserved then. */
export function unlessAborted<T>(signal: AbortSignal, promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason)
    const done = (): void => signal.removeEventListener('abort', onAbort)
    if (signal.aborted) onAbort()
    else signal.addEventListener('abort', onAbort, { once: true })
    promise.then(resolve, reject).then(done, done)
  })
}

function asError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason))
}
