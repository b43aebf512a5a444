import { type Duration, durationMs } from '../contract/duration.js'
import { OptionsError, StoreUnfitError } from '../contract/errors.js'
import type { ClaimResult, IdempotencyStore, RecordMeta, StoredRecord } from '../contract/store.js'
import { LATEST_MIGRATION, migrationStatements, type TableNames } from './postgres-migrations.js'
import { createStatements, type FoundRow, SWEEP_BATCH } from './postgres-statements.js'

/** The part of a `pg` Pool that the Postgres store uses. */
export interface PostgresClient {
  query(query: PostgresQuery): Promise<PostgresResult>
}

/** A statement as `pg` takes it. */
export interface PostgresQuery {
  readonly text: string
  readonly values?: unknown[]
  /** After so many milliseconds without an answer, `pg` fails the query, and a Pool closes its connection. */
  readonly query_timeout?: number
}

/** What a query gives. */
export interface PostgresResult {
  readonly rows: readonly unknown[]
  readonly rowCount: number | null
}

/** Where the records are. */
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
  /** Makes the tables, or brings them up to date. Many processes may do it at once. */
  migrate(): Promise<void>
  /** What `migrate` runs, for those who run their migrations themselves, with `psql` or a migration tool. */
  migrationSql(): string
}

const FORMAT = 1
const OLDEST_SERVER = 130_000
const CLAIM_ATTEMPTS = 10
const CONFLICT_ATTEMPTS = 10

/**
 * Keeps records in Postgres 13 and newer. Every step is one statement and one round trip, none is prepared, so that it
 * goes through PgBouncer in transaction mode. The pool stays yours: it is never closed.
 *
 * @throws {OptionsError} when the client lacks `query`, a name is no identifier, or an option is wrong.
 */
export function postgresStore(client: PostgresClient, options: PostgresStoreOptions = {}): PostgresStore {
  if (typeof client?.query !== 'function')
    throw new OptionsError('postgresStore: the client must have a query method, as a pg Pool has')
  const names = tableNames(options)
  const queryTimeoutMs = timeoutOf(options)
  const statements = createStatements(names.table)

  /** A database whose default isolation is stricter than read committed refuses steps that meet: they are asked again. */
  async function query(text: string, values: unknown[]): Promise<PostgresResult> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await client.query({ text, values, query_timeout: queryTimeoutMs })
      } catch (error) {
        if (attempt >= CONFLICT_ATTEMPTS || !isConflict(error)) throw error
      }
    }
  }

  async function changed(text: string, values: unknown[]): Promise<boolean> {
    return (await query(text, values)).rowCount === 1
  }

  async function appliedMigration(): Promise<number> {
    const { rows } = await query(
      `select coalesce(max(version), 0)::int as version from ${names.migrations} where records = ${names.literal}`,
      [],
    )
    return (rows[0] as { version: number }).version
  }

  return {
    async claim(request) {
      const { id, token, fingerprint, leaseMs, ttlMs, takeOver, meta } = request
      const { scope, key, route, firstSeenAt } = meta
      const values = [id, token, fingerprint, leaseMs, ttlMs, takeOver, scope, key, route, firstSeenAt]
      for (let attempt = 1; attempt <= CLAIM_ATTEMPTS; attempt += 1) {
        const { rows } = await query(statements.claim, values)
        const row = rows[0] as (FoundRow & { acquired: number | null }) | undefined
        if (row === undefined) continue
        return row.acquired === null ? asClaimResult(row) : { status: 'acquired', fence: row.acquired }
      }
      throw new Error(`The claim met another one ${CLAIM_ATTEMPTS} times in a row`)
    },

    renew: (id, token, leaseMs) => changed(statements.renew, [id, token, leaseMs]),

    complete: (id, token, { result, head, body }, ttlMs) =>
      changed(statements.complete, [id, token, ttlMs, result, head, asBuffer(body)]),

    release: (id, token) => changed(statements.release, [id, token]),

    async find(id) {
      const { rows } = await query(statements.find, [id])
      return rows[0] === undefined ? undefined : asStoredRecord(id, rows[0] as FoundRow)
    },

    settle(id, resolution, ttlMs) {
      if (resolution === 'release') return changed(statements.settleByRelease, [id])
      const { result, head, body } = resolution
      return changed(statements.settleByOutcome, [id, ttlMs, result, head, asBuffer(body)])
    },

    async sweep() {
      let removed = 0
      for (;;) {
        const { rowCount } = await query(statements.sweep, [`oncekey sweep ${names.table}`])
        removed += rowCount ?? 0
        if (rowCount !== SWEEP_BATCH) return removed
      }
    },

    async check() {
      const { rows } = await query(statements.inspect, [names.table])
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
      await client.query({ text: migrationStatements(names) })
    },

    migrationSql: () => `begin;${migrationStatements(names)}commit;\n`,
  }
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

