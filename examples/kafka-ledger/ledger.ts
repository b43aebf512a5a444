import type { Pool } from 'pg'

/** A payment, as its event says it. */
export interface Payment {
  readonly from: string
  readonly to: string
  readonly cents: number
}

/** What a client of Postgres and a transaction have in common. */
interface Queries {
  query(text: string, values?: unknown[]): Promise<{ readonly rows: unknown[] }>
}

const ACCOUNTS = Array.from({ length: 50 }, (_, number) => `account-${number + 1}`)

/** Any account. */
export function anAccount(): string {
  return ACCOUNTS[Math.floor(Math.random() * ACCOUNTS.length)] as string
}

/** Makes an empty ledger. Nothing in it keeps an event from being applied twice: that is what is to be seen. */
export async function openLedger(pool: Pool): Promise<void> {
  await pool.query(`
    drop table if exists entries, balances;
    create table balances (account text primary key, cents bigint not null);
    create table entries (event text not null, account text not null, cents bigint not null)`)
  await pool.query('insert into balances select unnest($1::text[]), 0', [ACCOUNTS])
}

/** Applies some payments: two entries each, and the balances. The accounts are locked in one order, whoever comes. */
export async function applyPayments(
  tx: Queries,
  payments: readonly { readonly event: string; readonly payment: Payment }[],
): Promise<void> {
  const entries = payments.flatMap(({ event, payment: { from, to, cents } }) => [
    { event, account: from, cents: -cents },
    { event, account: to, cents },
  ])
  await tx.query(
    `with added as (
       insert into entries select * from json_to_recordset($1::json) as e(event text, account text, cents bigint)
       returning account, cents
     ), locked as materialized (
       select b.account, b.cents from balances b
       where b.account in (select account from added) order by b.account for update
     )
     update balances b set cents = locked.cents + (select sum(a.cents) from added a where a.account = b.account)
     from locked where b.account = locked.account`,
    [JSON.stringify(entries)],
  )
}

/** What the ledger says. */
export interface LedgerCount {
  /** How many events have an effect. */
  readonly applied: number
  /** How many of them have more than one. */
  readonly appliedTwice: number
  /** Whether every balance is the sum of its entries, and no money was made or lost. */
  readonly isBalanced: boolean
}

/** Counts effects against events. */
export async function countLedger(pool: Pool): Promise<LedgerCount> {
  const { rows } = await pool.query(`
    with effects as (select event, count(*) as entries from entries group by event),
    sums as (select account, sum(cents) as cents from entries group by account)
    select
      (select count(*)::int from effects) as applied,
      (select count(*)::int from effects where entries > 2) as twice,
      (select coalesce(sum(cents), 0)::int from balances) as total,
      (select count(*)::int from balances b left join sums s using (account) where b.cents <> coalesce(s.cents, 0)) as wrong`)
  const { applied, twice, total, wrong } = rows[0] as {
    applied: number
    twice: number
    total: number
    wrong: number
  }
  return { applied, appliedTwice: twice, isBalanced: total === 0 && wrong === 0 }
}
