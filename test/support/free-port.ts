import { createServer } from 'node:net'

/** A port of the loopback interface that nobody listens on. Somebody may take it before you do: be ready to ask again. */
export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, '127.0.0.1', resolve)
  })
  const address = server.address()
  await new Promise((resolve) => server.close(resolve))
  if (address === null || typeof address === 'string') throw new Error('The server has no port')
  return address.port
}

const MOST_ATTEMPTS = 5

/** Starts something on free ports, and again on others where somebody else was faster. */
export async function onFreePorts<T>(count: number, start: (...ports: number[]) => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    const ports: number[] = []
    while (ports.length < count) ports.push(await freePort())
    try {
      return await start(...ports)
    } catch (error) {
      if (attempt === MOST_ATTEMPTS || !/in ?use/i.test(String(error))) throw error
    }
  }
}
