import {
  type ClientRequest,
  Agent as HttpAgent,
  type IncomingMessage,
  request as requestHttp,
} from 'node:http'
import { Agent as HttpsAgent, request as requestHttps } from 'node:https'

/** A request as it is sent: header lines one by one, so that one may be sent twice. */
export interface WireRequest {
  readonly url: URL
  readonly method: string
  readonly headers: readonly (readonly [name: string, value: string])[]
  readonly body: Buffer
  readonly timeoutMs: number
  /** Asks the server to keep the connection. It is closed all the same once the answer is read. */
  readonly keepAlive?: boolean
}

/** What a server answered. */
export interface HttpAnswer {
  readonly status: number
  /** The values of every header, by its name in lower case. */
  readonly headers: Readonly<Record<string, readonly string[] | undefined>>
  readonly body: Buffer
}

/** A request under way. */
export interface SentRequest {
  /** Resolves when all of it has been handed to the network. */
  readonly sent: Promise<void>
  /** Rejects with a `NoAnswerError` where none came. */
  readonly answer: Promise<HttpAnswer>
  /** Closes the connection, as a client does that has lost its patience. */
  cut(): void
}

/** No answer came: the connection broke, was refused, or was silent for too long. */
export class NoAnswerError extends Error {
  override readonly name = 'NoAnswerError'
}

/** Sends a request over a connection of its own. */
export function sendRequest(wire: WireRequest): SentRequest {
  const { url, method, headers, body, timeoutMs, keepAlive = false } = wire
  const secure = url.protocol === 'https:'
  const agent = new (secure ? HttpsAgent : HttpAgent)({ keepAlive })
  const lines: Record<string, string | string[]> = {}
  for (const [name, value] of headers) {
    const earlier = lines[name]
    lines[name] = earlier === undefined ? value : [earlier, value].flat()
  }
  const request = (secure ? requestHttps : requestHttp)(url, { method, headers: lines, agent })
  const timer = setTimeout(() => request.destroy(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs)
  const answer = answerTo(request).finally(() => {
    clearTimeout(timer)
    agent.destroy()
  })
  // Whoever cuts a connection does not wait for its answer.
  answer.catch(() => {})
  const sent = new Promise<void>((resolve) => {
    request.once('finish', resolve)
    request.once('close', resolve)
  })
  request.end(body)
  return { sent, answer, cut: () => void request.destroy(new Error('the connection was cut')) }
}

function answerTo(request: ClientRequest): Promise<HttpAnswer> {
  return new Promise((resolve, reject) => {
    const fail = (cause: unknown): void => reject(new NoAnswerError(reasonOf(cause), { cause }))
    request.once('error', fail)
    request.once('response', (response: IncomingMessage) => {
      const chunks: Buffer[] = []
      response.on('data', (chunk: Buffer) => chunks.push(chunk))
      response.once('error', fail)
      response.once('end', () =>
        resolve({
          status: response.statusCode ?? 0,
          headers: response.headersDistinct,
          body: Buffer.concat(chunks),
        }),
      )
    })
  })
}

/** Node says only `AggregateError` of a host with two addresses that both refuse. */
function reasonOf(cause: unknown): string {
  if (cause instanceof AggregateError) return cause.errors.map(reasonOf).join('; ')
  return cause instanceof Error ? cause.message : String(cause)
}
