// Taken at once: a test may put a page's in its place.
const send = globalThis.fetch

/** A page's `fetch` refused, as browsers do it: with no word about why. */
class BlockedError extends TypeError {}

/** What every page may read of another origin's answer (Fetch standard, CORS-safelisted response-header names). */
const READABLE = [
  'cache-control',
  'content-language',
  'content-length',
  'content-type',
  'expires',
  'last-modified',
  'pragma',
]
/** What every page may send to another origin without asking. */
const SENDABLE = ['accept', 'accept-language', 'content-language']
const SENDABLE_TYPES = ['application/x-www-form-urlencoded', 'multipart/form-data', 'text/plain']

/** A page of an origin, with what it did on the network. */
export interface Page {
  readonly fetch: typeof fetch
  readonly preflights: readonly Response[]
  /** How many requests of the page itself were sent. */
  readonly sent: number
}

/**
 * A page of another origin, as the Fetch standard has it: it asks before it sends what is out of the ordinary, and sees
 * no answer, nor header of one, that it was not allowed to see. Real requests on a real connection.
 */
export function aPageOf(origin: string): Page {
  const preflights: Response[] = []
  const page = { sent: 0, preflights, fetch: fetchFromPage }
  return page

  async function fetchFromPage(input: string | URL | Request, init?: RequestInit): Promise<Response> {
    const request = new Request(input, init)
    const names = [...request.headers.keys()].filter((name) => !isSendable(name, request.headers))
    if (names.length > 0 || !['GET', 'HEAD', 'POST'].includes(request.method)) await preflight(request, names)
    page.sent += 1
    request.headers.set('origin', origin)
    const answer = await send(request)
    assertAllowed(answer)
    const exposed = listed(answer, 'access-control-expose-headers')
    const headers = [...answer.headers].filter(([name]) => READABLE.includes(name) || exposed.includes(name))
    return new Response(answer.body, { status: answer.status, headers })
  }

  async function preflight({ url, method }: Request, names: readonly string[]): Promise<void> {
    const answer = await send(url, {
      method: 'OPTIONS',
      headers: {
        origin,
        'access-control-request-method': method,
        'access-control-request-headers': names.join(','),
      },
    })
    preflights.push(answer)
    assertAllowed(answer)
    if (!answer.ok) throw new BlockedError('Failed to fetch')
    const methods = listed(answer, 'access-control-allow-methods')
    const allowed = listed(answer, 'access-control-allow-headers')
    const isMethodAllowed = methods.includes(method.toLowerCase()) || ['GET', 'HEAD', 'POST'].includes(method)
    if (!isMethodAllowed || names.some((name) => !allowed.includes(name)))
      throw new BlockedError('Failed to fetch')
  }

  function assertAllowed({ headers }: Response): void {
    const allowed = headers.get('access-control-allow-origin')
    if (allowed !== origin && allowed !== '*') throw new BlockedError('Failed to fetch')
  }
}

function isSendable(name: string, headers: Headers): boolean {
  if (name === 'content-type')
    return SENDABLE_TYPES.includes(headers.get(name)?.split(';')[0]?.trim().toLowerCase() ?? '')
  return SENDABLE.includes(name)
}

function listed({ headers }: Response, name: string): readonly string[] {
  const value = headers.get(name) ?? ''
  return value.split(',').map((one) => one.trim().toLowerCase())
}
