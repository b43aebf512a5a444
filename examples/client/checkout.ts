import { CallError, createFetch, type ItemStorage } from 'oncekey/client'

// A browser has it, and its types say so.
declare const sessionStorage: ItemStorage

const fetch = createFetch({ storage: sessionStorage })

/** What to show after a click on "Pay": a second click, or one after a reload, does not pay again. */
export async function checkOut(url: string, cart: { readonly id: string; readonly total: number }) {
  try {
    const response = await fetch(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(cart),
      idempotency: { operation: `checkout-${cart.id}` },
    })
    return response.ok ? 'Paid' : 'Not paid: change something, and try again'
  } catch (error) {
    if (!(error instanceof CallError)) throw error
    return error.retryable ? 'No answer yet: try again' : 'Call us before you try again'
  }
}
