/** Headers as a framework reports them before they are sent. */
export type AnswerHeaders = Readonly<Record<string, string | number | readonly string[] | undefined>>

/** Headers of an answer: name in lower case, and its value or values. */
export type HeaderList = readonly (readonly [name: string, value: string | readonly string[]])[]

/** Which headers of an answer are kept for its retries, beyond the usual ones. */
export interface HeaderRules {
  /** Not kept, although they usually are. */
  readonly drop?: readonly string[]
  /** Kept, although they usually are not. */
  readonly keep?: readonly string[]
}

/**
 * What belongs to one exchange and not to the answer: hop-by-hop fields (RFC 9110, section 7.6.1), the message's own
 * length and date, cookies, CORS, rate limits, timing, and names that tracing and logging give to a request.
 */
const NOT_KEPT = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authentication-info',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  'content-length',
  'date',
  'set-cookie',
  'server-timing',
  'x-response-time',
  'request-id',
  'x-request-id',
  'x-correlation-id',
  'traceparent',
  'tracestate',
  'baggage',
  'b3',
  'x-amzn-trace-id',
  'x-cloud-trace-context',
  'idempotent-replayed',
])
const NOT_KEPT_PREFIXES = ['access-control-', 'ratelimit', 'x-ratelimit', 'x-b3-']

/** Chooses the headers that are kept. */
export type HeaderFilter = (headers: AnswerHeaders) => HeaderList

/** Makes the filter of one route. */
export function createHeaderFilter(rules: HeaderRules = {}): HeaderFilter {
  const drop = new Set(rules.drop?.map((name) => name.toLowerCase()))
  const keep = new Set(rules.keep?.map((name) => name.toLowerCase()))

  function isKept(name: string): boolean {
    if (keep.has(name)) return true
    return !drop.has(name) && !isExchangeHeader(name)
  }

  /** What each name that was seen is kept as; `undefined` for one that is not kept. */
  const keptAs = new Map<string, string | undefined>()

  function nameKeptFor(given: string): string | undefined {
    if (keptAs.has(given)) return keptAs.get(given)
    const name = given.toLowerCase()
    const kept = isKept(name) ? name : undefined
    // An application has few header names. One that makes them up must not fill the memory.
    if (keptAs.size < REMEMBERED_NAMES) keptAs.set(given, kept)
    return kept
  }

  /** The list that was made last: answers of one route differ in their bodies, mostly. */
  let last: HeaderList = []

  function areAsLast(headers: AnswerHeaders): boolean {
    let index = 0
    for (const given in headers) {
      const value = headers[given]
      const name = value === undefined ? undefined : nameKeptFor(given)
      if (name === undefined) continue
      const known = last[index]
      if (known === undefined || known[0] !== name || known[1] !== value) return false
      index += 1
    }
    return index === last.length
  }

  return (headers) => {
    const hopByHop = headers.connection === undefined ? undefined : namesIn(headers.connection)
    if (hopByHop === undefined && areAsLast(headers)) return last
    const kept: [string, string | string[]][] = []
    for (const given in headers) {
      const value = headers[given]
      const name = value === undefined ? undefined : nameKeptFor(given)
      if (name === undefined || hopByHop?.includes(name)) continue
      kept.push([name, Array.isArray(value) ? value.map(String) : String(value)])
    }
    // A list of values belongs to one answer: it may be changed by whoever sends it.
    if (kept.every(([, value]) => typeof value === 'string')) last = kept
    return kept
  }
}

const REMEMBERED_NAMES = 500

function isExchangeHeader(name: string): boolean {
  return NOT_KEPT.has(name) || NOT_KEPT_PREFIXES.some((prefix) => name.startsWith(prefix))
}

/** The header names that a `Connection` field lists: they belong to this connection only. */
function namesIn(connection: AnswerHeaders[string]): readonly string[] {
  return String(connection)
    .split(',')
    .map((name) => name.trim().toLowerCase())
}
