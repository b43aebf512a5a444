// Checked with the types of a browser and none of Node, by test/tsconfig.browser.json.
import { createFetch, forgetOperation, type RetryingFetch } from 'oncekey/client'

const retrying: RetryingFetch = createFetch({ storage: sessionStorage })
createFetch({ storage: localStorage, fetch: window.fetch })
globalThis.fetch = retrying
const plain: typeof fetch = retrying

const form = new FormData(document.forms[0])
const response: Response = await retrying('/orders', {
  method: 'POST',
  body: form,
  credentials: 'include',
  idempotency: { operation: 'checkout-42' },
})
await plain(new Request('/orders'), { signal: AbortSignal.timeout(1000) })
await forgetOperation(sessionStorage, 'checkout-42')
await response.json()

// @ts-expect-error there is no Node here
process.exit()
