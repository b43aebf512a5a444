import type { InboxNames } from './postgres-names.js'
import { bucketOf, ms } from './postgres-record.js'
import { PLANNED_FOR_GROWTH } from './postgres-steps.js'

/** What a message was found to be: entered, with the number of the attempt; or with its fingerprint; or of another log. */
export const ENTERED = 'e'
export const PROCESSED = 'p'
export const DEAD = 'd'
export const FOREIGN = 'f'

/** How often a function looks again when others come between its statements. */
const LOOKS = 10

/** The last entry of the index that sweeping uses: what stands there is never swept. */
const NEVER = 2_147_483_647

const WINDOW_END = `clock_timestamp() + ${ms('p_window_ms')}`

/** What a function is told about a message, and how long it waits for another transaction that has it. */
const MESSAGE = `
  p_consumer text, p_window_ms float8, p_lock_ms int,
  p_id bytea, p_source text, p_key text, p_fingerprint text`

/** The functions set the limit for themselves: the application's statements have their own. */
const OWN_LOCK_TIMEOUT = "set lock_timeout = '0'"
const LIMIT_LOCKS = `setting text := set_config('lock_timeout', p_lock_ms::text, true);`

/**
 * The tables of messages and their functions. A message is `processed`, `dead`, `open` (tried, and neither of them) or
 * `redriven` (it was dead, and shall be tried again). The dead and the redriven are kept until somebody decides.
 */
export function inboxTables(names: InboxNames): string {
  const { messages, marks, expiryIndex, deadIndex } = names
  return `
create table ${messages} (
  id bytea primary key,
  consumer text not null,
  source text not null,
  key text not null,
  fingerprint text,
  status text not null,
  attempts int not null,
  error text,
  created_at timestamptz not null default clock_timestamp(),
  died_at timestamptz,
  expires_at timestamptz not null,
  expiry_bucket int not null
);
create index ${expiryIndex} on ${messages} (expiry_bucket);
create index ${deadIndex} on ${messages} (consumer, id) where status = 'dead';
create table ${marks} (
  consumer text not null,
  topic text not null,
  part int not null,
  first_offset bigint not null,
  last_offset bigint not null,
  newest_ms bigint not null,
  topic_id text,
  primary key (consumer, topic, part)
);
${enterFunctions(names)}
${markFunction(names)}
${enterManyFunction(names)}
${noteFunction(names)}
`
}

/**
 * Enters a message by its id, as processed, and says what it is: a letter, and what belongs to it. One
 * that is new costs one insert; one that was processed is read without a lock and without a write.
 *
 * Most messages are new, so what is known of the others is looked up in a function of its own: what makes that plan well
 * would cost each new message as much as its insert.
 */
function enterFunctions(names: InboxNames): string {
  const { messages, enter, known } = names
  return `${knownFunction(names)}
create or replace function ${enter}(${MESSAGE}, p_counts int)
returns text language plpgsql ${OWN_LOCK_TIMEOUT} as $enter$
declare
  ${LIMIT_LOCKS}
begin
  insert into ${messages} (id, consumer, source, key, fingerprint, status, attempts, expires_at, expiry_bucket)
  values (
    p_id, p_consumer, p_source, p_key, p_fingerprint, 'processed', 1, ${WINDOW_END}, ${bucketOf(WINDOW_END)}
  )
  on conflict do nothing;
  if found then
    return '${ENTERED}1';
  end if;
  return ${known}(p_consumer, p_window_ms, p_lock_ms, p_id, p_source, p_key, p_fingerprint, p_counts);
end
$enter$;`
}

