import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { jetstreamManager } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import { startContainer } from './container.js'
import { onFreePorts } from './free-port.js'
import { findProgram, type RunningProgram, startProgram } from './program.js'

/** A NATS server with JetStream that belongs to this test run. */
export interface NatsServer extends Omit<RunningProgram, 'pid'> {
  readonly url: string
  readonly port: number
  /** Kills it, and starts it again with what its streams have kept. */
  crash(): Promise<void>
}

/** Where NATS is, or `undefined` when it is not installed. */
export function findNats(): string | undefined {
  return findProgram('nats-server', ['/usr/sbin'])
}

/** Starts NATS on a free port of the loopback interface, with its streams in a temporary folder. */
export async function startNatsServer(): Promise<NatsServer> {
  const file = findNats()
  return onFreePorts(1, (port) =>
    file === undefined ? startNatsContainer(port) : startNatsProgram(file, port),
  )
}

async function startNatsProgram(file: string, port: number): Promise<NatsServer> {
  const url = `nats://127.0.0.1:${port}`
  const folder = await mkdtemp(join(tmpdir(), 'oncekey-nats-'))
  const remove = (): Promise<void> => rm(folder, { recursive: true, force: true })
  const launch = (): Promise<RunningProgram> =>
    startProgram({
      file,
      args: ['--addr', '127.0.0.1', '--port', String(port), '--jetstream', '--store_dir', folder],
      isReady: () => hasJetStream(url),
    })
  let program = await launch().catch(async (error) => {
    await remove()
    throw error
  })
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
      await remove()
    },
  }
}

async function startNatsContainer(port: number): Promise<NatsServer> {
  const url = `nats://127.0.0.1:${port}`
  const container = await startContainer({
    image: 'nats:2.12-alpine',
    port,
    command: ['nats-server', '--port', String(port), '--jetstream', '--store_dir', '/data'],
    readyLog: [/Server is ready/, 1],
  })
  return { ...container, crash: () => container.crash(() => hasJetStream(url)), port, url }
}

async function hasJetStream(url: string): Promise<boolean> {
  const connection = await connect({ servers: url, timeout: 1000, reconnect: false })
  try {
    await (await jetstreamManager(connection)).getAccountInfo()
    return true
  } finally {
    await connection.close()
  }
}
