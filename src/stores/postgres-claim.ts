import type { ClaimRequest } from '../contract/store.js'
import type { TableNames } from './postgres-names.js'
import { bucketOf, type Claimed, foundText, ms } from './postgres-record.js'
import { BATCH_LOCK_TIMEOUT_MS, batchText, LONGEST_IN_BATCH, PLANNED_FOR_GROWTH } from './postgres-steps.js'

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

/** The columns that a new record is given. */
const NEW_RECORD =
  '(id, token, fingerprint, lease_until, expires_at, expiry_bucket, scope, key, route, first_seen_at, status, fence)'

/** What a claim of a batch finds in place of an outcome that is too long for it. */
export const LONG = 'long'

/** What `claimsFunction` says of the claim at a place: null for a new record. */
export interface PlacedAnswer {
  readonly p: number
  readonly found: Claimed | typeof LONG | null
}

/** How often a claim looks again when others come between its statements. */
const CLAIM_ATTEMPTS = 10

/**
 * The function that claims a record, or reads it. It gives null for a new record, and else what `claimResultOf` reads: a
 * row of several columns is dearer than the insert's index. A new record costs one insert; a record that only answers is
 * read without a lock and without a write. Where its outcome has more than `p_longest` bytes, the answer is `LONG` in its
 * place: lengths are known without reading what is stored apart.
 */
export function claimFunction({ table, claim }: TableNames): string {
  const isLiveAt = (now: string): string => `r.expires_at > ${now}`
  const isLive = isLiveAt('clock_timestamp()')
  /** Whether the claim that is asked for may have the record: it holds it already, or it may take it over. */
  const isOursAt = (now: string): string => `(
    r.format = 1 and r.status = 'running'
    and (r.token = p_token or (p_take_over and r.lease_until <= ${now} and r.fingerprint = p_fingerprint))
  )`
  const isOurs = isOursAt('clock_timestamp()')
  const anew = BEGUN_ANEW.map(
    (column) => `${column} = case when ${isLive} then r.${column} else ${anewValue(column)} end`,
  )
  return `
create or replace function ${claim}(
  p_id text, p_token text, p_fingerprint text, p_lease_ms float8, p_ttl_ms float8, p_take_over boolean,
  p_scope text, p_key text, p_route text, p_first_seen_at float8, p_may_be_lost boolean,
  p_longest int default null
) returns text language plpgsql ${PLANNED_FOR_GROWTH} as $claim$
#variable_conflict use_column
declare
  lease interval := p_lease_ms * interval '1 millisecond';
  remembered interval := greatest(p_lease_ms, p_ttl_ms) * interval '1 millisecond';
  setting text;
  looked_at timestamptz;
  acquired bigint;
  r ${table}%rowtype;
begin
  if p_may_be_lost then
    setting := set_config('synchronous_commit', 'off', true);
  end if;
  for attempt in 1..${CLAIM_ATTEMPTS} loop
    insert into ${table} ${NEW_RECORD}
    values (
      p_id, p_token, p_fingerprint, clock_timestamp() + lease, clock_timestamp() + remembered,
      ${bucketOf('clock_timestamp() + remembered')},
      p_scope, p_key, p_route, p_first_seen_at::bigint, 'running', 1
    )
    on conflict do nothing;
    if found then
      return null;
    end if;
    select * into r from ${table} t where t.id = p_id;
    continue when not found;
    -- One look at the clock: by two, a lease that lapses in between is neither taken over nor running.
    looked_at := clock_timestamp();
    if ${isLiveAt('looked_at')} and not ${isOursAt('looked_at')} then
      if octet_length(r.head) + coalesce(octet_length(r.body), 0) > p_longest then
        return '"${LONG}"';
      end if;
      return ${foundText('r', 'looked_at')};
    end if;
    update ${table} r set
      fence = case when not ${isLive} then 1 when r.token = p_token then r.fence else r.fence + 1 end,
      ${anew.join(', ')},
      format = 1, status = 'running', token = p_token,
      lease_until = clock_timestamp() + lease, expires_at = clock_timestamp() + remembered,
      expiry_bucket = ${bucketOf('clock_timestamp() + remembered')}
    where r.id = p_id and (not ${isLive} or ${isOurs})
    returning r.fence into acquired;
    if found then
      return json_build_object('acquired', acquired)::text;
    end if;
  end loop;
  raise exception 'The claim met another one ${CLAIM_ATTEMPTS} times in a row' using errcode = 'serialization_failure';
end
$claim$;`
}

