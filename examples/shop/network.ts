import { createServer, type IncomingMessage, request as send } from 'node:http'
import type { AddressInfo } from 'node:net'
import { buffer } from 'node:stream/consumers'

/** One request on its way, and what became of it. */
export interface Passage {
  readonly from: string
  readonly to: string
  readonly basket: string
  readonly key: string
  /** When it was sent, in milliseconds of this process's clock. */
  readonly sentAt: number
  /** `lost`: it was carried out, and its answer went astray. `broken`: the service was gone before it answered. */
  readonly fate: 'answered' | 'lost' | 'broken'
  /** What was answered, whether it arrived or not. */
  readonly status: number | undefined
  readonly isReplay: boolean
}

/** What a wire connects, and what may happen on it. */
export interface WireOptions {
  readonly from: string
  readonly to: string
  /** Where the service listens now. */
  readonly port: () => number
  /** Whether the next answer is lost. */
  readonly losesAnswer: () => boolean
  readonly onPassage: (passage: Passage) => void
}

/** A stretch of network between two services. */
export interface Wire {
  readonly url: string
  close(): Promise<void>
}

/** Opens a wire. It passes requests on, and answers back, or loses them: then the connection breaks. */
export async function openWire({ from, to, port, losesAnswer, onPassage }: WireOptions): Promise<Wire> {
  const server = createServer(async (incoming, outgoing) => {
    const sentAt = performance.now()
    const body = await buffer(incoming)
    const passage = {
      from,
      to,
      basket: (JSON.parse(body.toString()) as { basket: string }).basket,
      key: String(incoming.headers['idempotency-key']),
      sentAt,
    }
    const answer = await passOn(incoming, body, port()).catch(() => undefined)
    const isLost = answer !== undefined && losesAnswer()
    onPassage({
      ...passage,
      fate: answer === undefined ? 'broken' : isLost ? 'lost' : 'answered',
      status: answer?.status,
      isReplay: answer?.headers['idempotent-replayed'] === 'true',
    })
    if (answer === undefined || isLost) incoming.socket.destroy()
    else outgoing.writeHead(answer.status, answer.headers).end(answer.body)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()))
      server.closeAllConnections()
      return closed
    },
  }
}

interface PassedAnswer {
  readonly status: number
  readonly headers: IncomingMessage['headers']
  readonly body: Buffer
}

function passOn(
  { method, url, headers }: IncomingMessage,
  body: Buffer,
  port: number,
): Promise<PassedAnswer> {
  return new Promise((resolve, reject) => {
    const request = send(
      { host: '127.0.0.1', port, method, path: url, headers: { ...headers, connection: 'close' } },
      (answer) => {
        buffer(answer).then(
          (bytes) => resolve({ status: answer.statusCode ?? 0, headers: answer.headers, body: bytes }),
          reject,
        )
      },
    )
    request.once('error', reject)
    request.end(body)
  })
}
