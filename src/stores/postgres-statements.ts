import type { Completion } from '../contract/store.js'
import { claimText, insertOrClaimText } from './postgres-claim.js'
import { completeInWritten, completeOnce, completeOrFailText } from './postgres-complete.js'
import type { TableNames } from './postgres-names.js'
import { bucketOf, FORMAT, foundText, ms } from './postgres-record.js'
import { stepsText, stepText } from './postgres-steps.js'

const IS_LIVE = 'r.expires_at > clock_timestamp()'

/** How many records one statement of a sweep removes at most. */
export const SWEEP_BATCH = 500

/** What a function of the database that answers with a text gives: one row. */
export interface AnswerRow {
  readonly answer: string | null
}

/**
 * The statements of a store, for its table. Each is one step, and gives a row for what it changed: clients differ in how
 * they count, and agree about rows.
 */
export function createStatements(
  names: Pick<TableNames, 'table' | 'claim' | 'claims' | 'complete' | 'steps'>,
) {
  const { table, claims: claimsName, complete: completeName } = names
  return {
    /**
     * Claims the record, or reads it: a function of the database, so that it is planned once a connection, whether the
     * client prepares statements or not. Values: `claimValues`. An `AnswerRow`.
     */
    claim: claimText(names),

    /** The same, faster where it is prepared. See there. */
    insertOrClaim: insertOrClaimText(names),

    /** Makes several claims at once. Its arguments are those of `claimsFunction`. An `AnswerRow`. */
    claims: `select ${claimsName}($1::text, $2::int, $3::boolean) as answer`,

    /** Keeps the outcome as a part of a transaction, once. Values: `completionValues`. One row when it is kept. */
    completeOnce: completeOnce(table),

    /** As `completeOnce`, where somebody else sends it and could do so outside of a transaction. See there. */
    completeInWritten: completeInWritten(table),

    /** As `completeOnce`, as a text without values that fails with `CLAIM_LOST` where nothing is kept. */
    completeOrFail: (completion: Completion) => completeOrFailText(completeName, completion),

    /** The steps of whoever holds a claim: functions, for the same reason. See `stepText` and `stepsText`. */
    steps: {
      renew: { one: stepText('renew', names), many: stepsText('renew', names) },
      complete: { one: stepText('complete', names), many: stepsText('complete', names) },
      release: { one: stepText('release', names), many: stepsText('release', names) },
    },

    /** Reads the record. $1 id. Gives a `FoundRow`, or nothing. */
    find: `select ${foundText('r')} as existing from ${table} r where r.id = $1 and ${IS_LIVE}`,

    /** A page of records. $1 the last id before it, $2 status, $3 route, $4 least age in ms, or null, $5 its length. */
    list: `
select r.id, ${foundText('r')} as existing
from ${table} r
where r.id > $1::text and ${IS_LIVE} and r.format = ${FORMAT}
  and ($2::text is null or $2 = case
    when r.status = 'completed' then 'completed' when r.lease_until > clock_timestamp() then 'running' else 'unknown' end)
  and ($3::text is null or r.route = $3)
  and ($4::float8 is null or r.created_at <= clock_timestamp() - ${ms('$4')})
order by r.id
limit $5::int`,

    /** Removes a record that does not run. $1 id. One row when removed. */
    remove: `
delete from ${table} r
where r.id = $1 and ${IS_LIVE} and (r.status = 'completed' or r.lease_until <= clock_timestamp())
returning 1 as done`,

    /** Removes an unknown record. $1 id. One row when removed. */
    settleByRelease: `
delete from ${table} r
where r.id = $1 and r.status = 'running' and r.lease_until <= clock_timestamp() and ${IS_LIVE}
returning 1 as done`,

    /** Ends an unknown record with an outcome. $1 id, $2 ttl in ms, $3 result, $4 head, $5 body. One row when settled. */
    settleByOutcome: `
update ${table} r set
  status = 'completed', token = null, result = $3, head = $4, body = $5::bytea,
  completed_at = clock_timestamp(), expires_at = clock_timestamp() + ${ms('$2')},
  expiry_bucket = ${bucketOf(`clock_timestamp() + ${ms('$2')}`)}
where r.id = $1 and r.status = 'running' and r.lease_until <= clock_timestamp() and ${IS_LIVE}
returning 1 as done`,

    /** What `check` looks at. $1 the table's name. */
    inspect: `
select
  current_setting('server_version_num')::int as server_version,
  current_setting('fsync') as fsync,
  current_setting('synchronous_commit') as synchronous_commit,
  (select relpersistence::text from pg_class where oid = to_regclass($1)) as persistence`,
  }
}

/**
 * Removes a batch of what has expired from a table, unless another process is at it, and counts it. $1 the name of the
 * lock. After a full batch it rests for three times as long as that took, with the lock: however many processes there are and
 * however much there is to remove, three quarters of a processor are left to whoever claims. The time is a subquery, since an
 * index cannot be searched for a function that changes from row to row. A row that is locked is where it was found.
 */
export function sweepStatement(table: string): string {
  return `
with turn as materialized (
  select pg_try_advisory_xact_lock(hashtextextended($1, 0)) as is_ours
), gone as (
  delete from ${table} r where r.ctid = any (array(
    select e.ctid from ${table} e
    where (select is_ours from turn)
      and e.expiry_bucket <= (select ${bucketOf('clock_timestamp()')})
      and e.expires_at <= (select clock_timestamp())
    order by e.expiry_bucket
    limit ${SWEEP_BATCH}
    for update skip locked
  ))
  returning 1
), counted as (
  select count(*)::int as removed from gone
)
select removed, case when removed = ${SWEEP_BATCH} then pg_sleep(${SWEEP_REST})::text end as rested from counted`
}

/** How long a sweep rests after a full batch, in seconds. */
const SWEEP_REST = 'least(1, 3 * extract(epoch from clock_timestamp() - statement_timestamp()))'

/** Counts what has expired in a table and waits for a sweep. */
export function expiredStatement(table: string): string {
  return `
select count(*)::int as expired from ${table} r
where r.expiry_bucket <= (select ${bucketOf('clock_timestamp()')}) and r.expires_at <= (select clock_timestamp())`
}
