import { PGlite } from '@electric-sql/pglite'

/** Money moved from one account to another. */
export interface Transfer {
  readonly id: number
  readonly from: string
  readonly to: string
  /** In cents. */
  readonly amount: number
}

/** A transfer as the ledger tells of it. */
export interface LedgerEntry extends Transfer {
  /** When it was made, in milliseconds since the epoch. */
  readonly at: number
  /** What its sender calls it. Of no meaning to the bank. */
  readonly reference: string
}

/** What somebody has. */
export interface Account {
  readonly id: string
  /** In cents. */
  readonly balance: number
}

/** Why money did not move. */
export type Refusal = 'no such account' | 'insufficient funds'

/** Where the money is. */
export interface Ledger {
  accounts(): Promise<readonly Account[]>
  /** The last transfers, the newest first. */
  transfers(most: number): Promise<readonly LedgerEntry[]>
  /** Moves money in one transaction, or says why not. Calling it twice moves it twice. */
  transfer(order: Omit<Transfer, 'id'>, reference?: string): Promise<Transfer | Refusal>
  /** For the demo only: forgets all transfers, and gives everybody 100.00 again. */
  startOver(): Promise<void>
  close(): Promise<void>
}

/** Opens a ledger in a Postgres that is embedded in this process, with two accounts of 100.00 each. */
export async function openLedger(): Promise<Ledger> {
  const db = await PGlite.create()
  await db.exec(`
    create table accounts (id text primary key, balance bigint not null check (balance >= 0));
    create table transfers (
      id serial primary key,
      from_account text not null references accounts,
      to_account text not null references accounts,
      amount bigint not null check (amount > 0),
      reference text not null,
      made_at timestamptz not null default now()
    );
    insert into accounts values ('alice', 10000), ('bob', 10000);
  `)
  return {
    async accounts() {
      const { rows } = await db.query<Account>('select id, balance::int as balance from accounts order by id')
      return rows
    },

    async transfers(most) {
      const { rows } = await db.query<LedgerEntry>(
        `select id, from_account as from, to_account as to, amount::int as amount, reference,
           (extract(epoch from made_at) * 1000)::float8 as at
         from transfers order by id desc limit $1`,
        [most],
      )
      return rows
    },

    transfer: ({ from, to, amount }, reference = '') =>
      db.transaction(async (tx): Promise<Transfer | Refusal> => {
        const known = await tx.query('select from accounts where id in ($1, $2)', [from, to])
        if (known.rows.length !== 2) return 'no such account'
        const taken = await tx.query(
          'update accounts set balance = balance - $2 where id = $1 and balance >= $2 returning id',
          [from, amount],
        )
        if (taken.rows.length === 0) return 'insufficient funds'
        await tx.query('update accounts set balance = balance + $2 where id = $1', [to, amount])
        const made = await tx.query<{ id: number }>(
          'insert into transfers (from_account, to_account, amount, reference) values ($1, $2, $3, $4) returning id',
          [from, to, amount, reference],
        )
        return { id: made.rows[0]?.id ?? 0, from, to, amount }
      }),

    async startOver() {
      await db.exec('delete from transfers; update accounts set balance = 10000')
    },

    close: () => db.close(),
  }
}
