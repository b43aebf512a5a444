import type { Pool } from 'pg'
import { accountOf, MODES, type Mode, movesMoney } from './modes.js'

/** An effect that a key had. */
export interface Effect {
  readonly key: string
  readonly mode: Mode
  readonly fence: number
  readonly server: string
  readonly receipt: string
}

/** Everything that was counted when all was over. */
export interface Counted {
  readonly effects: ReadonlyMap<string, readonly Effect[]>
  /** How often the provider was called for a key, and how often it charged. */
  readonly calls: ReadonlyMap<string, number>
  readonly charges: ReadonlyMap<string, readonly string[]>
  /** What is wrong with the balances of a mode. */
  readonly imbalances: ReadonlyMap<Mode, readonly string[]>
}

const OPENING_BALANCE = 1000

/**
 * Makes the commit of a transfer take a while, now and then longer than the servers wait for it, and now and then fail:
 * servers are to be hit while they commit, too.
 */
const SLOW_COMMITS = `
create function hesitate() returns trigger language plpgsql as $$
declare
  luck float8 := random();
begin
  if luck < 0.02 then raise exception 'the commit is refused' using errcode = 'serialization_failure'; end if;
  perform pg_sleep(case when luck < 0.025 then 1.5 when luck < 0.1 then 0.1 * random() else 0.02 * random() end);
  return null;
end $$;
create constraint trigger hesitates after insert on transfers deferrable initially deferred
  for each row execute function hesitate();
`

/** Makes the tables that effects are counted in. Nothing in them keeps an effect from happening twice. */
export async function openLedger(pool: Pool, modes: readonly Mode[]): Promise<void> {
  await pool.query(`
    create table effects (
      key text not null, mode text not null, fence int not null, server text not null, receipt text not null,
      at timestamptz not null default clock_timestamp()
    );
    create table accounts (id text primary key, balance bigint not null check (balance >= 0));
    create table transfers (
      key text not null, mode text not null, fence int not null, server text not null, receipt text not null,
      payer text not null, payee text not null, amount bigint not null,
      at timestamptz not null default clock_timestamp()
    );
    create table charges (
      derived_key text primary key, key text not null, mode text not null,
      id text not null default gen_random_uuid()::text, at timestamptz not null default clock_timestamp()
    );
    create table charge_calls (
      derived_key text not null, key text not null, mode text not null, fence int not null, server text not null,
      at timestamptz not null default clock_timestamp()
    );
  `)
  await pool.query(SLOW_COMMITS)
  for (const mode of modes.filter(movesMoney))
    await pool.query('insert into accounts select unnest($1::text[]), $2', [
      Array.from({ length: MODES[mode].accounts }, (_, index) => accountOf(mode, index)),
      OPENING_BALANCE,
    ])
}

/** Counts what there is, from the database alone. */
export async function count(pool: Pool, modes: readonly Mode[]): Promise<Counted> {
  const effects = await pool.query<Effect>(`
    select key, mode, fence, server, receipt from effects
    union all select key, mode, fence, server, receipt from transfers`)
  const calls = await pool.query<{ key: string; times: number }>(
    'select key, count(*)::int as times from charge_calls group by key',
  )
  const charges = await pool.query<{ key: string; ids: string[] }>(
    'select key, array_agg(id order by at) as ids from charges group by key',
  )
  const imbalances = new Map<Mode, readonly string[]>()
  for (const mode of modes.filter(movesMoney)) imbalances.set(mode, await imbalancesOf(pool, mode))
  return {
    effects: byKey(effects.rows),
    calls: new Map(calls.rows.map(({ key, times }) => [key, times])),
    charges: new Map(charges.rows.map(({ key, ids }) => [key, ids])),
    imbalances,
  }
}

/** Every account must hold what it began with and what its transfers moved, and all together what they began with. */
async function imbalancesOf(pool: Pool, mode: Mode): Promise<readonly string[]> {
  const { rows } = await pool.query<{ id: string; balance: number; due: number }>(
    `select a.id, a.balance::float8 as balance,
      ($2::bigint
        + coalesce((select sum(amount) from transfers where payee = a.id), 0)
        - coalesce((select sum(amount) from transfers where payer = a.id), 0))::float8 as due
    from accounts a where a.id like $1 || '/%'`,
    [mode, OPENING_BALANCE],
  )
  const wrong = rows
    .filter(({ balance, due }) => balance !== due)
    .map(({ id, balance, due }) => `account ${id} holds ${balance} where its transfers make ${due}`)
  const sum = rows.reduce((total, { balance }) => total + balance, 0)
  const expected = MODES[mode].accounts * OPENING_BALANCE
  return sum === expected ? wrong : [...wrong, `all accounts hold ${sum} where they began with ${expected}`]
}

function byKey(effects: readonly Effect[]): ReadonlyMap<string, readonly Effect[]> {
  const found = new Map<string, Effect[]>()
  for (const effect of effects) {
    const earlier = found.get(effect.key)
    if (earlier === undefined) found.set(effect.key, [effect])
    else earlier.push(effect)
  }
  return found
}
