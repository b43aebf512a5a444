import type { Attempt, Network, Press } from './press.js'

/** How many attempts of one press a trouble befalls. Then the network has mercy. */
const BEFALLS: Readonly<Record<Network, number>> = {
  good: 0,
  offline: Number.POSITIVE_INFINITY,
  'lose-reply': 2,
  slow: 2,
  crash: 1,
}

/**
 * A `fetch` that notes each attempt, and asks the bank for the trouble that the visitor has chosen. That one is real: the
 * bank cuts the connection, or takes its time. Only `offline` is of the page's own making.
 */
export function wireOf(press: Press, network: () => Network, changed: () => void): typeof fetch {
  return async (input, init) => {
    const headers = new Headers(init?.headers)
    const chosen = network()
    const befallen = press.attempts.filter((one) => one.network === chosen).length < BEFALLS[chosen]
    const attempt: Attempt = {
      number: press.attempts.length + 1,
      sentAt: Date.now(),
      path: String(input),
      key: headers.get('idempotency-key'),
      network: befallen ? chosen : 'good',
    }
    press.attempts.push(attempt)
    changed()
    const end = (ended: Omit<NonNullable<Attempt['ended']>, 'at'>): void => {
      attempt.ended = { at: Date.now(), ...ended }
      changed()
    }

    if (attempt.network === 'offline') {
      end({ how: 'offline' })
      throw new TypeError('The visitor has chosen to be offline')
    }
    headers.set('x-demo-attempt', `${press.id}/${attempt.number}`)
    if (attempt.network !== 'good') headers.set('x-demo-trouble', attempt.network)
    try {
      const response = await fetch(input, { ...init, headers })
      const text = await response.clone().text()
      const code = /"code":"(\w+)"/.exec(text)?.[1]
      end({
        how: 'answered',
        status: response.status,
        replayed: response.headers.get('idempotent-replayed') === 'true',
        ...(code !== undefined && { code }),
      })
      return response
    } catch (error) {
      end({ how: init?.signal?.aborted ? 'given-up' : navigator.onLine ? 'lost' : 'offline' })
      throw error
    }
  }
}
