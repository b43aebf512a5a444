import type { OutgoingHttpHeader, OutgoingHttpHeaders, ServerResponse } from 'node:http'
import type { CapturedAnswer } from './exchange.js'
import type { GivenAnswer } from './given-answer.js'

type Callback = (error?: Error | null) => void

/**
 * Holds back what is written to `res` until `end` has told that the answer is kept, then lets it go: headers, body and
 * all. An answer that grows past `maxBodyBytes`, that flushes its headers, or that is a stream of events is meant to be
 * read while it grows: it goes on as it is written, once its tombstone is kept.
 */
export function captureRaw(
  res: ServerResponse,
  options: {
    readonly maxBodyBytes: number
    readonly end: (captured: CapturedAnswer) => Promise<GivenAnswer | undefined>
  },
): void {
  const write = res.write.bind(res)
  const end = res.end.bind(res)
  const flushHeaders = res.flushHeaders.bind(res)
  let mode: 'holding' | 'telling' | 'passing' = 'holding'
  let held: Buffer[] = []
  let heldBytes = 0
  let hasEnded = false
  let owesDrain = false

  function captured(body: CapturedAnswer['body']): CapturedAnswer {
    return { status: res.statusCode, headers: res.getHeaders(), body, isText: false }
  }

  function tell(answer: CapturedAnswer): void {
    mode = 'telling'
    options.end(answer).then(letGo, (error: Error) => res.destroy(error))
  }

  function letGo(given: GivenAnswer | undefined): void {
    restore()
    if (given !== undefined) {
      replaceBy(given)
      return
    }
    const body = Buffer.concat(held)
    held = []
    if (hasEnded) {
      if (body.byteLength > 0) end(body)
      else end()
      return
    }
    flushHeaders()
    if (body.byteLength > 0) write(body)
    if (owesDrain) res.emit('drain')
  }

  function restore(): void {
    mode = 'passing'
    for (const name of ['writeHead', 'write', 'end', 'flushHeaders'] as const)
      Reflect.deleteProperty(res, name)
  }

  function replaceBy(given: GivenAnswer): void {
    for (const name of res.getHeaderNames()) res.removeHeader(name)
    res.statusCode = given.status
    for (const [name, value] of given.headers) res.setHeader(name, value)
    // What the handler still writes belongs to an answer that nobody gets.
    res.write = () => true
    res.end = () => res
    if (given.body === undefined) end()
    else end(given.body)
  }

  function hold(chunk: unknown, encoding: BufferEncoding | undefined): void {
    if (chunk === undefined || chunk === null) return
    const bytes = typeof chunk === 'string' ? Buffer.from(chunk, encoding) : Buffer.from(chunk as Uint8Array)
    held.push(bytes)
    heldBytes += bytes.byteLength
    const isEvents = String(res.getHeader('content-type')).startsWith('text/event-stream')
    if (mode === 'holding' && (heldBytes > options.maxBodyBytes || isEvents)) tell(captured('too-long'))
  }

  function heldWriteHead(status: number, ...rest: unknown[]): ServerResponse {
    res.statusCode = status
    if (typeof rest[0] === 'string') res.statusMessage = rest[0]
    const headers = rest.at(-1)
    if (typeof headers === 'object' && headers !== null)
      setHeaders(res, headers as OutgoingHttpHeaders | OutgoingHttpHeader[])
    return res
  }

  function heldWrite(chunk: unknown, encoding?: BufferEncoding | Callback, callback?: Callback): boolean {
    const [named, done] = typeof encoding === 'function' ? [undefined, encoding] : [encoding, callback]
    hold(chunk, named)
    // Told at once: a writer that waits for this before it goes on would wait for ever.
    if (done !== undefined) process.nextTick(done)
    owesDrain ||= mode === 'telling'
    return mode === 'holding'
  }

  function heldEnd(chunk?: unknown, encoding?: unknown, callback?: unknown): ServerResponse {
    if (hasEnded) return res
    const done = [chunk, encoding, callback].find((argument) => typeof argument === 'function')
    if (done !== undefined) res.once('finish', done as () => void)
    hasEnded = true
    if (typeof chunk !== 'function')
      hold(chunk, typeof encoding === 'string' ? (encoding as BufferEncoding) : undefined)
    if (mode === 'holding') tell(captured(heldBytes > 0 ? Buffer.concat(held) : undefined))
    return res
  }

  function heldFlushHeaders(): void {
    if (mode === 'holding') tell(captured('too-long'))
  }

  Object.assign(res, {
    writeHead: heldWriteHead,
    write: heldWrite,
    end: heldEnd,
    flushHeaders: heldFlushHeaders,
  })
}

function setHeaders(res: ServerResponse, headers: OutgoingHttpHeaders | readonly OutgoingHttpHeader[]): void {
  if (!Array.isArray(headers)) {
    for (const [name, value] of Object.entries(headers)) if (value !== undefined) res.setHeader(name, value)
    return
  }
  // Node takes a flat list of names and values here, and a list of pairs.
  const flat = headers.flat() as readonly string[]
  for (let index = 0; index + 1 < flat.length; index += 2)
    res.appendHeader(flat[index] as string, flat[index + 1] as string)
}
