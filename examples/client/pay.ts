import { createFetch } from 'oncekey/client'

const fetch = createFetch()

/** Pays once, however often the network makes us ask. */
export async function pay(url: string, amount: number): Promise<unknown> {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ amount }),
  })
  return response.json()
}
