import { claimFunction, claimsFunction } from './postgres-claim.js'
import { completeFunction } from './postgres-complete.js'
import { inboxTables } from './postgres-inbox-functions.js'
import { type TableNames, tableNames } from './postgres-names.js'
import { stepFunctions } from './postgres-steps.js'

/** Each entry is a migration, numbered from 1. One that was released never changes. */
const MIGRATIONS: readonly ((names: TableNames) => string)[] = [
  (names) => `
    create table ${names.table} (
      first_seen_at bigint not null,
      fence bigint not null,
      lease_until timestamptz not null,
      created_at timestamptz not null default clock_timestamp(),
      completed_at timestamptz,
      expires_at timestamptz not null,
      expiry_bucket int not null,
      format smallint not null default 1,
      id text collate "C" primary key,
      scope text not null,
      key text not null,
      route text not null,
      fingerprint text not null,
      status text not null,
      token text,
      result text,
      head text,
      body bytea
    ) with (fillfactor = 40);
    create index ${names.expiryIndex} on ${names.table} (expiry_bucket);
    ${claimFunction(names)}
    ${claimsFunction(names)}
    ${completeFunction(names)}
    ${stepFunctions(names)}
  `,
  (names) => inboxTables(names.inbox),
]

/** The migration that this version of the store needs. */
export const LATEST_MIGRATION = MIGRATIONS.length

/**
 * Brings the store's tables up to date: one text of several statements, to be run as one transaction. Processes that
 * run it at once wait for each other, and running it again changes nothing.
 */
export function migrationStatements(names: TableNames): string {
  const steps = MIGRATIONS.map((migration, index) => {
    const version = index + 1
    return `
do $oncekey$ begin
  if not exists (select from ${names.migrations} where records = ${names.literal} and version = ${version}) then
    ${migration(names).trim()}
    insert into ${names.migrations} (records, version) values (${names.literal}, ${version});
  end if;
end $oncekey$;`
  })
  return `
set transaction isolation level read committed;
select pg_advisory_xact_lock(hashtextextended('oncekey migrations', 0));
create table if not exists ${names.migrations} (
  records text not null,
  version integer not null,
  applied_at timestamptz not null default clock_timestamp(),
  primary key (records, version)
);
${steps.join('\n')}
`
}

/**
 * What `migrate` runs, for those who run their migrations themselves.
 *
 * @throws {OptionsError} when a name is no identifier.
 */
export function migrationSql(names: { readonly schema?: string; readonly table?: string } = {}): string {
  return `begin;${migrationStatements(tableNames(names))}commit;\n`
}
