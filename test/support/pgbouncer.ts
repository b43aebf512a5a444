import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Client } from 'pg'
import { freePort } from './free-port.js'
import { findProgram, type RunningProgram, startProgram } from './program.js'

/** Where PgBouncer is, or `undefined` when it is not installed. */
export function findPgBouncer(): string | undefined {
  return findProgram('pgbouncer', ['/usr/sbin'])
}

/** Starts PgBouncer in transaction mode in front of the server at `url`, with two connections to it. */
export async function startPgBouncer(url: string): Promise<RunningProgram & { readonly url: string }> {
  const file = findPgBouncer()
  if (file === undefined) throw new Error('pgbouncer is not installed')
  const folder = mkdtempSync(join(tmpdir(), 'oncekey-pgbouncer-'))
  chmodSync(folder, 0o755)
  const server = new URL(url)
  const port = await freePort()
  const config = join(folder, 'pgbouncer.ini')
  writeFileSync(
    config,
    `[databases]
postgres = host=${server.hostname} port=${server.port} user=${server.username} password=${server.password} dbname=${server.pathname.slice(1)}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_client_conn = 100
`,
  )
  const own = `postgres://postgres@127.0.0.1:${port}/postgres`
  const program = await startProgram({
    file,
    // It refuses to run as root, as the server does.
    args: [...(process.getuid?.() === 0 ? ['-u', 'postgres'] : []), config],
    async isReady() {
      const client = new Client({ connectionString: own, connectionTimeoutMillis: 1000 })
      await client.connect()
      await client.query('select 1')
      await client.end()
      return true
    },
  })
  return {
    ...program,
    url: own,
    async stop() {
      await program.stop('SIGINT')
      rmSync(folder, { recursive: true, force: true })
    },
  }
}
