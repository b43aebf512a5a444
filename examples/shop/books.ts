import { LAMPS } from './inventory.js'
import type { Receipt } from './orders.js'

/** An effect, and the basket that it was for. */
export interface Entry {
  readonly id: number
  readonly basket: string
}

/** What the services have done, by their own databases. */
export interface Books {
  readonly orders: readonly (Entry & Omit<Receipt, 'order'>)[]
  readonly payments: readonly Entry[]
  readonly reservations: readonly Entry[]
  readonly lampsLeft: number
}

/** What customers were told, by basket. */
export type Receipts = ReadonlyMap<string, Receipt>

/** What is wrong in the books: nothing, where every basket has one order, one payment and one reservation. */
export function faultsIn(books: Books, receipts: Receipts): readonly string[] {
  const faults: string[] = []
  for (const [basket, receipt] of receipts) {
    const [order, ...moreOrders] = books.orders.filter((entry) => entry.basket === basket)
    const [payment, ...morePayments] = books.payments.filter((entry) => entry.basket === basket)
    const [reservation, ...moreReservations] = books.reservations.filter((entry) => entry.basket === basket)
    const surplus = { orders: moreOrders, payments: morePayments, reservations: moreReservations }
    for (const [what, entries] of Object.entries(surplus))
      if (entries.length > 0) faults.push(`${basket}: ${entries.length + 1} ${what}`)
    // The one that there is must be the one that the customer was told of, and that the order names.
    const isTold = order?.id === receipt.order
    const isPaid = payment?.id === receipt.payment && payment.id === order?.payment
    const isReserved = reservation?.id === receipt.reservation && reservation.id === order?.reservation
    if (!isTold || !isPaid || !isReserved) faults.push(`${basket}: not what the customer was told`)
  }
  const { orders, payments, reservations, lampsLeft } = books
  const strangers = [...orders, ...payments, ...reservations].filter(({ basket }) => !receipts.has(basket))
  for (const { basket } of strangers) faults.push(`${basket}: nobody bought it`)
  if (lampsLeft !== LAMPS - receipts.size) faults.push(`${LAMPS - lampsLeft} lamps are gone`)
  return faults
}
