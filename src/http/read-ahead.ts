import type { IncomingMessage } from 'node:http'
import { RequestTooLargeError } from '../contract/errors.js'

/** Whether a request has a body, as its headers say. */
export function hasBody({ headers }: IncomingMessage): boolean {
  return headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0
}

/**
 * Reads a request's body, and puts it back: whoever reads the request afterwards gets all of it. For requests that nobody
 * has begun to read. `undefined` when the client left before its end.
 *
 * @throws {RequestTooLargeError} when it is longer than `maxBytes`.
 */
export function readAhead(request: IncomingMessage, maxBytes: number): Promise<Buffer | undefined> {
  return new Promise((resolve, reject) => {
    // Somebody may have chosen to read text. Whoever reads it afterwards gets text again.
    const { readableEncoding } = request
    const chunks: Buffer[] = []
    let size = 0

    function read(): void {
      // Asked for more than there is, an ended stream would say that it has ended, and then nothing can be put back.
      while (request.readableLength > 0) {
        const piece = request.read() as Buffer | string | null
        if (piece === null) break
        const chunk = typeof piece === 'string' ? Buffer.from(piece, readableEncoding ?? 'utf8') : piece
        chunks.push(chunk)
        size += chunk.byteLength
      }
      if (size > maxBytes) refuse()
      else if (request.complete) giveBack()
    }

    function giveBack(): void {
      stop()
      const body = Buffer.concat(chunks)
      const encoding = readableEncoding ?? undefined
      if (body.byteLength > 0)
        request.unshift(encoding === undefined ? body : body.toString(encoding), encoding)
      resolve(body)
    }

    function refuse(): void {
      stop()
      // The rest is in the way of the connection's next request.
      request.resume()
      reject(new RequestTooLargeError(maxBytes))
    }

    function leave(): void {
      stop()
      resolve(undefined)
    }

    function stop(): void {
      request.off('readable', read).off('error', leave).off('close', leave)
    }

    function start(): void {
      if (request.complete) read()
      else if (request.destroyed) leave()
      else request.on('readable', read).on('error', leave).on('close', leave)
    }

    if (Number(request.headers['content-length']) > maxBytes) reject(new RequestTooLargeError(maxBytes))
    // What came in one piece with its headers is all there then. Listening for more would end an empty body.
    else process.nextTick(start)
  })
}
