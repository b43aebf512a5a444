import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { connect as openSocket } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { connect } from 'amqplib'
import { startContainer } from './container.js'
import { onFreePorts } from './free-port.js'
import { findProgram, type RunningProgram, startProgram } from './program.js'

/** A RabbitMQ broker that belongs to this test run. */
export interface RabbitMqServer extends Omit<RunningProgram, 'pid'> {
  readonly url: string
  readonly port: number
  /** Kills it, and starts it again with what it has written so far. */
  crash(): Promise<void>
}

/** Where RabbitMQ is, or `undefined` when it is not installed. */
export function findRabbitMq(): string | undefined {
  // What is on Debian's PATH changes the user and knows a single node. The server's own script has this one beside it.
  const environmentScript = findProgram('rabbitmq-env', [
    '/usr/lib/rabbitmq/bin',
    '/opt/homebrew/opt/rabbitmq/sbin',
  ])
  return environmentScript === undefined ? undefined : join(dirname(environmentScript), 'rabbitmq-server')
}

/** Starts RabbitMQ as a node of its own, without plugins, on free ports of the loopback interface. */
export async function startRabbitMqServer(): Promise<RabbitMqServer> {
  const file = findRabbitMq()
  return onFreePorts(3, (port, distributionPort, epmdPort) =>
    file === undefined
      ? startRabbitMqContainer(port)
      : startRabbitMqProgram(file, { port, distributionPort, epmdPort }),
  )
}

interface Ports {
  readonly port: number
  readonly distributionPort: number
  readonly epmdPort: number
}

async function startRabbitMqProgram(file: string, ports: Ports): Promise<RabbitMqServer> {
  const { port } = ports
  const url = `amqp://127.0.0.1:${port}`
  const folder = await mkdtemp(join(tmpdir(), 'oncekey-rabbitmq-'))
  const remove = (): Promise<void> => rm(folder, { recursive: true, force: true })
  await writeFile(join(folder, 'rabbitmq.conf'), configFor(port))
  const launch = (): Promise<RunningProgram> =>
    startProgram({
      file,
      // With input "allowed" the script becomes the server, which then needs to be told to read none. Otherwise it would
      // wait for the server, and a SIGKILL for the script would leave the server behind.
      args: ['-noinput'],
      env: { ...environmentFor(folder, ports), RABBITMQ_ALLOW_INPUT: '1' },
      cwd: folder,
      isReady: () => acceptsClients(url),
      readyWithinMs: 120_000,
    })
  const nameServer = await startNameServer(ports.epmdPort)
  let program = await launch().catch(async (error) => {
    await nameServer.stop()
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
      await nameServer.stop()
      await remove()
    },
  }
}

/**
 * Starts the name server of Erlang nodes. A node that finds none starts one by itself, which outlives it; so this one is
 * there first, and ours to stop.
 */
function startNameServer(port: number): Promise<RunningProgram> {
  return startProgram({
    file: findProgram('epmd', ['/usr/lib/erlang/bin', '/opt/homebrew/bin']) ?? 'epmd',
    args: ['-address', '127.0.0.1', '-port', String(port)],
    isReady: () => isOpen(port),
  })
}

/** Keeps the node off all that the package, another node or its user own: files, ports, the cookie of the home folder. */
function environmentFor(folder: string, ports: Ports): NodeJS.ProcessEnv {
  return {
    PATH: process.env.PATH,
    HOME: folder,
    ERL_EPMD_ADDRESS: '127.0.0.1',
    ERL_EPMD_PORT: String(ports.epmdPort),
    RABBITMQ_NODENAME: `oncekey-${ports.port}@localhost`,
    RABBITMQ_DIST_PORT: String(ports.distributionPort),
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: '-kernel inet_dist_use_interface {127,0,0,1}',
    RABBITMQ_CONFIG_FILE: join(folder, 'rabbitmq.conf'),
    RABBITMQ_CONF_ENV_FILE: join(folder, 'rabbitmq-env.conf'),
    RABBITMQ_ENABLED_PLUGINS_FILE: join(folder, 'enabled_plugins'),
    RABBITMQ_MNESIA_BASE: join(folder, 'mnesia'),
    RABBITMQ_LOG_BASE: join(folder, 'log'),
  }
}

function configFor(port: number): string {
  return `listeners.tcp.1 = 127.0.0.1:${port}
log.file = false
log.console = true
log.console.level = error
disk_free_limit.absolute = 1MB
`
}

async function startRabbitMqContainer(port: number): Promise<RabbitMqServer> {
  const url = `amqp://127.0.0.1:${port}`
  const container = await startContainer({
    image: 'rabbitmq:4-alpine',
    port,
    command: ['rabbitmq-server'],
    environment: { RABBITMQ_NODE_PORT: String(port) },
    readyLog: [/Server startup complete/, 1],
  })
  return { ...container, crash: () => container.crash(() => acceptsClients(url)), port, url }
}

async function acceptsClients(url: string): Promise<boolean> {
  const connection = await connect(url, { timeout: 5000 })
  await connection.close()
  return true
}

function isOpen(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = openSocket(port, '127.0.0.1', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(false))
  })
}
