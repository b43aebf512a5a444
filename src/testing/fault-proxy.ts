import { type AddressInfo, connect, createServer } from 'node:net'
import { type FaultLine, openLine } from './fault-line.js'

/**
 * What befalls a connection when bytes come from the client:
 *
 * - `cut`: both ends are closed, and the bytes are not passed on.
 * - `reset`: the same, as a machine does it that has restarted and knows nothing of the connection.
 * - `stall`: nothing goes through in either direction until the proxy is healed. Then what was held is delivered.
 * - `half-open`: the server's side is gone, and the client's side is never told. Healing does not bring it back.
 * - `drop-answer`: the request is passed on and carried out, its answer is swallowed, and the connection is cut, or
 *   half-open, as `leaves` says. The first bytes that the server sends after the request are taken for its answer.
 */
export type Fault = FaultTrigger &
  (
    | {
        readonly kind: 'cut' | 'reset' | 'stall' | 'half-open'
        /**
         * Befalls all connections when it fires, and new ones until the proxy is healed.
         *
         * @default false
         */
        readonly everywhere?: boolean
      }
    | {
        readonly kind: 'drop-answer'
        /**
         * What becomes of the connection without its answer.
         *
         * @default 'cut'
         */
        readonly leaves?: 'cut' | 'half-open'
      }
  )

/** When a fault fires. */
export interface FaultTrigger {
  /**
   * Fires at bytes that have this in them, on whichever connection they come: a statement, a key. A pattern reads the
   * bytes as Latin-1. Bytes that arrive together share their fate.
   *
   * @default the next bytes, whatever they are
   */
  readonly match?: string | RegExp
  /**
   * How often it fires.
   *
   * @default 1
   */
  readonly times?: number
}

/** A fault that waits for its bytes. */
export interface ArmedFault {
  /** How often it has fired. */
  readonly timesFired: number
  /** Resolves when it has fired for the first time; with `drop-answer`, when the answer has come and is swallowed. */
  readonly fired: Promise<void>
  /** From now on it does not fire. What it has done stays done. */
  disarm(): void
}

/** A TCP proxy that breaks connections when it is told to. */
export interface FaultProxy {
  readonly host: string
  readonly port: number
  /** How many connections go through it now, the broken ones that nobody has closed included. */
  readonly connections: number
  /** The address with this proxy in place of its host and port: `postgres://me@127.0.0.1:40123/shop`. */
  through(url: string): string
  /** Makes a fault wait for its bytes. Of several that match the same bytes, the first one fires. */
  arm(fault: Fault): ArmedFault
  /** Disarms all faults, delivers what was held, and lets new connections through. */
  heal(): void
  /** Ends all connections, and resolves when the port is free. */
  stop(): Promise<void>
}

/** Where the proxy leads. */
export interface FaultProxyOptions {
  readonly target: { readonly host: string; readonly port: number }
}

const HOST = '127.0.0.1'

/** How much of what went before a pattern can look back at, in bytes: a statement may come in two pieces. */
const LOOK_BACK = 8192

/**
 * Starts a TCP proxy on a free port of the loopback interface. It knows nothing of what goes through it, so it stands
 * before any server; TLS hides from it what `match` looks for.
 *
 * ```ts
 * const proxy = await startFaultProxy({ target: { host: '127.0.0.1', port: 5432 } })
 * const commit = proxy.arm({ kind: 'drop-answer', match: 'commit' })
 * // ... send a request through it, then:
 * await commit.fired
 * proxy.heal()
 * ```
 */
export async function startFaultProxy({ target }: FaultProxyOptions): Promise<FaultProxy> {
  const lines = new Set<FaultLine>()
  const armed = new Set<Waiting>()
  /** What befalls new connections. */
  let standing: ((line: FaultLine) => void) | undefined

  const server = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
    const upstream = connect({ ...target, allowHalfOpen: true, noDelay: true })
    let before = ''
    const line = openLine(client, upstream, {
      request(bytes) {
        const text = bytes.toString('latin1')
        const fault = [...armed].find(({ matches }) => matches(before, text))
        before = (before + text).slice(-LOOK_BACK)
        if (fault === undefined) line.forward(bytes)
        else fire(fault, line, bytes)
      },
      closed: () => lines.delete(line),
    })
    lines.add(line)
    standing?.(line)
  })

  function fire({ fault, onAimed, onFired }: Waiting, line: FaultLine, bytes: Buffer): void {
    onAimed()
    if (fault.kind === 'drop-answer') {
      line.dropAnswer(() => {
        strike(fault.leaves ?? 'cut', line)
        onFired()
      })
      line.forward(bytes)
      return
    }
    strike(fault.kind, line, bytes)
    if (fault.everywhere === true) {
      standing = (each) => strike(fault.kind, each)
      for (const other of lines) if (other !== line) standing(other)
    }
    onFired()
  }

  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, HOST, resolve)
  })
  const { port } = server.address() as AddressInfo

  return {
    host: HOST,
    port,
    get connections() {
      return lines.size
    },
    through(url) {
      const address = new URL(url)
      address.hostname = HOST
      address.port = String(port)
      return address.href
    },
    arm(fault) {
      let timesFired = 0
      let aimed = 0
      let open: () => void = () => {}
      const fired = new Promise<void>((resolve) => {
        open = resolve
      })
      const waiting: Waiting = {
        fault,
        matches: matcher(fault.match),
        onAimed() {
          aimed += 1
          if (aimed === (fault.times ?? 1)) armed.delete(waiting)
        },
        onFired() {
          timesFired += 1
          open()
        },
      }
      armed.add(waiting)
      return {
        get timesFired() {
          return timesFired
        },
        fired,
        disarm: () => void armed.delete(waiting),
      }
    },
    heal() {
      armed.clear()
      standing = undefined
      for (const line of lines) line.heal()
    },
    async stop() {
      armed.clear()
      const closed = new Promise((resolve) => server.close(resolve))
      for (const line of lines) line.destroy()
      await closed
    },
  }
}

interface Waiting {
  readonly fault: Fault
  /** Whether a fault fires at `bytes` that come after `before`. */
  readonly matches: (before: string, bytes: string) => boolean
  /** It has found its bytes. */
  readonly onAimed: () => void
  /** It has done its harm. */
  readonly onFired: () => void
}

function strike(kind: 'cut' | 'reset' | 'stall' | 'half-open', line: FaultLine, bytes?: Buffer): void {
  if (kind === 'cut') line.cut()
  if (kind === 'reset') line.reset()
  if (kind === 'stall') line.stall(bytes)
  if (kind === 'half-open') line.abandon()
}

function matcher(match: string | RegExp | undefined): Waiting['matches'] {
  if (match === undefined) return () => true
  const pattern =
    typeof match === 'string' ? literally(match) : new RegExp(match, `${match.flags.replace('g', '')}g`)
  return (before, bytes) => {
    // What ends in bytes that have gone through already is no longer to be had.
    for (const found of (before + bytes).matchAll(pattern))
      if (found.index + found[0].length > before.length) return true
    return false
  }
}

function literally(text: string): RegExp {
  const bytes = Buffer.from(text).toString('latin1')
  return new RegExp(bytes.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&'), 'g')
}
