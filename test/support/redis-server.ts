import { mkdtemp, rm } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { startContainer } from './container.js'
import { onFreePorts } from './free-port.js'
import { findProgram, type RunningProgram, startProgram } from './program.js'

/** A Redis server that belongs to this test run. */
export interface RedisServer extends Omit<RunningProgram, 'pid'> {
  readonly url: string
  readonly port: number
  /** Kills it, and starts it again with what it has persisted so far. */
  crash(): Promise<void>
}

/** Where Redis is, or `undefined` when it is not installed. */
export function findRedis(): string | undefined {
  return findProgram('redis-server')
}

/** Starts Redis on a free port of the loopback interface, without persistence unless `args` say so. */
export async function startRedisServer(
  options: { readonly args?: readonly string[]; readonly port?: number } = {},
): Promise<RedisServer> {
  const { port } = options
  if (port === undefined) return onFreePorts(1, (free) => startRedisServer({ ...options, port: free }))
  const url = `redis://127.0.0.1:${port}`
  const settings = ['--port', String(port), '--save', '', '--appendonly', 'no', ...(options.args ?? [])]
  const file = findRedis()
  const isReady = (): Promise<boolean> => answersPing(port)
  if (file === undefined) {
    const container = await startRedisContainer(port, settings)
    return { ...container, crash: () => container.crash(isReady), port, url }
  }
  const folder = await mkdtemp(join(tmpdir(), 'oncekey-redis-'))
  const launch = (): Promise<RunningProgram> =>
    startProgram({ file, args: ['--bind', '127.0.0.1', '--dir', folder, ...settings], isReady })
  let program = await launch()
  return {
    port,
    url,
    pause: () => program.pause(),
    resume: () => program.resume(),
    async crash() {
      await program.stop('SIGKILL')
      program = await launch()
    },
    async stop(signal) {
      await program.stop(signal)
      await rm(folder, { recursive: true, force: true })
    },
  }
}

function startRedisContainer(port: number, settings: readonly string[]) {
  return startContainer({
    image: 'redis:7.4-alpine',
    port,
    command: ['redis-server', ...settings],
    readyLog: [/Ready to accept connections/, 1],
  })
}

/** Whether a server of this port answers a PING. */
export function answersPing(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => socket.write('PING\r\n'))
    socket.setTimeout(1000, () => socket.destroy())
    socket.once('data', (data) => {
      resolve(data.toString().startsWith('+PONG'))
      socket.end()
    })
    socket.once('error', () => resolve(false))
    socket.once('close', () => resolve(false))
  })
}
