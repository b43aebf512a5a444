import { createFetch, deriveFrom, type KeyDeriver } from 'oncekey/client'

const fetch = createFetch({ deadline: '20s' })

/** The part of a handler that asks other services: each of them once for an order, in however many runs. */
export async function placeOrder(
  request: { readonly idempotency: KeyDeriver },
  urls: { readonly payments: string; readonly stock: string },
): Promise<'placed' | 'refused'> {
  const payment = await fetch(urls.payments, {
    method: 'POST',
    idempotency: deriveFrom(request.idempotency, 'payment'),
  })
  if (!payment.ok) return 'refused'
  await fetch(urls.stock, { method: 'POST', idempotency: deriveFrom(request.idempotency, 'reservation') })
  return 'placed'
}
