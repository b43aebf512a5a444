import { idempotency, type Once, type WebOptions, type WebPolicyOptions } from '../../src/adapters/web.js'
import { memoryStore } from '../../src/stores/memory.js'
import type { Answered } from './fastify-app.js'

/** What a test sends: a POST of JSON, where it says nothing else. */
export interface Sent {
  readonly key?: string | undefined
  readonly method?: string
  readonly url?: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: BodyInit | null
}

type BodyInit = NonNullable<ConstructorParameters<typeof Response>[0]>

/** A wrapped handler under test. */
export interface TestHandler {
  readonly once: Once
  /** Calls the handler with a new request, and gives what it was answered with. */
  send(given?: Sent): Promise<Answered>
}

/** A log that nobody reads. */
export const silent = { warn: () => {}, error: () => {} }

/** Wraps a handler as an application would, with the options of a registration and of its own. */
export function aHandler(
  handler: (request: Request) => Response | Promise<Response>,
  options: Partial<WebOptions> = {},
  own?: WebPolicyOptions,
): TestHandler {
  const once = idempotency({
    store: memoryStore(),
    scope: (request) => request.headers.get('x-tenant') ?? 'acme',
    log: silent,
    ...options,
  })
  const wrapped = once(handler, own)
  return { once, send: async (given) => answered(await wrapped(aRequest(given))) }
}

/** A request as a client sends it. */
export function aRequest(given: Sent = {}): Request {
  const { key, method = 'POST', url = 'http://localhost/payments', headers, body = '{"amount":5}' } = given
  return new Request(url, {
    method,
    headers: {
      'content-type': 'application/json',
      ...(key !== undefined && { 'idempotency-key': key }),
      ...headers,
    },
    ...(body !== null && method !== 'GET' && { body, duplex: 'half' }),
  })
}

/** What a response says, whole. */
export async function answered(response: Response): Promise<Answered> {
  const bytes = Buffer.from(await response.arrayBuffer())
  const headers = Object.fromEntries(response.headers)
  const isProblem = headers['content-type']?.startsWith('application/problem+json') === true
  return {
    status: response.status,
    headers,
    bytes,
    isReplay: headers['idempotent-replayed'] === 'true',
    code: isProblem ? (JSON.parse(bytes.toString()) as { code: string }).code : undefined,
  }
}
