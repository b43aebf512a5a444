import { type ChildProcess, spawn } from 'node:child_process'
import { createServer } from 'node:net'
import { createInterface } from 'node:readline'
import type { CrashServerLine, CrashServerOptions, CrashServerTurn } from '../programs/crash-server.js'

/** One of the servers under attack: an address that stays, and processes that do not. */
export interface AttackedServer {
  readonly name: string
  readonly url: string
  /** `starting` from a kill until the next process listens. */
  readonly state: 'starting' | 'serving' | 'stopped'
  /** Ends the process without any warning. The next one starts at once. */
  kill(): void
  /** Stops the process in the middle of whatever it does, and lets it go on `forMs` later. */
  stop(forMs: number): void
  resume(): void
}

/** Two servers that are started again whenever they are killed. */
export interface ServerPair {
  readonly servers: readonly [AttackedServer, AttackedServer]
  /** How processes ended that nobody killed. Each is a defect. */
  readonly accidents: readonly string[]
  /** Lets everything that is stopped go on, and waits until both serve. */
  heal(): Promise<void>
  /** Waits until no handler runs any more, on either of them. */
  becomeIdle(): Promise<void>
  /** Ends all processes. */
  close(): Promise<void>
}

/** A process that has loaded the program and waits for its turn: what is killed is replaced at once. */
interface Spare {
  readonly child: ChildProcess
  readonly isReady: Promise<void>
}

const SPARES = 2
const IDLE_WITHIN_MS = 60_000

/**
 * Starts two servers on ports of the loopback interface that stay the same.
 *
 * @param program the compiled server program.
 * @param onEvent is told what a server's engine reports about a key.
 */
export async function startServerPair(
  parts: {
    readonly program: string
    readonly options: CrashServerOptions
  },
  onEvent: (server: string, event: Extract<CrashServerLine, { tells: 'event' }>) => void,
): Promise<ServerPair> {
  const { program, options } = parts
  const accidents: string[] = []
  const children = new Set<ChildProcess>()
  const spares: Spare[] = []
  let isClosed = false
  const reap = (): void => {
    for (const child of children) child.kill('SIGKILL')
  }
  // A run that is interrupted leaves no server behind.
  process.once('exit', reap)

  function makeSpare(): Spare {
    const child = spawn(process.execPath, [program, JSON.stringify(options)], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    children.add(child)
    // Nobody needs to hear that a process which was killed takes no more input.
    child.stdin.on('error', () => {})
    const isReady = new Promise<void>((resolve, reject) => {
      child.stdout.once('data', () => resolve())
      child.once('exit', (code, signal) => {
        children.delete(child)
        if (signal !== 'SIGKILL') accidents.push(`a server process ended by itself: ${code ?? signal}`)
        reject(new Error(`A server process ended before it was ready: ${code ?? signal}`))
      })
    })
    isReady.catch(() => {})
    return { child, isReady }
  }

  function nextSpare(): Spare {
    const spare = spares.shift() ?? makeSpare()
    while (spares.length < SPARES) spares.push(makeSpare())
    return spare
  }

  function startServer(name: string, port: number): AttackedServer & { serving(): Promise<void> } {
    let isServing = false
    let isStopped = false
    let child: ChildProcess | undefined
    let serving: Promise<void> = Promise.resolve()
    let resumption: NodeJS.Timeout | undefined

    function start(): void {
      isServing = false
      isStopped = false
      const spare = nextSpare()
      child = spare.child
      serving = new Promise((resolve) => {
        if (spare.child.stdout === null) return
        createInterface(spare.child.stdout).on('line', (text) => {
          const line = JSON.parse(text) as CrashServerLine
          if (line.tells === 'event') onEvent(name, line)
          if (line.tells !== 'serving') return
          if (child === spare.child) isServing = true
          resolve()
        })
      })
      const turn: CrashServerTurn = { name, port }
      // One that was killed before its turn has been replaced already.
      spare.isReady.then(() => spare.child.stdin?.write(`${JSON.stringify(turn)}\n`)).catch(() => {})
      spare.child.once('exit', () => {
        if (!isClosed && child === spare.child) start()
      })
    }

    start()
    return {
      name,
      url: `http://127.0.0.1:${port}`,
      get state() {
        return isStopped ? 'stopped' : isServing ? 'serving' : 'starting'
      },
      kill() {
        clearTimeout(resumption)
        const killed = child
        start()
        killed?.kill('SIGKILL')
      },
      stop(forMs) {
        clearTimeout(resumption)
        isStopped = true
        child?.kill('SIGSTOP')
        resumption = setTimeout(() => this.resume(), forMs)
      },
      resume() {
        clearTimeout(resumption)
        isStopped = false
        child?.kill('SIGCONT')
      },
      serving: () => serving,
    }
  }

  const [portOfA, portOfB] = await steadyPorts()
  const servers = [startServer('A', portOfA), startServer('B', portOfB)] as const

  async function heal(): Promise<void> {
    for (const server of servers) server.resume()
    await Promise.all(servers.map((server) => server.serving()))
  }

  await heal()
  return {
    servers,
    accidents,
    heal,
    async becomeIdle() {
      const givesUpAt = Date.now() + IDLE_WITHIN_MS
      for (const { url, name } of servers) {
        while ((await handlersRunning(url)) > 0) {
          if (Date.now() > givesUpAt) throw new Error(`Handlers of server ${name} do not end`)
          await new Promise((resolve) => setTimeout(resolve, 50))
        }
      }
    },
    async close() {
      isClosed = true
      const ends = [...children].map((child) => new Promise((resolve) => child.once('exit', resolve)))
      reap()
      await Promise.all(ends)
      process.off('exit', reap)
    },
  }
}

async function handlersRunning(url: string): Promise<number> {
  const answer = await fetch(`${url}/running`)
  return ((await answer.json()) as { readonly running: number }).running
}

/** Two free ports below those that outgoing connections are given: nobody takes one while its server is down. */
async function steadyPorts(): Promise<readonly [number, number]> {
  for (;;) {
    const port = 15_000 + Math.floor(Math.random() * 15_000)
    if ((await isFree(port)) && (await isFree(port + 1))) return [port, port + 1]
  }
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', () => resolve(false))
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)))
  })
}
