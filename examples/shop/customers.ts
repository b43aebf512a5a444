import { createFetch } from 'oncekey/client'
import type { Receipt } from './orders.js'
import type { Basket } from './service.js'

// A customer with patience. All attempts for one basket carry one key, which the client makes.
const fetch = createFetch({ retries: 1000, backoff: { base: '50ms', max: '1s' }, deadline: '4m' })

const AT_ONCE = 3

/** Sends customers into a shop, three at a time, and gives what each of them was told in the end. */
export async function sendCustomers(url: string, baskets: readonly string[]): Promise<Map<string, Receipt>> {
  const receipts = new Map<string, Receipt>()
  const waiting = [...baskets]
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      for (let basket = waiting.shift(); basket !== undefined; basket = waiting.shift())
        receipts.set(basket, await buy(url, { basket, item: 'lamp', price: 4900 }))
    }),
  )
  return receipts
}

async function buy(url: string, basket: Basket): Promise<Receipt> {
  const answer = await fetch(`${url}/checkout`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-customer': `customer of ${basket.basket}` },
    body: JSON.stringify(basket),
  })
  if (answer.status !== 201) throw new Error(`${basket.basket}: ${answer.status} ${await answer.text()}`)
  return (await answer.json()) as Receipt
}
