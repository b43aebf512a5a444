import type { TableNames } from './postgres-names.js'
import { bucketOf, ms } from './postgres-record.js'

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
  update ${table} r set
    status = 'completed', result = p_result, head = p_head, body = p_body, completed_at = clock_timestamp(),
    expires_at = clock_timestamp() + ${ms('p_ttl_ms')},
    expiry_bucket = ${bucketOf(`clock_timestamp() + ${ms('p_ttl_ms')}`)}
  where ${IS_HELD} and r.status = 'running';
  if found then
    return true;
  end if;
  perform from ${table} r where ${IS_HELD};
  return found;`,
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

/** The steps of whoever holds a claim. */
export type StepName = keyof typeof STEPS

/**
 * How long the steps of a batch wait for the lock of a record. Only a transaction of the application holds one for longer,
 * and whoever has to wait for it should do so alone.
 */
export const BATCH_LOCK_TIMEOUT_MS = 50

/**
 * Makes functions plan as for a large table. A connection keeps its plans, and one that was made when the table was nearly
 * empty would read all of it for every step until statistics are gathered again.
 */
export const PLANNED_FOR_GROWTH = 'set enable_seqscan = off'

/** The functions that carry out one step, and several of its kind in one statement. */
export function stepFunctions({ table, steps }: TableNames): string {
  return STEP_NAMES.map((name) => {
    const { takes, body } = STEPS[name] as StepFunction
    const { one, many } = steps[name]
    const parameters = takes.map(([argument, type]) => `, p_${argument} ${type}`).join('')
    // Bytes travel in JSON as hexadecimal digits.
    const columns = takes.map(([argument, type]) => `, ${argument} ${type === 'bytea' ? 'text' : type}`)
    const values = takes.map(([argument, type]) =>
      type === 'bytea' ? `, decode(c.${argument}, 'hex')` : `, c.${argument}`,
    )
    return `
create or replace function ${one}(p_id text, p_token text${parameters})
returns boolean language plpgsql ${PLANNED_FOR_GROWTH} as $step$
begin${body(table)}
end
$step$;
create or replace function ${many}(p_steps text, out place int)
returns setof int language plpgsql ${PLANNED_FOR_GROWTH} as $steps$
declare
  setting text := set_config('lock_timeout', '${BATCH_LOCK_TIMEOUT_MS}', true);
  c record;
begin
  for c in select * from json_to_recordset(p_steps::json) as c(p int, id text, token text${columns.join('')}) loop
    if ${one}(c.id, c.token${values.join('')}) then
      place := c.p;
      return next;
    end if;
  end loop;
end
$steps$;`
  }).join('')
}

/** Carries out one step. Its values are the id, the token, and what else it takes. One row when it was done. */
export function stepText(name: StepName, { steps }: Pick<TableNames, 'steps'>): string {
  const parameters = STEPS[name].takes.map(([, type], index) => `, $${index + 3}::${type}`)
  return `select 1 as done where ${steps[name].one}($1::text, $2::text${parameters.join('')})`
}

/** Carries out several steps. Its value is what `stepsValue` makes of them. A row with the place of each that was done. */
export function stepsText(name: StepName, { steps }: Pick<TableNames, 'steps'>): string {
  return `select place from ${steps[name].many}($1::text)`
}

/** The value of `stepsText`. */
export function stepsValue(name: StepName, steps: readonly HolderStep[]): string {
  const { takes } = STEPS[name] as StepFunction
  return batchText(
    steps.map(({ id, token, values }, place) => {
      const row: { [name: string]: string | number | null; id: string } = { p: place, id, token }
      for (const [index, [argument]] of takes.entries()) {
        const value = values[index] ?? null
        row[argument] = Buffer.isBuffer(value) ? value.toString('hex') : value
      }
      return row
    }),
  )
}

/**
 * What a batch is about, as a JSON text, since that is a value that every client hands on alike; in the order of the ids, so
 * that two batches never wait for each other in a circle.
 */
export function batchText(rows: readonly { readonly id: string }[]): string {
  return JSON.stringify(rows.toSorted((one, other) => (one.id < other.id ? -1 : 1)))
}

const STEP_NAMES = Object.keys(STEPS) as StepName[]
