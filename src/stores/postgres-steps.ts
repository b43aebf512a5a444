import type { TableNames } from './postgres-names.js'
import { BODY_ENCODING, bucketOf, ms } from './postgres-record.js'

/** A step of whoever holds a claim. */
export interface HolderStep {
  readonly id: string
  readonly token: string
  /** What the step takes besides, in its order. */
  readonly values: readonly (string | number | Buffer | null)[]
}

/** The body of a function of the database, and what it takes besides `p_id` and `p_token`. It returns whether it did it. */
interface StepFunction {
  readonly takes: readonly (readonly [name: string, type: 'float8' | 'text' | 'bytea'])[]
  body(table: string): string
  /**
   * What one statement for several sets in row `r`, of those that run, where the step is frequent: the function called
   * for each of them costs a quarter more.
   */
  readonly together?: (value: (name: string) => string) => string
}

/** A record that is there. */
const IS_LIVE = 'r.expires_at > clock_timestamp()'
/** A record that the token holds. */
const IS_HELD = `r.id = p_id and r.token = p_token and ${IS_LIVE}`

const STEPS = {
  renew: {
    takes: [['lease_ms', 'float8']],
    body: (table) => `
  update ${table} r set
    lease_until = clock_timestamp() + ${ms('p_lease_ms')},
    expires_at = greatest(r.expires_at, clock_timestamp() + ${ms('p_lease_ms')}),
    expiry_bucket = greatest(r.expiry_bucket, ${bucketOf(`clock_timestamp() + ${ms('p_lease_ms')}`)})
  where ${IS_HELD} and r.status = 'running';
  return found;`,
  },

  // One that is completed already, by an earlier call of the same token, stays as it is.
  complete: {
    takes: [
      ['ttl_ms', 'float8'],
      ['result', 'text'],
      ['head', 'text'],
      ['body', 'bytea'],
    ],
    body: (table) => `
  update ${table} r set ${completed((name) => `p_${name}`)}
  where ${IS_HELD} and r.status = 'running';
  if found then
    return true;
  end if;
  perform from ${table} r where ${IS_HELD};
  return found;`,
    together: completed,
  },

  // A claim that was taken over stays, as one that has lapsed: the earlier run may have had its effect.
  release: {
    takes: [],
    body: (table) => `
  delete from ${table} r where ${IS_HELD} and r.status = 'running' and r.fence = 1;
  if found then
    return true;
  end if;
  update ${table} r set token = null, lease_until = clock_timestamp()
  where ${IS_HELD} and r.status = 'running' and r.fence > 1;
  return found;`,
  },
} satisfies Record<string, StepFunction>

function completed(value: (name: string) => string): string {
  const expiresAt = `clock_timestamp() + ${ms(value('ttl_ms'))}`
  return `
    status = 'completed', result = ${value('result')}, head = ${value('head')}, body = ${value('body')},
    completed_at = clock_timestamp(), expires_at = ${expiresAt}, expiry_bucket = ${bucketOf(expiresAt)}`
}

/** The steps of whoever holds a claim. */
export type StepName = keyof typeof STEPS

/**
 * How long the steps of a batch wait for the lock of a record. Only a transaction of the application holds one for longer,
 * and whoever has to wait for it should do so alone.
 */
export const BATCH_LOCK_TIMEOUT_MS = 50

/**
 * How many bytes of a body that is to be kept, or of an outcome that is found, travel in a batch. What is longer goes in a
 * statement of its own, so that no others wait for it: what a batch finds stays below a megabyte or so.
 */
export const LONGEST_IN_BATCH = 8192

/**
 * Makes functions plan as for a large table. A connection keeps its plans, and one that was made when the table was nearly
 * empty would read all of it for every step until statistics are gathered again.
 */
export const PLANNED_FOR_GROWTH = 'set enable_seqscan = off'

/**
 * Leaves only plans that look each record up by its id, in a statement that joins them with what is to be done: the ids are
 * given twice, so that whichever side is read first, it is read by the ids.
 */
