import express, { type Express } from 'express'
import express4 from 'express-4'

/** A version of Express. */
export interface ExpressVersion {
  readonly name: string
  readonly express: typeof express
}

/** The versions that the middleware is for. Their types differ, what the tests use of them does not. */
export const EXPRESS_4: ExpressVersion = { name: 'Express 4', express: express4 as unknown as typeof express }
export const EXPRESS_5: ExpressVersion = { name: 'Express 5', express }
export const EXPRESS_VERSIONS: readonly ExpressVersion[] = [EXPRESS_4, EXPRESS_5]

/** An application that listens on a free port of the loopback interface. */
export async function listening(app: Express): Promise<{ readonly url: string; close(): Promise<void> }> {
  const server = app.listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('The server has no port')
  return {
    url: `http://127.0.0.1:${address.port}`,
    close() {
      server.closeAllConnections()
      return new Promise((resolve) => server.close(() => resolve()))
    },
  }
}
