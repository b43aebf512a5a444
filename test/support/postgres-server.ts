import { execFileSync, spawnSync } from 'node:child_process'
import { chownSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { Client } from 'pg'
import { startContainer } from './container.js'
import { freePort } from './free-port.js'
import { findProgram, type RunningProgram, startProgram } from './program.js'

/** A Postgres server that belongs to this test run. */
export interface PostgresServer extends Omit<RunningProgram, 'pid'> {
  readonly url: string
  readonly port: number
  /** Kills it with all its processes, and starts it again with what it has written so far. */
  crash(): Promise<void>
}

/** Where Debian and others put the programs of the server, which are not on the PATH. */
const SERVER_FOLDERS = ['/usr/lib/postgresql/*/bin', '/usr/pgsql-*/bin', '/opt/homebrew/opt/postgresql@*/bin']

/** Where the server's programs are, or `undefined` when it is not installed. */
export function findPostgres(): string | undefined {
  return findProgram('initdb', SERVER_FOLDERS)
}

/** Starts Postgres on a free port of the loopback interface, with a database of its own in a temporary folder. */
export async function startPostgresServer(
  options: { readonly settings?: Readonly<Record<string, string>>; readonly port?: number } = {},
): Promise<PostgresServer> {
  const port = options.port ?? (await freePort())
  const url = `postgres://postgres@127.0.0.1:${port}/postgres`
  const settings = Object.entries({
    port: String(port),
    fsync: 'off',
    max_connections: '300',
    ...options.settings,
  }).flatMap(([name, value]) => ['-c', `${name}=${value}`])
  const initdb = findPostgres()
  const isReady = (): Promise<boolean> => acceptsConnections(url)
  if (initdb === undefined) {
    const container = await startPostgresContainer(port, settings)
    return { ...container, crash: () => container.crash(isReady), port, url }
  }
  const owner = serverOwner()
  const folder = mkdtempSync(join(tmpdir(), 'oncekey-postgres-'))
  if (owner.uid !== undefined && owner.gid !== undefined) chownSync(folder, owner.uid, owner.gid)
  const data = join(folder, 'data')
  execFileSync(initdb, ['-D', data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '-N'], {
    ...owner,
    cwd: folder,
    stdio: 'pipe',
  })
  const launch = (): Promise<RunningProgram> =>
    startProgram({
      file: join(dirname(initdb), 'postgres'),
      args: ['-D', data, '-c', 'listen_addresses=127.0.0.1', '-c', 'unix_socket_directories=', ...settings],
      cwd: folder,
      ...owner,
      isReady,
    })
  let program = await launch()
  return {
    // Its children lead process groups of their own.
    pause: () => signalFamily(program.pid, 'SIGSTOP'),
    resume: () => signalFamily(program.pid, 'SIGCONT'),
    port,
    url,
    async crash() {
      signalFamily(program.pid, 'SIGKILL')
      await program.stop('SIGKILL')
      program = await launch()
    },
    async stop() {
      signalFamily(program.pid, 'SIGCONT')
      await program.stop('SIGQUIT')
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

function startPostgresContainer(port: number, settings: readonly string[]) {
  return startContainer({
    image: 'postgres:17-alpine',
    port,
    command: ['postgres', ...settings],
    environment: { POSTGRES_HOST_AUTH_METHOD: 'trust' },
    // It starts once to make its database, and a second time to serve it.
    readyLog: [/database system is ready to accept connections/, 2],
  })
}

/** The server refuses to run as root: there, it runs as the user that its package made. */
function serverOwner(): { readonly uid?: number; readonly gid?: number } {
  if (process.getuid?.() !== 0) return {}
  const idOf = (flag: string): number =>
    Number(execFileSync('id', [flag, 'postgres'], { encoding: 'utf8' }).trim())
  return { uid: idOf('-u'), gid: idOf('-g') }
}

function signalFamily(pid: number, signal: NodeJS.Signals): void {
  const listed = spawnSync('ps', ['-o', 'pid=', '--ppid', String(pid)], { encoding: 'utf8' }).stdout
  for (const member of [pid, ...listed.split('\n').map(Number)]) {
    if (!(member > 0)) continue
    try {
      process.kill(member, signal)
    } catch {
      // It has ended already.
    }
  }
}

async function acceptsConnections(url: string): Promise<boolean> {
  const client = new Client({ connectionString: url, connectionTimeoutMillis: 1000 })
  await client.connect()
  await client.end()
  return true
}
