import type { Pool } from 'pg'

/** Accounts and transfers in a schema of their own, for tests that count money. */
export interface Money {
  /** Names a table of the schema, for statements. */
  readonly schema: string
  balance(account: string): Promise<number>
  /** The keys of all transfers, in order. */
  transfers(): Promise<readonly string[]>
  drop(): Promise<void>
}

/** Makes two accounts with 100 each. A transfer that is asked to break the rules fails at the statement or the commit. */
export async function someMoney(pool: Pool, schema: string): Promise<Money> {
  await pool.query(`
    create schema ${schema};
    create table ${schema}.accounts (id text primary key, balance int not null check (balance >= 0));
    insert into ${schema}.accounts values ('alice', 100), ('bob', 100);
    create table ${schema}.transfers (
      id serial primary key,
      key text not null,
      payee text not null references ${schema}.accounts deferrable initially deferred,
      amount int not null
    );
  `)
  return {
    schema,
    async balance(account) {
      const { rows } = await pool.query(`select balance from ${schema}.accounts where id = $1`, [account])
      return (rows[0] as { balance: number }).balance
    },
    async transfers() {
      const { rows } = await pool.query(`select key from ${schema}.transfers order by id`)
      return (rows as { key: string }[]).map(({ key }) => key)
    },
    async drop() {
      await pool.query(`drop schema ${schema} cascade`)
    },
  }
}

/** What a transfer's statements go through. */
interface Statements {
  query(text: string, values: unknown[]): Promise<{ readonly rows: unknown[] }>
}

/** Moves an amount from Alice to whoever is paid: three statements, and nothing that makes them one. */
export async function move(
  tx: Statements,
  schema: string,
  {
    key,
    amount = 10,
    payee = 'bob',
  }: { readonly key: string; readonly amount?: number; readonly payee?: string },
): Promise<{ readonly id: number }> {
  await tx.query(`update ${schema}.accounts set balance = balance - $1 where id = 'alice'`, [amount])
  await tx.query(`update ${schema}.accounts set balance = balance + $1 where id = $2`, [amount, payee])
  const { rows } = await tx.query(
    `insert into ${schema}.transfers (key, payee, amount) values ($1, $2, $3) returning id`,
    [key, payee, amount],
  )
  return rows[0] as { id: number }
}