const LOOKED_UP = `${PLANNED_FOR_GROWTH} set enable_bitmapscan = off set enable_mergejoin = off`

/** The functions that carry out one step, and several of its kind in one statement. */
export function stepFunctions({ table, steps }: TableNames): string {
  return STEP_NAMES.map((name) => {
    const { takes, body, together } = STEPS[name] as StepFunction
    const { one, many } = steps[name]
    const parameters = takes.map(([argument, type]) => `, p_${argument} ${type}`).join('')
    const columns = takes.map(([, type], index) => `, ${columnAt(index)} ${type === 'bytea' ? 'text' : type}`)
    const valueAt = (index: number): string => {
      const value = `c.${columnAt(index)}`
      return takes[index]?.[1] === 'bytea' ? `decode(${value}, '${BODY_ENCODING}')` : value
    }
    const valueNamed = (argument: string): string => valueAt(takes.findIndex(([taken]) => taken === argument))
    const asked = `json_to_recordset(p_steps::json) as c(p int, id text, t text${columns.join('')})`
    const first =
      together &&
      `
  with changed as (
    update ${table} r set ${together(valueNamed)}
    from ${asked}
    where r.id = any (ids) and r.id = c.id and r.token = c.t and r.status = 'running' and ${IS_LIVE}
    returning c.p
  )
  select array_agg(h.p) into done from changed h;
  if cardinality(done) = cardinality(ids) then
    return null;
  end if;`
    return `
create or replace function ${one}(p_id text, p_token text${parameters})
returns boolean language plpgsql ${PLANNED_FOR_GROWTH} as $step$
begin${body(table)}
end
$step$;
create or replace function ${many}(p_steps text, p_ids text)
returns text language plpgsql ${LOOKED_UP} as $steps$
declare
  setting text := set_config('lock_timeout', '${BATCH_LOCK_TIMEOUT_MS}', true);
  ids text[] := p_ids::text[];
  done int[] := '{}';
begin${first ?? ''}
  return (
    select json_agg(c.p) from ${asked}
    where c.p <> all (coalesce(done, '{}')) and not ${one}(c.id, c.t${takes.map((_, index) => `, ${valueAt(index)}`).join('')})
  );
end
$steps$;`
  }).join('')
}

/** Carries out one step. Its values are the id, the token, and what else it takes. One row when it was done. */
export function stepText(name: StepName, { steps }: Pick<TableNames, 'steps'>): string {
  const parameters = STEPS[name].takes.map(([, type], index) => `, $${index + 3}::${type}`)
  return `select 1 as done where ${steps[name].one}($1::text, $2::text${parameters.join('')})`
}

/**
 * Carries out several steps. Its values are what `stepsValues` makes of them. An `AnswerRow`: null when all of them were done,
 * or a list of the places of those that were not.
 */
export function stepsText(name: StepName, { steps }: Pick<TableNames, 'steps'>): string {
  return `select ${steps[name].many}($1::text, $2::text) as answer`
}

/** The values of `stepsText`. */
export function stepsValues(steps: readonly HolderStep[]): string[] {
  const rows = steps.map(({ id, token, values }, place) => {
    const row: { [name: string]: string | number | null; id: string } = { p: place, id, t: token }
    for (const [index, value] of values.entries())
      row[columnAt(index)] = Buffer.isBuffer(value) ? value.toString(BODY_ENCODING) : value
    return row
  })
  return [batchText(rows), `{${steps.map(({ id }) => JSON.stringify(id)).join()}}`]
}

/** What the value with that number is called in the JSON of a batch: short names are read faster. */
function columnAt(index: number): string {
  return `v${index}`
}

/**
 * What a batch is about, as a JSON text, since that is a value that every client hands on alike; in the order of the ids, so
 * that two batches never wait for each other in a circle.
 */
export function batchText(rows: readonly { readonly id: string }[]): string {
  return JSON.stringify(
    rows.toSorted(({ id: one }, { id: other }) => (one < other ? -1 : Number(one > other))),
  )
}

const STEP_NAMES = Object.keys(STEPS) as StepName[]