/** Enters a message that was met before, where it is to be tried again, and says what it is where it is not. */
function knownFunction({ messages, known }: InboxNames): string {
  return `
create or replace function ${known}(${MESSAGE}, p_counts int)
returns text language plpgsql ${PLANNED_FOR_GROWTH} ${OWN_LOCK_TIMEOUT} as $known$
#variable_conflict use_column
declare
  ${LIMIT_LOCKS}
  looked_at timestamptz;
  attempt int;
  m ${messages}%rowtype;
begin
  for look in 1..${LOOKS} loop
    insert into ${messages} (id, consumer, source, key, fingerprint, status, attempts, expires_at, expiry_bucket)
    values (
      p_id, p_consumer, p_source, p_key, p_fingerprint, 'processed', 1, ${WINDOW_END}, ${bucketOf(WINDOW_END)}
    )
    on conflict do nothing;
    if found then
      return '${ENTERED}1';
    end if;
    select * into m from ${messages} t where t.id = p_id;
    continue when not found;
    looked_at := clock_timestamp();
    if m.expires_at > looked_at and m.status in ('processed', 'dead') then
      return case m.status when 'dead' then '${DEAD}' else '${PROCESSED}' end || coalesce(m.fingerprint, '');
    end if;
    update ${messages} t set
      status = 'processed', fingerprint = p_fingerprint,
      attempts = case when t.expires_at > looked_at then t.attempts + p_counts else 1 end,
      created_at = case when t.expires_at > looked_at then t.created_at else looked_at end,
      expires_at = ${WINDOW_END}, expiry_bucket = ${bucketOf(WINDOW_END)}
    where t.id = p_id and (t.status in ('open', 'redriven') or t.expires_at <= looked_at)
    returning t.attempts into attempt;
    if found then
      return '${ENTERED}' || attempt;
    end if;
  end loop;
  raise exception 'The message met another one ${LOOKS} times in a row' using errcode = 'serialization_failure';
end
$known$;`
}

/**
 * Enters a message by its position: it is new when it lies behind the high watermark. What is known of its id comes first,
 * so that one that was given up, or shall be tried again, is told from one that was processed.
 *
 * No message of a log is newer than all that were processed behind it, since it was one of them; and none lies before the
 * first that was seen. One that does is of another log: of a topic that was made again under the name of an earlier one.
 */
function markFunction({ messages, marks, mark, enter }: InboxNames): string {
  const isForeign = `(
        m.topic_id is distinct from coalesce(p_topic_id, m.topic_id)
        or p_offset < m.first_offset
        or (p_offset <= m.last_offset and p_time_ms > m.newest_ms)
      )`
  return `
create or replace function ${mark}(
  ${MESSAGE}, p_counts int, p_topic text, p_part int, p_offset bigint, p_time_ms bigint, p_topic_id text
) returns text language plpgsql ${PLANNED_FOR_GROWTH} ${OWN_LOCK_TIMEOUT} as $mark$
#variable_conflict use_column
declare
  ${LIMIT_LOCKS}
  is_redriven boolean := false;
  was text;
  entry text := '${ENTERED}1';
  m ${marks}%rowtype;
begin
  select t.status into was from ${messages} t where t.id = p_id and t.expires_at > clock_timestamp();
  if found then
    is_redriven := was = 'redriven';
    entry := ${enter}(p_consumer, p_window_ms, p_lock_ms, p_id, p_source, p_key, p_fingerprint, p_counts);
    if not starts_with(entry, '${ENTERED}') then
      return entry;
    end if;
  end if;
  for look in 1..${LOOKS} loop
    insert into ${marks} (consumer, topic, part, first_offset, last_offset, newest_ms, topic_id)
    values (p_consumer, p_topic, p_part, p_offset, p_offset, p_time_ms, p_topic_id)
    on conflict do nothing;
    if found then
      return entry;
    end if;
    update ${marks} m set
      last_offset = p_offset, newest_ms = greatest(m.newest_ms, p_time_ms),
      topic_id = coalesce(m.topic_id, p_topic_id)
    where m.consumer = p_consumer and m.topic = p_topic and m.part = p_part
      and p_offset > m.last_offset and not ${isForeign};
    if found then
      return entry;
    end if;
    select * into m from ${marks} t where t.consumer = p_consumer and t.topic = p_topic and t.part = p_part;
    continue when not found or (p_offset > m.last_offset and not ${isForeign});
    return case when is_redriven then entry when ${isForeign} then '${FOREIGN}' else '${PROCESSED}' end;
  end loop;
  raise exception 'The message met another one ${LOOKS} times in a row' using errcode = 'serialization_failure';
end
$mark$;`
}

/**
 * Enters several messages of a consumer, each as the functions for one do, and gives a row for the place of each. They
 * come as a `batchText`. Those that are new by their id are one insert; by their position they are entered one by one, in
 * the order of their logs.
 */
