import { Agent, request as httpRequest } from 'node:http'

/** What a request was answered with, as it came over the wire: nothing is decompressed, followed or joined. */
export interface RawAnswer {
  readonly status: number
  readonly message: string
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly bytes: Buffer
  readonly isReplay: boolean
  /** The problem's code, where the answer is one. */
  readonly code: string | undefined
}

/** A request of a test. */
export interface RawRequest {
  readonly method?: string
  readonly key?: string | undefined
  readonly headers?: Readonly<Record<string, string>>
  /** Bytes and text as they are, anything else as JSON. */
  readonly body?: unknown
  readonly agent?: Agent
  /** Whether the body's length is said beforehand. */
  readonly saysLength?: boolean
}

/** Sends one request through Node's own client. Rejects when the connection ends before the answer does. */
export function rawRequest(url: string, given: RawRequest = {}): Promise<RawAnswer> {
  const {
    method = 'POST',
    key,
    headers = {},
    body = { amount: 5 },
    agent = new Agent(),
    saysLength = true,
  } = given
  const hasBody = method !== 'GET' && method !== 'HEAD' && body !== null
  const isPlain = typeof body === 'string' || body instanceof Uint8Array
  const payload = isPlain ? body : JSON.stringify(body)
  return new Promise((resolve, reject) => {
    const sent = httpRequest(url, {
      method,
      agent,
      headers: {
        ...(key !== undefined && { 'idempotency-key': key }),
        ...(hasBody && { 'content-type': 'application/json' }),
        ...(hasBody && saysLength && { 'content-length': String(Buffer.byteLength(payload)) }),
        ...(hasBody && !saysLength && { 'transfer-encoding': 'chunked' }),
        ...headers,
      },
    })
    sent.once('error', reject)
    sent.once('response', (answer) => {
      const chunks: Buffer[] = []
      answer.on('data', (chunk: Buffer) => chunks.push(chunk))
      answer.once('error', reject)
      answer.once('end', () => {
        const bytes = Buffer.concat(chunks)
        const isProblem = String(answer.headers['content-type']).startsWith('application/problem+json')
        resolve({
          status: answer.statusCode ?? 0,
          message: answer.statusMessage ?? '',
          headers: answer.headers,
          bytes,
          isReplay: answer.headers['idempotent-replayed'] === 'true',
          code: isProblem ? (JSON.parse(bytes.toString()) as { code?: string }).code : undefined,
        })
      })
    })
    sent.end(hasBody ? payload : undefined)
  })
}

/** The headers that an answer has in common with its replays: all but those of the exchange. */
export function keptHeaders({ headers }: RawAnswer): Readonly<Record<string, unknown>> {
  const {
    date: _,
    connection: __,
    'keep-alive': ___,
    'content-length': ____,
    'transfer-encoding': _____,
    'idempotent-replayed': ______,
    ...kept
  } = headers
  return kept
}
