import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

/** A request as a test server got it. */
export interface ReceivedRequest {
  readonly method: string
  readonly path: string
  readonly headers: IncomingMessage['headers']
  readonly body: Buffer
  /** The idempotency key, as it was sent. */
  readonly key: string | undefined
}

/** A server of a test. */
export interface TestServer {
  readonly url: string
  readonly port: number
  /** What came so far, in its order. */
  readonly requests: readonly ReceivedRequest[]
  close(): Promise<void>
}

/** Answers one request. `number` is 1 for the first. */
export type Answer = (reply: ServerResponse, request: ReceivedRequest, number: number) => unknown

/** Starts a server on a free port that notes each request and answers it with `answer`. */
export async function startServer(answer: Answer): Promise<TestServer> {
  const requests: ReceivedRequest[] = []
  const server = createServer(async (message, reply) => {
    const chunks: Buffer[] = []
    for await (const chunk of message) chunks.push(chunk)
    const key = message.headers['idempotency-key']
    const request: ReceivedRequest = {
      method: message.method ?? '',
      path: message.url ?? '',
      headers: message.headers,
      body: Buffer.concat(chunks),
      key: Array.isArray(key) ? key.join() : key,
    }
    requests.push(request)
    await answer(reply, request, requests.length)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  return {
    url: `http://127.0.0.1:${port}`,
    port,
    requests,
    close() {
      server.closeAllConnections()
      return new Promise((resolve) => server.close(() => resolve()))
    },
  }
}

/** Sends a problem, as our adapters do. */
export function sendProblem(
  reply: ServerResponse,
  problem: { readonly status: number; readonly code: string; readonly [name: string]: unknown },
  headers: Readonly<Record<string, string>> = {},
): void {
  reply.writeHead(problem.status, { 'content-type': 'application/problem+json; charset=utf-8', ...headers })
  reply.end(JSON.stringify(problem))
}