function enterManyFunction({ messages, enter, mark, enterMany }: InboxNames): string {
  const asked = `json_to_recordset(p_messages::json) as c(
    p int, id text, s text, k text, f text, t text, n int, o bigint, m bigint, u text
  )`
  return `
create or replace function ${enterMany}(
  p_consumer text, p_window_ms float8, p_lock_ms int, p_counts int, p_messages text,
  out place int, out finding text
) returns setof record language plpgsql ${PLANNED_FOR_GROWTH} ${OWN_LOCK_TIMEOUT} as $enters$
#variable_conflict use_column
declare
  ${LIMIT_LOCKS}
  fresh bytea[];
  c record;
begin
  with entered as (
    insert into ${messages} (id, consumer, source, key, fingerprint, status, attempts, expires_at, expiry_bucket)
    select decode(id, 'hex'), p_consumer, s, k, f, 'processed', 1, ${WINDOW_END}, ${bucketOf(WINDOW_END)}
    from ${asked}
    where o is null
    on conflict do nothing
    returning id
  )
  select array_agg(id) into fresh from entered;
  for c in select * from ${asked} order by t nulls first, n, o, id loop
    place := c.p;
    if c.o is not null then
      finding := ${mark}(
        p_consumer, p_window_ms, p_lock_ms, decode(c.id, 'hex'), c.s, c.k, c.f, p_counts, c.t, c.n, c.o, c.m, c.u
      );
    elsif decode(c.id, 'hex') = any (fresh) then
      finding := '${ENTERED}1';
    else
      finding := ${enter}(p_consumer, p_window_ms, p_lock_ms, decode(c.id, 'hex'), c.s, c.k, c.f, p_counts);
    end if;
    return next;
  end loop;
end
$enters$;`
}

/**
 * Notes an attempt. It gives `open` or `buried` and the number of attempts, or `processed` or `dead` when there is
 * nothing to note any more. With 0 attempts it only buries a message that has had enough of them.
 */
function noteFunction({ messages, note }: InboxNames): string {
  const attempts = '(case when t.expires_at > looked_at then t.attempts else 0 end + p_attempts)'
  const isLast = `${attempts} >= p_max_attempts`
  return `
create or replace function ${note}(
  ${MESSAGE}, p_attempts int, p_max_attempts int, p_error text, out status text, out attempts int
) language plpgsql ${PLANNED_FOR_GROWTH} ${OWN_LOCK_TIMEOUT} as $note$
#variable_conflict use_column
declare
  ${LIMIT_LOCKS}
  looked_at timestamptz;
  m ${messages}%rowtype;
begin
  for look in 1..${LOOKS} loop
    looked_at := clock_timestamp();
    insert into ${messages} as t
      (id, consumer, source, key, fingerprint, status, attempts, error, died_at, expires_at, expiry_bucket)
    select
      p_id, p_consumer, p_source, p_key, p_fingerprint, case when is_last then 'dead' else 'open' end, p_attempts,
      p_error, case when is_last then looked_at end, case when is_last then 'infinity' else ${WINDOW_END} end,
      case when is_last then ${NEVER} else ${bucketOf(WINDOW_END)} end
    from (select p_attempts >= p_max_attempts as is_last) l
    on conflict do nothing;
    if found then
      attempts := p_attempts;
      status := case when p_attempts >= p_max_attempts then 'buried' else 'open' end;
      return;
    end if;
    select * into m from ${messages} t where t.id = p_id;
    continue when not found;
    looked_at := clock_timestamp();
    if m.expires_at > looked_at and m.status in ('processed', 'dead') then
      status := m.status;
      return;
    end if;
    update ${messages} t set
      status = case when ${isLast} then 'dead' when t.expires_at <= looked_at then 'open' else t.status end,
      attempts = ${attempts}, error = p_error, fingerprint = p_fingerprint,
      created_at = case when t.expires_at > looked_at then t.created_at else looked_at end,
      died_at = case when ${isLast} then looked_at end,
      expires_at = case when ${isLast} or t.status = 'redriven' then 'infinity' else ${WINDOW_END} end,
      expiry_bucket = case when ${isLast} or t.status = 'redriven' then ${NEVER} else ${bucketOf(WINDOW_END)} end
    where t.id = p_id and (t.status in ('open', 'redriven') or t.expires_at <= looked_at)
    returning t.attempts into attempts;
    if found then
      status := case when attempts >= p_max_attempts then 'buried' else 'open' end;
      return;
    end if;
  end loop;
  raise exception 'The message met another one ${LOOKS} times in a row' using errcode = 'serialization_failure';
end
$note$;`
}
