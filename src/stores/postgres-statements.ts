/** What a statement says about a record that is there, as columns of `FoundRow`. */
const FOUND = `
  r.format, r.status, r.fingerprint, r.fence::float8 as fence,
  r.key, r.route, r.scope, r.first_seen_at::float8 as first_seen_at,
  extract(epoch from r.lease_until - clock_timestamp())::float8 * 1000 as lease_left_ms,
  extract(epoch from clock_timestamp() - r.completed_at)::float8 * 1000 as age_ms,
  extract(epoch from r.expires_at - clock_timestamp())::float8 * 1000 as expires_in_ms,
  r.result, r.head, r.body`

/** A row of `FOUND`. */
export interface FoundRow {
  readonly format: number
  readonly status: 'running' | 'completed'
  readonly fingerprint: string
  readonly fence: number
  readonly key: string
  readonly route: string
  readonly scope: string
  readonly first_seen_at: number
  readonly lease_left_ms: number
  readonly age_ms: number
  readonly expires_in_ms: number
  readonly result: 'succeeded' | 'failed'
  readonly head: string
  readonly body: Uint8Array | null
}

/** Columns that begin anew when an id is claimed again after its record has expired. */
const BEGUN_ANEW = [
  'scope',
  'key',
  'route',
  'first_seen_at',
  'fingerprint',
  'created_at',
  'completed_at',
  'result',
  'head',
  'body',
]

const IS_LIVE = 'r.expires_at > clock_timestamp()'

/** How many records one statement of a sweep removes at most. */
export const SWEEP_BATCH = 1000

/**
 * The statements of a store, for its table. Each is one step, and gives a row for what it changed: clients differ in how
 * they count, and agree about rows.
 */
