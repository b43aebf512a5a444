import { MessageRejectedError } from 'oncekey'
import { createInbox } from 'oncekey/messages'
import type { PostgresStore } from 'oncekey/postgres'

/** The tables of the recipe. */
export const STOCK_TABLES = `
create table if not exists stock (item text primary key, free int not null check (free >= 0));
create table if not exists reservations (
  id text primary key, item text not null references stock, count int not null, is_released boolean not null
);
`

/** What happened to an order, as its events tell it. */
export interface OrderEvent {
  /** Of the event: another for each, and the same in each delivery. */
  readonly id: string
  readonly type: 'placed' | 'cancelled'
  readonly order: string
  readonly item: string
  readonly count: number
}

/** Reserves the goods of orders, and puts them back: each event once, however often and in whatever order they come. */
export function createStockKeeper(store: PostgresStore) {
  const inbox = createInbox({ store, consumer: 'stock' })

  async function handle({ id, type, order, item, count }: OrderEvent): Promise<string> {
    return inbox.processOnce({ source: 'orders', key: id }, async ({ tx }) => {
      if (type === 'cancelled') {
        // Where it comes before the order was placed, it leaves a note: nothing will be reserved then.
        const { rows } = await tx.query(
          `insert into reservations values ($1, $2, $3, true)
           on conflict (id) do update set is_released = true where not reservations.is_released
           returning xmax <> 0 as was_reserved`,
          [order, item, count],
        )
        if (rows[0]?.was_reserved)
          await tx.query('update stock set free = free + $2 where item = $1', [item, count])
        return
      }
      const { rows } = await tx.query(
        'insert into reservations values ($1, $2, $3, false) on conflict do nothing returning id',
        [order, item, count],
      )
      if (rows.length === 0) return
      const taken = await tx.query(
        'update stock set free = free - $2 where item = $1 and free >= $2 returning item',
        [item, count],
      )
      // No attempt will succeed: the message is dead at once, everything is rolled back, and people are told.
      if (taken.rows.length === 0) throw new MessageRejectedError(`there is too little ${item} for ${order}`)
    })
  }

  return { handle, inbox }
}
