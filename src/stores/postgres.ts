import { type Duration, durationMs } from '../contract/duration.js'
import { OptionsError, StoreUnfitError, TransactionMisuseError } from '../contract/errors.js'
import type { InboxTable } from '../contract/inbox.js'
import type {
  ClaimRequest,
  ClaimResult,
  Completion,
  ExecuteStatement,
  IdempotencyStore,
  StatementResult,
  StatementValue,
  TransactionEnd,
  TransactionSettings,
} from '../contract/store.js'
import { ALONE, type Batch, createBatch } from './postgres-batch.js'
import { claimsValues, claimValues, LONG, type PlacedAnswer } from './postgres-claim.js'
import { bytesOf, CLAIM_LOST, completionValues } from './postgres-complete.js'
import {
  type DriverEnd,
  type DriverTransaction,
  isRefusal,
  nameIgnoredFailure,
  type PostgresDriver,
  type PostgresPool,
  poolDriver,
} from './postgres-driver.js'
import { postgresInbox } from './postgres-inbox.js'
import { LATEST_MIGRATION, migrationSql, migrationStatements } from './postgres-migrations.js'
import { type TableNames, tableNames } from './postgres-names.js'
import {
  asStoredRecord,
  type Claimed,
  claimResultOf,
  type FoundRow,
  NEWLY_ACQUIRED,
} from './postgres-record.js'
import { type AnswerRow, createStatements, SWEEP_BATCH, sweepStatement } from './postgres-statements.js'
import { type HolderStep, LONGEST_IN_BATCH, type StepName, stepsValues } from './postgres-steps.js'
import { ASSIGN_NUMBER, type TwofoldStatement } from './postgres-text.js'

export type {
  DriverEnd,
  DriverTransaction,
  PostgresConnection,
  PostgresDriver,
  PostgresPool,
  PostgresQuery,
  PostgresResult,
} from './postgres-driver.js'
export {
  type PGliteDatabase,
  type PGliteQueries,
  type PGliteQueryOptions,
  type PGliteResult,
  pglite,
} from './postgres-pglite.js'
export {
  type PostgresJsClient,
  type PostgresJsOptions,
  type PostgresJsQueries,
  type PostgresJsResult,
  postgresJs,
} from './postgres-porsager.js'

/** Where the records are, and how they are reached. */
export interface PostgresStoreOptions {
  /**
   * The schema of the tables. It must exist.
   *
   * @default the first schema of the connection's search path
   */
  readonly schema?: string
  /**
   * The table of records.
   *
   * @default 'oncekey_records'
   */
  readonly table?: string
  /**
   * Whether each connection prepares a statement once and then runs it without planning it anew, which costs Postgres a
   * third. Not behind a PgBouncer in transaction mode before its version 1.21, or with `max_prepared_statements` 0.
   *
   * @default false
   */
  readonly prepare?: boolean
  /**
   * How long a statement may go without an answer, before its connection is given up and closed. A connection that died
   * in silence would otherwise keep its place in the pool for as long as the operating system believes in it, which
   * can be a quarter of an hour. Choose longer than `storeTimeout`: what is answered later than that still counts.
   *
   * @default '10s'
   */
  readonly queryTimeout?: Duration
}

/** A store whose records are rows. */
export interface PostgresStore extends IdempotencyStore {
  readonly inbox: InboxTable
  /** Makes the tables, or brings them up to date. Many processes may do it at once. */
  migrate(): Promise<void>
  /** What `migrate` runs, for those who run their migrations themselves, with `psql` or a migration tool. */
  migrationSql(): string
}

/** How many records a page of a list has. Each has its body, which may be a megabyte. */
const LIST_PAGE = 50
const OLDEST_SERVER = 130_000
const CONFLICT_ATTEMPTS = 10
const FIRST_REPEAT_MS = 5
const LONGEST_REPEAT_MS = 200

/**
 * Keeps records in Postgres 13 and newer. Every step is one statement and one round trip. None is prepared, unless
 * `prepare` says so, so that it goes through PgBouncer in transaction mode. The client stays yours: it is never closed.
 * Keep `maxBodyBytes` below 100 MiB: a record comes as one text, and `pg` ends the process over one that Node cannot hold, which
 * a body of some 370 MiB makes.
 *
 * @param client a `pg` Pool, or what `pglite(db)` or `postgresJs(sql)` makes of another client.
 * @throws {OptionsError} when the client is none of them, a name is no identifier, or an option is wrong.
 */
