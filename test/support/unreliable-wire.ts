import { type AddressInfo, connect, createServer, type Socket } from 'node:net'

/**
 * What becomes of a connection: everything passes; its answer is lost, once the server has sent it; its answer is cut in
 * the middle of its body; its answer never comes, and nobody says so; or it is reset before anything is sent.
 */
export type Fate = 'pass' | 'lose-answer' | 'cut-answer' | 'swallow-answer' | 'reset'

/** A wire between a client and a server. */
export interface UnreliableWire {
  readonly url: string
  /** How many connections came over it. */
  connections(): number
  close(): Promise<void>
}

/** Starts a wire to a port. Connections meet their fates one after the other, and pass when there are no more. */
export async function startWire(port: number, fates: readonly Fate[]): Promise<UnreliableWire> {
  const sockets = new Set<Socket>()
  let connections = 0
  const server = createServer((client) => {
    const fate = fates[connections++] ?? 'pass'
    keep(client)
    if (fate === 'reset') {
      client.resetAndDestroy()
      return
    }
    const upstream = keep(connect(port, '127.0.0.1'))
    upstream.once('close', () => client.destroy())
    client.once('close', () => upstream.destroy())
    client.pipe(upstream)
    if (fate === 'pass') upstream.pipe(client)
    else
      upstream.once('data', (answer: Buffer) => {
        if (fate === 'lose-answer') client.destroy()
        if (fate === 'cut-answer') client.write(answer.subarray(0, answer.length - 3), () => client.destroy())
      })
  })

  function keep(socket: Socket): Socket {
    sockets.add(socket)
    socket.once('close', () => sockets.delete(socket))
    // A wire breaks: who sits at its ends finds out.
    socket.on('error', () => {})
    return socket
  }

  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    connections: () => connections,
    close() {
      for (const socket of sockets) socket.destroy()
      return new Promise((resolve) => server.close(() => resolve()))
    },
  }
}
