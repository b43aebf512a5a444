import { createFetch, forgetOperation } from '/oncekey/client/create-fetch.js'
import type { Press } from './press.js'

/** How patient a page is, in milliseconds. */
export interface Patience {
  /** How long an attempt may take. */
  readonly timeoutMs: number
  /** About how long it waits before the next one. */
  readonly waitMs: number
}

const RETRIES = 5

/**
 * Pays as a page should: the key is stored under the name of the press before anything is sent, so that all attempts,
 * second clicks and reloads are one operation.
 *
 * @param key of an operation that is over, and whose key is not stored any more.
 */
export function payWithKey(
  press: Press,
  wire: typeof fetch,
  patience: Patience,
  key?: string,
): Promise<Response> {
  const retrying = createFetch({
    storage: sessionStorage,
    retries: RETRIES,
    timeout: patience.timeoutMs,
    backoff: { base: patience.waitMs, max: 2 * patience.waitMs },
    fetch: wire,
  })
  return retrying('/transfers', {
    ...orderOf(press),
    idempotency: key === undefined ? { operation: press.id } : { key },
  })
}

/** Pays as pages often do: asks again until there is an answer. */
export async function payWithoutKey(press: Press, wire: typeof fetch, patience: Patience): Promise<Response> {
  for (let failures = 0; ; ) {
    try {
      const signal = AbortSignal.timeout(patience.timeoutMs)
      return await wire('/unprotected/transfers', { ...orderOf(press), signal })
    } catch (error) {
      failures += 1
      if (failures > RETRIES) throw error
    }
    await new Promise((resolve) => setTimeout(resolve, patience.waitMs))
  }
}

/** Lets a payment go whose end nobody knows. Only a visitor may decide that. */
export function giveUp(press: Press): Promise<void> {
  return forgetOperation(sessionStorage, press.id)
}

function orderOf({ amount }: Press): RequestInit {
  return {
    method: 'POST',
    headers: { authorization: 'Bearer alice', 'content-type': 'application/json' },
    body: JSON.stringify({ from: 'alice', to: 'bob', amount }),
  }
}