/** Calls `claimFunction`. An `AnswerRow`. */
export function claimText({ claim }: Pick<TableNames, 'claim'>): string {
  return `select ${claim}(
  $1::text, $2::text, $3::text, $4::float8, $5::float8, $6::boolean, $7::text, $8::text, $9::text, $10::float8, $11::boolean
) as answer`
}

/**
 * As `claimText`, for connections that prepare it: a new record is a plain insert, which costs a fifth less than a function
 * that inserts, and whatever is found is left to the function. It looks for nothing in the table by itself, so that no plan
 * of it can be one for a small table. Not for claims that may be lost: those have a setting of their own.
 */
export function insertOrClaimText({ table, claim }: Pick<TableNames, 'table' | 'claim'>): string {
  const expiresAt = `clock_timestamp() + ${ms('greatest($4::float8, $5::float8)')}`
  return `
with won as (
  insert into ${table} ${NEW_RECORD}
  values (
    $1::text, $2::text, $3::text, clock_timestamp() + ${ms('$4')}, ${expiresAt}, ${bucketOf(expiresAt)},
    $7::text, $8::text, $9::text, $10::float8::bigint, 'running', 1
  )
  on conflict do nothing
  returning 1
)
select case when not exists (select from won) then ${claim}($1, $2, $3, $4, $5, $6::boolean, $7, $8, $9, $10, $11::boolean) end
  as answer`
}

/** The values of one claim, in the order of the function's arguments. */
export function claimValues(request: ClaimRequest): unknown[] {
  const { id, token, fingerprint, leaseMs, ttlMs, takeOver, mayBeLost, meta } = request
  const { scope, key, route, firstSeenAt } = meta
  return [id, token, fingerprint, leaseMs, ttlMs, takeOver, scope, key, route, firstSeenAt, mayBeLost]
}

/** The values of several claims, in the order of the arguments of `claimsFunction`. They may be lost if each of them may. */
export function claimsValues(requests: readonly ClaimRequest[]): unknown[] {
  const claims = requests.map(({ id, token, fingerprint, leaseMs, ttlMs, takeOver, meta }, place) => ({
    p: place,
    id,
    t: token,
    f: fingerprint,
    l: leaseMs,
    r: ttlMs,
    o: takeOver,
    s: meta.scope,
    k: meta.key,
    n: meta.route,
    a: meta.firstSeenAt,
  }))
  return [batchText(claims), requests.length, requests.every(({ mayBeLost }) => mayBeLost)]
}

/**
 * The function that makes several claims, each as `claimFunction` does. They come as a `batchText`. New records are one
 * insert; a claim that finds a record is made by itself. It gives null when all of them are new records, and else a list with
 * a `PlacedAnswer` for each of them, so that none is granted for want of an answer.
 */
export function claimsFunction({ table, claim, claims }: TableNames): string {
  const asked = `json_to_recordset(p_claims::json) as c(
    p int, id text, t text, f text, l float8, r float8, o boolean, s text, k text, n text, a float8
  )`
  return `
create or replace function ${claims}(p_claims text, p_count int, p_may_be_lost boolean)
returns text language plpgsql ${PLANNED_FOR_GROWTH} as $claims$
declare
  setting text := set_config('lock_timeout', '${BATCH_LOCK_TIMEOUT_MS}', true);
  -- An id is new once at most, whoever else of the batch asks for it.
  ids text[];
  tokens text[];
begin
  if p_may_be_lost then
    setting := set_config('synchronous_commit', 'off', true);
  end if;
  with won as (
    insert into ${table} ${NEW_RECORD}
    select
      id, t, f, clock_timestamp() + ${ms('l')}, clock_timestamp() + ${ms('greatest(l, r)')},
      ${bucketOf(`clock_timestamp() + ${ms('greatest(l, r)')}`)}, s, k, n, a::bigint, 'running', 1
    from ${asked}
    on conflict do nothing
    returning id, token
  )
  select array_agg(w.id), array_agg(w.token) into ids, tokens from won w;
  if cardinality(ids) = p_count then
    return null;
  end if;
  return (
    select json_agg(json_build_object(
      'p', c.p, 'found', case when c.t = tokens[array_position(ids, c.id)] then null else
        ${claim}(c.id, c.t, c.f, c.l, c.r, c.o, c.s, c.k, c.n, c.a, p_may_be_lost, ${LONGEST_IN_BATCH})::json
      end
    ))
    from ${asked}
  );
end
$claims$;`
}

function anewValue(column: string): string {
  switch (column) {
    case 'created_at':
      return 'clock_timestamp()'
    case 'first_seen_at':
      return 'p_first_seen_at::bigint'
    case 'completed_at':
    case 'result':
    case 'head':
    case 'body':
      return 'null'
    default:
      return `p_${column}`
  }
}