function tableNames({ schema, table = 'oncekey_records' }: PostgresStoreOptions): TableNames {
  assertIdentifier('table', table)
  if (schema !== undefined) assertIdentifier('schema', schema)
  const within = schema === undefined ? '' : `${quoted(schema)}.`
  return {
    table: within + quoted(table),
    migrations: `${within}oncekey_migrations`,
    expiryIndex: quoted(`${table}_expiry`),
    literal: `'${table.replaceAll("'", "''")}'`,
  }
}

/** Postgres cuts names after 63 bytes, and two tables that differ later would be one. */
function assertIdentifier(option: string, name: unknown): void {
  const isOne = typeof name === 'string' && name !== '' && !name.includes('\0')
  if (isOne && !name.includes('$oncekey$') && Buffer.byteLength(name) <= 56) return
  throw new OptionsError(
    `postgresStore: option "${option}" must be a name of 1 to 56 bytes; got ${JSON.stringify(name)}`,
  )
}

function quoted(identifier: string): string {
  return `"${identifier.replaceAll('"', '""')}"`
}

function asClaimResult(row: FoundRow): ClaimResult {
  refuseUnknownFormat(row)
  const { fingerprint, fence } = row
  if (row.status === 'completed')
    return { status: 'completed', fingerprint, outcome: outcomeOf(row), ageMs: Math.max(0, row.age_ms) }
  if (row.lease_left_ms > 0) return { status: 'running', fingerprint, leaseLeftMs: row.lease_left_ms }
  return { status: 'unknown', fingerprint, fence, meta: metaOf(row) }
}

function asStoredRecord(id: string, row: FoundRow): StoredRecord {
  refuseUnknownFormat(row)
  const { fingerprint, fence, expires_in_ms: expiresInMs } = row
  const base = { id, fingerprint, fence, meta: metaOf(row), expiresInMs }
  if (row.status === 'completed')
    return { ...base, status: 'completed', outcome: outcomeOf(row), ageMs: Math.max(0, row.age_ms) }
  if (row.lease_left_ms > 0) return { ...base, status: 'running', leaseLeftMs: row.lease_left_ms }
  return { ...base, status: 'unknown' }
}

function outcomeOf({ result, head, body }: FoundRow) {
  return { result, head, body }
}

function metaOf({ key, route, scope, first_seen_at: firstSeenAt }: FoundRow): RecordMeta {
  return { key, route, scope, firstSeenAt }
}

function refuseUnknownFormat({ format }: FoundRow): void {
  if (format === FORMAT) return
  throw new StoreUnfitError(
    'Postgres holds a record that a newer version of oncekey wrote: update this service',
  )
}

function isConflict(error: unknown): boolean {
  const code = (error as { readonly code?: unknown } | null)?.code
  // serialization_failure and deadlock_detected: the statement did nothing.
  return code === '40001' || code === '40P01'
}

function asBuffer(body: Uint8Array | null): Buffer | null {
  return body === null ? null : Buffer.from(body.buffer, body.byteOffset, body.byteLength)
}