export function postgresStore(
  client: PostgresPool | PostgresDriver,
  options: PostgresStoreOptions = {},
): PostgresStore {
  const driver = driverOf(client, timeoutOf(options))
  const names = tableNames(options)
  const { prepare = false } = options
  if (typeof prepare !== 'boolean')
    throw new OptionsError(`postgresStore: option "prepare" must be true or false; got ${String(prepare)}`)
  const statements = createStatements(names)

  /** A database whose default isolation is stricter than read committed refuses steps that meet: they are asked again. */
  async function query(text: string, values: unknown[], isPrepared = false): Promise<readonly unknown[]> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await driver.query(text, values, isPrepared)
      } catch (error) {
        if (attempt >= CONFLICT_ATTEMPTS || !isConflict(error)) throw error
      }
    }
  }

  const claim = createBatch<ClaimRequest, ClaimResult>({
    async one(request) {
      const text = prepare && !request.mayBeLost ? statements.insertOrClaim : statements.claim
      return claimResultOf(await answerOf<Claimed>(text, claimValues(request)))
    },
    async many(requests) {
      const answers = await answerOf<readonly PlacedAnswer[]>(statements.claims, claimsValues(requests))
      if (answers === null) return requests.map(() => NEWLY_ACQUIRED)
      const results = new Map<number, ClaimResult | typeof ALONE>(
        answers.map(({ p, found }) => [p, found === LONG ? ALONE : claimResultOf(found)]),
      )
      return requests.map((_, place) => {
        const result = results.get(place)
        if (result === undefined) throw new Error('Postgres gave no answer for a claim of a batch')
        return result
      })
    },
    // A refused statement, or a record that this version cannot read.
    isOnesFault: (error) => isRefusal(error) || error instanceof StoreUnfitError,
  })

  function stepBatch(name: StepName): Batch<HolderStep, boolean> {
    return createBatch({
      one: (step) => stepAlone(name, step),
      async many(steps) {
        const lost = await answerOf<readonly number[]>(statements.steps[name].many, stepsValues(steps))
        return steps.map((_, place) => lost?.includes(place) !== true)
      },
      isOnesFault: isRefusal,
    })
  }

  async function stepAlone(name: StepName, { id, token, values }: HolderStep): Promise<boolean> {
    return (await callFunction(statements.steps[name].one, [id, token, ...values])).length === 1
  }

  const renew = stepBatch('renew')
  const complete = stepBatch('complete')
  const release = stepBatch('release')

  /** Calls a function of the database. Only these are prepared: other statements could keep a plan for a small table. */
  function callFunction(text: string, values: unknown[]): Promise<readonly unknown[]> {
    return query(text, values, prepare)
  }

  /** Calls a function that answers with a JSON text or with null. Where there is no answer, nobody knows what was done. */
  async function answerOf<T>(text: string, values: unknown[]): Promise<T | null> {
    const [row] = (await callFunction(text, values)) as readonly AnswerRow[]
    if (row === undefined) throw new Error('The client gave no row for a statement that has one')
    return row.answer === null ? null : (JSON.parse(row.answer) as T)
  }

  async function changed(text: string, values: unknown[]): Promise<boolean> {
    return (await query(text, values)).length === 1
  }

  async function completeIn(execute: ExecuteStatement, completion: Completion): Promise<boolean> {
    const values = completionValues(completion)
    const attempt = async (): Promise<number> =>
      (await ask(execute, statements.completeInWritten, values)).length
    let rows = await attempt()
    if (rows === 2) {
      // Either it has written nothing so far, which is rare for the last step of a transaction, or it is none.
      await ask(execute, ASSIGN_NUMBER, [])
      rows = await attempt()
    }
    if (rows === 2)
      throw new TransactionMisuseError(
        'saveIn(): its statements run each for itself. Give it what runs them in your transaction: "tx", and not "db"',
      )
    return rows === 1
  }

  async function runWork<T>(
    transaction: DriverTransaction,
    work: (client: unknown) => Promise<TransactionEnd<T>>,
  ): Promise<DriverEnd<T>> {
    const { value, completion } = await work(transaction.client)
    if (completion === undefined) return { value, last: undefined }
    const last = statements.completeOrFail(completion)
    if (last !== undefined) return { value, last }
    const { text } = statements.completeOnce
    try {
      const rows = await transaction.query(text, completionValues(completion), false)
      if (rows.length === 1) return { value, last: undefined }
    } catch (error) {
      throw nameIgnoredFailure(error)
    }
    throw Object.assign(new Error('The claim was lost'), { code: CLAIM_LOST })
  }

  async function sweepTable(table: string): Promise<number> {
    let removed = 0
    for (;;) {
      const rows = await query(sweepStatement(table), [`oncekey sweep ${table}`])
      const batch = (rows[0] as { removed: number }).removed
      removed += batch
      if (batch !== SWEEP_BATCH) return removed
    }
  }

  async function appliedMigration(): Promise<number> {
    const rows = await query(
      `select coalesce(max(version), 0)::int as version from ${names.migrations} where records = ${names.literal}`,
      [],
    )
    return (rows[0] as { version: number }).version
  }

  return {
    claim,

    renew: (id, token, leaseMs) => renew({ id, token, values: [leaseMs] }),

    complete(id, token, { result, head, body }, ttlMs) {
      const step = { id, token, values: [ttlMs, result, head, bytesOf(body)] }
      return (body?.byteLength ?? 0) > LONGEST_IN_BATCH ? stepAlone('complete', step) : complete(step)
    },

    release: (id, token) => release({ id, token, values: [] }),

    async find(id) {
      const rows = await query(statements.find, [id])
      return rows[0] === undefined ? undefined : asStoredRecord(id, rows[0] as FoundRow)
    },

    async *list({ status, route, olderThanMs, limit = Number.POSITIVE_INFINITY, signal }) {
      let after = ''
      for (let left = limit; left > 0 && signal?.aborted !== true; left -= LIST_PAGE) {
        const size = Math.min(left, LIST_PAGE)
        const values = [after, status ?? null, route ?? null, olderThanMs ?? null, size]
        const rows = (await query(statements.list, values)) as (FoundRow & { readonly id: string })[]
        for (const row of rows) yield asStoredRecord(row.id, row)
        if (rows.length < size) return
        after = rows.at(-1)?.id ?? ''
      }
    },

    remove: (id) => changed(statements.remove, [id]),

    settle(id, resolution, ttlMs) {
      if (resolution === 'release') return changed(statements.settleByRelease, [id])
      const { result, head, body } = resolution
      return changed(statements.settleByOutcome, [id, ttlMs, result, head, bytesOf(body)])
    },

    async transaction(work, settings) {
      try {
        const value = await repeatedly(settings, () =>
          driver.transaction(settings, (transaction) => runWork(transaction, work)),
        )
        return { committed: true, value }
      } catch (error) {
        if (isClaimLost(error)) return { committed: false }
        throw error
      }
    },

    completeIn: (execute, id, token, outcome, ttlMs) => completeIn(execute, { id, token, outcome, ttlMs }),

    sweep: async () => (await sweepTable(names.table)) + (await sweepTable(names.inbox.messages)),

    inbox: postgresInbox({ names: names.inbox, query, transaction: driver.transaction, repeatedly, ask }),

    async check() {
      const rows = await query(statements.inspect, [names.table])
      const server = rows[0] as InspectedServer
      refuseUnfit(server, names)
      const applied = await appliedMigration().catch((cause: unknown) => {
        throw new StoreUnfitError(`The table ${names.migrations} cannot be read: run store.migrate()`, {
          cause,
        })
      })
      if (applied < LATEST_MIGRATION)
        throw new StoreUnfitError(
          `The table ${names.table} is at migration ${applied}, and this version needs ${LATEST_MIGRATION}: run store.migrate()`,
        )
      return warningsOf(server)
    },

    async migrate() {
      await driver.execute(migrationStatements(names))
    },

    migrationSql: () => migrationSql(options),
  }
}

