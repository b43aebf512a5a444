import { mkdtemp, rm } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freePort } from './free-port.js'
import { findProgram, type RunningProgram, startProgram } from './program.js'

/** A Redis server that belongs to this test run. */
export interface RedisServer extends RunningProgram {
  readonly url: string
  readonly port: number
}

/** Starts `redis-server` on a free port of the loopback interface, without persistence unless `args` say so. */
export async function startRedisServer(
  options: { readonly args?: readonly string[]; readonly port?: number } = {},
): Promise<RedisServer> {
  const file = findProgram('redis-server')
  if (file === undefined) throw new Error('redis-server is not installed')
  const folder = await mkdtemp(join(tmpdir(), 'oncekey-redis-'))
  const port = options.port ?? (await freePort())
  const args = [
    '--port',
    String(port),
    '--bind',
    '127.0.0.1',
    '--dir',
    folder,
    '--save',
    '',
    '--appendonly',
    'no',
  ]
  const program = await startProgram({
    file,
    args: [...args, ...(options.args ?? [])],
    isReady: () => answersPing(port),
  })
  return {
    ...program,
    port,
    url: `redis://127.0.0.1:${port}`,
    async stop(signal) {
      await program.stop(signal)
      await rm(folder, { recursive: true, force: true })
    },
  }
}

function answersPing(port: number): Promise<boolean> {
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
