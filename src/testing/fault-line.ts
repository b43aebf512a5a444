import type { Socket } from 'node:net'

/** One connection through a fault proxy: its two ends, and what has befallen it. */
export interface FaultLine {
  /** Passes bytes of the client on to the server. */
  forward(bytes: Buffer): void
  /** Closes both ends, in order. */
  cut(): void
  /** Closes both ends as a machine does that knows nothing of the connection. */
  reset(): void
  /** Lets nothing through in either direction. `held` goes to the server when the line is healed. */
  stall(held?: Buffer): void
  /** Ends the server's side and never tells the client: whatever it sends from now on is lost. */
  abandon(): void
  /** Swallows the next bytes of the server, and calls `onDropped` when they have come. */
  dropAnswer(onDropped: () => void): void
  /** Lets everything through again that is not lost. */
  heal(): void
  /** Ends both sides at once. */
  destroy(): void
}

/** What a line does with the bytes that come: pass them on, keep them waiting, swallow an answer, or lose them all. */
type State =
  | { readonly kind: 'open' }
  | { readonly kind: 'stalled'; readonly held: readonly Buffer[] }
  | { readonly kind: 'dropping'; readonly onDropped: () => void }
  | { readonly kind: 'lost' }

const OPEN: State = { kind: 'open' }
const LOST: State = { kind: 'lost' }

/**
 * Connects two sockets that allow half-open connections: what one says the other hears, its end and its failure too.
 * Bytes of the client go to `on.request` in place of the server; `on.closed` is called when both ends are.
 */
export function openLine(
  client: Socket,
  server: Socket,
  on: { readonly request: (bytes: Buffer) => void; readonly closed: () => void },
): FaultLine {
  let state = OPEN
  const bothWays = [
    [client, server],
    [server, client],
  ] as const

  function relay(bytes: Buffer, from: Socket, to: Socket): void {
    if (!to.writable || to.write(bytes)) return
    from.pause()
    to.once('drain', () => {
      if (state.kind !== 'stalled') from.resume()
    })
  }

  function lose(): void {
    state = LOST
    // What still comes is read and thrown away: an end that is never read never comes.
    client.resume()
    server.resume()
  }

  const line: FaultLine = {
    forward: (bytes) => relay(bytes, client, server),

    cut() {
      lose()
      client.end()
      server.end()
    },

    reset() {
      lose()
      client.resetAndDestroy()
      server.resetAndDestroy()
    },

    stall(held) {
      if (state.kind === 'lost' || state.kind === 'stalled') return
      state = { kind: 'stalled', held: held === undefined ? [] : [held] }
      client.pause()
      server.pause()
    },

    abandon() {
      lose()
      server.destroy()
    },

    dropAnswer(onDropped) {
      state = { kind: 'dropping', onDropped }
    },

    heal() {
      if (state.kind === 'lost') return
      const held = state.kind === 'stalled' ? state.held : []
      state = OPEN
      for (const bytes of held) line.forward(bytes)
      for (const [one, other] of bothWays) passOn(one, other)
      client.resume()
      server.resume()
    },

    destroy() {
      lose()
      client.destroy()
      server.destroy()
    },
  }

  client.on('data', (bytes) => {
    if (state.kind === 'open') on.request(bytes)
    // Pieces of the request whose answer is dropped.
    else if (state.kind === 'dropping') line.forward(bytes)
  })
  server.on('data', (bytes) => {
    if (state.kind === 'open') relay(bytes, server, client)
    else if (state.kind === 'dropping') state.onDropped()
  })
  for (const [one, other] of bothWays) {
    one.on('end', () => {
      if (state.kind !== 'stalled') passOn(one, other)
    })
    // The `close` that follows says that there was one.
    one.on('error', () => {})
    one.on('close', () => {
      if (state.kind !== 'stalled') passOn(one, other)
      if (other.closed) on.closed()
    })
  }

  /** Tells one side how the other has left, if it has. */
  function passOn(one: Socket, other: Socket): void {
    if (state.kind === 'lost') return
    if (one.errored !== null) other.resetAndDestroy()
    else if (one.readableEnded) other.end()
  }

  return line
}