function driverOf(client: PostgresPool | PostgresDriver, queryTimeoutMs: number): PostgresDriver {
  if (typeof client === 'object' && client !== null) {
    if ('transaction' in client && 'execute' in client) return client
    // A Pool of `pg` is an object, and so is everything that only looks like one.
    if (typeof client.query === 'function') return poolDriver(client as PostgresPool, queryTimeoutMs)
  }
  throw new OptionsError(
    'postgresStore: the client must be a pg Pool, or what pglite(db) or postgresJs(sql) makes of another one',
  )
}

/** Runs a transaction again, whole, when the database refuses it for a conflict with others. */
async function repeatedly<T>(
  { attempts, signal }: TransactionSettings,
  transaction: () => Promise<T>,
): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await transaction()
    } catch (error) {
      if (attempt >= attempts || !isConflict(error) || signal.aborted) throw error
      await pause(repeatDelayMs(attempt))
    }
  }
}

/** Has the application run a statement in its transaction. */
async function ask(
  execute: ExecuteStatement,
  { text, strings }: TwofoldStatement,
  values: readonly StatementValue[],
): Promise<readonly unknown[]> {
  const result = (await execute(text, [...values], strings)) as StatementResult | undefined
  const rows = result !== undefined && 'rows' in result ? result.rows : result
  if (Array.isArray(rows)) return rows
  throw new TransactionMisuseError(
    'The function that sends statements gave no rows: let it return what a statement gives, a list or { rows }',
  )
}

