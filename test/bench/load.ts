import { connect, type Socket } from 'node:net'

/** What is sent, and for how long. */
export interface LoadOptions {
  readonly connections: number
  readonly seconds: number
  /** The key and the body of each request, by its number. */
  readonly request: (sent: number) => { readonly key: string; readonly body: string }
  /** Whether an answer with this status is one that the load expects. @default 2xx only */
  readonly expects?: (status: number) => boolean
}

/** What came back. */
export interface LoadResult {
  readonly answers: number
  readonly seconds: number
  /** Of single requests, in milliseconds. */
  readonly p50: number
  readonly p99: number
}

/**
 * Sends POST requests over connections that stay open, the next one when the last was answered, by plain sockets: what a
 * general client does beside that would be most of what is measured.
 *
 * @throws when an answer is not expected, or a connection breaks.
 */
export async function applyLoad(url: string, options: LoadOptions): Promise<LoadResult> {
  const { connections, seconds, request, expects = isSuccess } = options
  const { hostname, port } = new URL(url)
  const latencies: number[] = []
  let sent = 0
  let isOver = false
  let failure: Error | undefined
  const sockets: Socket[] = []

  const closed = Array.from({ length: connections }, () => {
    const socket = connect(Number(port), hostname)
    socket.setNoDelay(true)
    sockets.push(socket)
    const answers = new AnswerReader()
    let sentAt = 0
    const send = (): void => {
      const { key, body } = request(sent)
      sent += 1
      sentAt = performance.now()
      socket.write(
        `POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nIdempotency-Key: ${key}\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
      )
    }
    socket.once('connect', send)
    socket.on('data', (bytes) => {
      const status = answers.read(bytes)
      if (status === undefined) return
      latencies.push(performance.now() - sentAt)
      if (!expects(status)) failure ??= new Error(`An answer had status ${status}`)
      if (isOver || failure !== undefined) socket.destroy()
      else send()
    })
    return new Promise<void>((resolve) => {
      socket.once('error', (error) => {
        if (!isOver) failure ??= error
      })
      socket.once('close', () => resolve())
    })
  })

  const startedAt = performance.now()
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000))
  const measured = { answers: latencies.length, seconds: (performance.now() - startedAt) / 1000 }
  isOver = true
  // An answer that is still on its way is waited for, so that the next load meets an idle server.
  const patience = setTimeout(() => {
    for (const socket of sockets) socket.destroy()
  }, 5000)
  await Promise.all(closed)
  clearTimeout(patience)
  if (failure !== undefined) throw failure
  latencies.length = measured.answers
  latencies.sort((a, b) => a - b)
  const at = (share: number): number => latencies[Math.floor(latencies.length * share)] ?? Number.NaN
  return { ...measured, p50: at(0.5), p99: at(0.99) }
}

function isSuccess(status: number): boolean {
  return status >= 200 && status < 300
}

/** Finds the end of an answer with a `Content-Length`, however it is cut. */
class AnswerReader {
  #head = ''
  #bodyLeft = -1
  #status = 0

  /** @returns the status of the answer that ends with these bytes. */
  read(bytes: Buffer): number | undefined {
    let rest = bytes
    if (this.#bodyLeft < 0) {
      const text = this.#head + bytes.toString('latin1', 0, 4096)
      const end = text.indexOf('\r\n\r\n')
      if (end < 0) {
        this.#head = text
        return undefined
      }
      this.#status = Number(text.slice(9, 12))
      const length = /\r\ncontent-length: (\d+)/i.exec(text.slice(0, end + 2))
      if (length === null) throw new Error(`An answer says nothing of its length: ${text.slice(0, end)}`)
      this.#bodyLeft = Number(length[1])
      rest = bytes.subarray(end + 4 - this.#head.length)
      this.#head = ''
    }
    this.#bodyLeft -= rest.length
    if (this.#bodyLeft > 0) return undefined
    this.#bodyLeft = -1
    return this.#status
  }
}