export function createStatements(table: string) {
  return {
    /**
     * Claims the record, or reads it. A record that only answers is read without a lock and without a write.
     * $1 id, $2 token, $3 fingerprint, $4 lease in ms, $5 ttl in ms, $6 whether a lapsed claim may be taken,
     * $7 scope, $8 key, $9 route, $10 first seen, $11 whether a crash may forget it: then its commit waits for no disk.
     * Gives a row with `acquired` (the fence), or a `FoundRow`, or nothing when another claim came between: ask again.
     */
    claim: `
with found as (
  select ${FOUND} from ${table} r
  where r.id = $1 and ${IS_LIVE} and not ${isOurs('r')}
), acquired as (
  insert into ${table} as r
    (id, token, fingerprint, lease_until, expires_at, scope, key, route, first_seen_at, status, fence)
  select
    $1, $2, $3, clock_timestamp() + ${ms('$4')}, clock_timestamp() + greatest(${ms('$4')}, ${ms('$5')}),
    $7, $8, $9, $10, 'running', 1
  where not exists (select from found)
    and (not $11::boolean or set_config('synchronous_commit', 'off', true) is not null)
  on conflict (id) do update set
    fence = case when not ${IS_LIVE} then 1 when r.token = $2 then r.fence else r.fence + 1 end,
    ${BEGUN_ANEW.map((column) => `${column} = case when ${IS_LIVE} then r.${column} else excluded.${column} end`).join(', ')},
    format = excluded.format, status = 'running', token = excluded.token,
    lease_until = excluded.lease_until, expires_at = excluded.expires_at
  where not ${IS_LIVE} or ${isOurs('r')}
  returning fence
)
select acquired.fence::float8 as acquired, found.*
from (select 1) one left join acquired on true left join found on true
where acquired.fence is not null or found.status is not null`,

    /** Makes the lease end later. $1 id, $2 token, $3 lease in ms. One row when renewed. */
    renew: `
update ${table} r set
  lease_until = clock_timestamp() + ${ms('$3')},
  expires_at = greatest(r.expires_at, clock_timestamp() + ${ms('$3')})
where r.id = $1 and r.token = $2 and r.status = 'running' and ${IS_LIVE}
returning 1 as done`,

    /**
     * Keeps the outcome. $1 id, $2 token, $3 ttl in ms, $4 result, $5 head, $6 body.
     * One row when it is kept, by this call or by an earlier one of the same token, whose outcome then stays.
     */
    complete: `
update ${table} r set
  result = case when r.status = 'running' then $4 else r.result end,
  head = case when r.status = 'running' then $5 else r.head end,
  body = case when r.status = 'running' then $6::bytea else r.body end,
  completed_at = case when r.status = 'running' then clock_timestamp() else r.completed_at end,
  expires_at = case when r.status = 'running' then clock_timestamp() + ${ms('$3')} else r.expires_at end,
  status = 'completed'
where r.id = $1 and r.token = $2 and ${IS_LIVE}
returning 1 as done`,

    /**
     * Keeps the outcome as a part of a transaction, once: not where an earlier transaction of the same token has.
     * $1 id, $2 token, $3 ttl in ms, $4 result, $5 head, $6 body. One row when it is kept.
     */
    completeOnce: `
update ${table} r set
  status = 'completed', result = $4::text, head = $5::text, body = $6::bytea,
  completed_at = clock_timestamp(), expires_at = clock_timestamp() + ${ms('$3')}
where r.id = $1::text and r.token = $2::text and r.status = 'running' and ${IS_LIVE}
returning 1 as done`,

    /** Gives the claim back. $1 id, $2 token. One row when released. */
    release: `
with removed as (
  delete from ${table} r
  where r.id = $1 and r.token = $2 and r.status = 'running' and r.fence = 1 and ${IS_LIVE}
  returning 1
), lapsed as (
  update ${table} r set token = null, lease_until = clock_timestamp()
  where r.id = $1 and r.token = $2 and r.status = 'running' and r.fence > 1 and ${IS_LIVE}
  returning 1
)
select 1 as done from removed union all select 1 from lapsed`,

    /** Reads the record. $1 id. Gives a `FoundRow`, or nothing. */
    find: `select ${FOUND} from ${table} r where r.id = $1 and ${IS_LIVE}`,

    /** Removes an unknown record. $1 id. One row when removed. */
    settleByRelease: `
delete from ${table} r
where r.id = $1 and r.status = 'running' and r.lease_until <= clock_timestamp() and ${IS_LIVE}
returning 1 as done`,

    /** Ends an unknown record with an outcome. $1 id, $2 ttl in ms, $3 result, $4 head, $5 body. One row when settled. */
    settleByOutcome: `
update ${table} r set
  status = 'completed', token = null, result = $3, head = $4, body = $5::bytea,
  completed_at = clock_timestamp(), expires_at = clock_timestamp() + ${ms('$2')}
where r.id = $1 and r.status = 'running' and r.lease_until <= clock_timestamp() and ${IS_LIVE}
returning 1 as done`,

    /**
     * Removes a batch of expired records, unless another process is at it, and counts them. $1 the name of the lock.
     * The time is a subquery, since an index cannot be searched for a function that changes from row to row.
     */
    sweep: `
with turn as materialized (
  select pg_try_advisory_xact_lock(hashtextextended($1, 0)) as is_ours
), expired as (
  select r.id from ${table} r
  where (select is_ours from turn) and r.expires_at <= (select clock_timestamp())
  order by r.expires_at
  limit ${SWEEP_BATCH}
  for update skip locked
), gone as (
  delete from ${table} r using expired where r.id = expired.id
  returning 1
)
select count(*)::int as removed from gone`,

    /** What `check` looks at. $1 the table's name. */
    inspect: `
select
  current_setting('server_version_num')::int as server_version,
  current_setting('fsync') as fsync,
  current_setting('synchronous_commit') as synchronous_commit,
  (select relpersistence::text from pg_class where oid = to_regclass($1)) as persistence`,
  }
}

/** Whether the claim that is asked for may have the row: it holds it already, or it may take it over. */
function isOurs(row: string): string {
  return `(
    ${row}.format = 1 and ${row}.status = 'running'
    and (${row}.token = $2 or ($6 and ${row}.lease_until <= clock_timestamp() and ${row}.fingerprint = $3))
  )`
}

function ms(parameter: string): string {
  return `${parameter}::float8 * interval '1 millisecond'`
}
