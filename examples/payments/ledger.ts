import { PGlite } from '@electric-sql/pglite'

/** Money moved from one account to another. */
export interface Transfer {
  readonly id: number
  readonly from: string
  readonly to: string
  /** In cents. */
  readonly amount: number
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
  /** Moves money in one transaction, or says why not. Calling it twice moves it twice. */
  transfer(order: Omit<Transfer, 'id'>): Promise<Transfer | Refusal>
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
      amount bigint not null check (amount > 0)
    );
    insert into accounts values ('alice', 10000), ('bob', 10000);
  `)
  return {
    async accounts() {
      const { rows } = await db.query<Account>('select id, balance::int as balance from accounts order by id')
      return rows
    },

    transfer: ({ from, to, amount }) =>
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
          'insert into transfers (from_account, to_account, amount) values ($1, $2, $3) returning id',
          [from, to, amount],
        )
        return { id: made.rows[0]?.id ?? 0, from, to, amount }
      }),

    close: () => db.close(),
  }
}
