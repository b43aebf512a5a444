import { Readable } from 'node:stream'

/** What reading a stream up to a limit gave: all of it, or the same bytes as a stream that goes on. */
export type ReadBody =
  | { readonly complete: true; readonly bytes: Buffer }
  | { readonly complete: false; readonly stream: Readable }

/** Reads a stream of bytes or text until it ends or has given more than `maxBytes`. Rejects when the stream fails. */
export async function readBody(source: Readable, maxBytes: number): Promise<ReadBody> {
  const chunks: Buffer[] = []
  let size = 0
  const iterator = source[Symbol.asyncIterator]() as AsyncIterator<Buffer | Uint8Array | string>
  for (;;) {
    const next = await iterator.next()
    if (next.done === true) return { complete: true, bytes: Buffer.concat(chunks) }
    const chunk = typeof next.value === 'string' ? Buffer.from(next.value) : Buffer.from(next.value)
    chunks.push(chunk)
    size += chunk.byteLength
    if (size > maxBytes) return { complete: false, stream: Readable.from(continued(chunks, iterator)) }
  }
}

async function* continued(
  read: readonly Buffer[],
  rest: AsyncIterator<Buffer | Uint8Array | string>,
): AsyncGenerator<Buffer | Uint8Array | string> {
  try {
    yield* read
    for (let next = await rest.next(); next.done !== true; next = await rest.next()) yield next.value
  } finally {
    // A client that leaves early ends the source as well.
    await rest.return?.()
  }
}
