import { createServer } from 'node:http'

/** A service that others call with an `Idempotency-Key`. */
export interface Downstream {
  readonly url: string
  /** The keys that it was called with, in order. */
  readonly keys: readonly string[]
  close(): Promise<void>
}

/** Starts a service that writes down the keys it is called with. */
export async function startDownstream(): Promise<Downstream> {
  const keys: string[] = []
  const server = createServer((request, response) => {
    keys.push(String(request.headers['idempotency-key']))
    response.writeHead(201).end()
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('The service has no port')
  return {
    url: `http://127.0.0.1:${address.port}`,
    keys,
    async close() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
