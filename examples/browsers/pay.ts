import { createFetch } from 'oncekey/client'

const fetch = createFetch()

/** Pays once, from a page of another origin than the bank's. */
export async function pay(bank: string, amount: number): Promise<string> {
  const response = await fetch(`${bank}/payments`, {
    method: 'POST',
    headers: { authorization: 'Bearer ada', 'content-type': 'application/json' },
    body: JSON.stringify({ amount }),
  })
  const { id } = (await response.json()) as { id: string }
  return response.headers.get('idempotent-replayed') === 'true' ? `${id}, and a retry told us so` : id
}