/** Exponential, capped, with full jitter: transactions that met should not meet again. */
function repeatDelayMs(attempt: number): number {
  return Math.random() * Math.min(LONGEST_REPEAT_MS, FIRST_REPEAT_MS * 2 ** attempt)
}

function pause(delayMs: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, delayMs)
  })
}

interface InspectedServer {
  readonly server_version: number
  readonly fsync: string
  readonly synchronous_commit: string
  /** `p`ermanent, `u`nlogged, `t`emporary; `null` when there is no such table. */
  readonly persistence: 'p' | 'u' | 't' | null
}

function refuseUnfit(server: InspectedServer, { table }: TableNames): void {
  if (server.server_version < OLDEST_SERVER)
    throw new StoreUnfitError('The Postgres store needs Postgres 13 or newer')
  if (server.persistence === null)
    throw new StoreUnfitError(`There is no table ${table}: run store.migrate() first`)
  if (server.persistence === 'u')
    throw new StoreUnfitError(
      `The table ${table} is unlogged, and a crash would empty it: run "alter table ${table} set logged"`,
    )
  if (server.persistence === 't')
    throw new StoreUnfitError(`The table ${table} is temporary, and ends with its connection: drop it`)
}

function warningsOf(server: InspectedServer): readonly string[] {
  const warnings: string[] = []
  if (server.fsync === 'off')
    warnings.push('Postgres runs with fsync off: after a crash of its machine, operations may run again')
  if (server.synchronous_commit === 'off')
    warnings.push(
      'Postgres runs with synchronous_commit off: after a crash, the last operations may run again',
    )
  return warnings
}

/** Node's timers cannot wait for longer. */
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1

function timeoutOf({ queryTimeout = '10s' }: PostgresStoreOptions): number {
  const timeoutMs = durationMs(queryTimeout)
  if (timeoutMs !== undefined && timeoutMs >= 1 && timeoutMs <= LONGEST_TIMEOUT_MS) return timeoutMs
  throw new OptionsError(
    `postgresStore: option "queryTimeout" must be a duration such as '10s', from 1ms to 24d; got ${String(queryTimeout)}`,
  )
}

/** Whether a transaction was rolled back because its token no longer holds the claim. */
function isClaimLost(error: unknown): boolean {
  return (error as { readonly code?: unknown } | null)?.code === CLAIM_LOST
}

/** Whether the database refused something only for what others did at the same time, and did nothing. */
function isConflict(error: unknown, depth = 0): boolean {
  if (typeof error !== 'object' || error === null || depth > 4) return false
  const { code, cause } = error as { readonly code?: unknown; readonly cause?: unknown }
  // serialization_failure and deadlock_detected. Query builders wrap what the client throws.
  return code === '40001' || code === '40P01' || isConflict(cause, depth + 1)
}
