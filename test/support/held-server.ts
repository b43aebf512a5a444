import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Pool } from 'pg'
import { expect } from 'vitest'
import { postgresStore } from '../../src/stores/postgres.js'
import type { HeldServerLine, HeldServerOptions } from '../programs/held-server.js'
import { type Answered, post, type ServerProcess, startServerProcess } from './server-process.js'

/** A server process whose handler can be held in the middle. */
export interface HeldServer extends ServerProcess {
  send(key: string, headers?: Readonly<Record<string, string>>): Promise<Answered>
  /** Sends a request whose first run is held. Resolves when it is, with the answer to come. */
  hold(key: string): Promise<{ readonly answer: Promise<Answered> }>
  /** What the process has told about a key. */
  told(key: string): readonly HeldServerLine[]
}

/** Servers that belong to one test. */
export interface HeldServers {
  start(options: Omit<HeldServerOptions, 'told' | 'gate'>): Promise<HeldServer>
  /** Lets the run with this fence go on, whoever runs it. */
  letGo(fence: number): void
  /** The fences under which a key had an effect that nothing takes back, in order, over all servers. */
  effectsOf(key: string): readonly number[]
  /** Ends all of them. */
  close(): Promise<void>
}

const SOON = { timeout: 20_000, interval: 20 }

/** Makes a place for the held servers of one test. */
export function heldServers(): HeldServers {
  const folder = mkdtempSync(join(tmpdir(), 'oncekey-held-'))
  const gate = join(folder, 'gate')
  const servers: HeldServer[] = []
  let started = 0
  return {
    async start(options) {
      started += 1
      const file = join(folder, `told-${started}`)
      writeFileSync(file, '')
      const child = await startServerProcess('held-server', { ...options, told: file, gate })
      const send: HeldServer['send'] = (key, headers) => post(child.url, key, headers)
      const told: HeldServer['told'] = (key) => linesOf(file).filter((line) => line.key === key)
      const server: HeldServer = {
        ...child,
        send,
        told,
        async hold(key) {
          const answer = send(key, { 'x-hold': '1' })
          // Whoever kills the server may never look at the answer.
          answer.catch(() => {})
          await expect.poll(() => told(key).some(({ tells }) => tells === 'held'), SOON).toBe(true)
          return { answer }
        },
      }
      servers.push(server)
      return server
    },
    letGo: (fence) => writeFileSync(`${gate}-${fence}`, ''),
    effectsOf: (key) =>
      servers
        .flatMap(({ told }) => told(key).flatMap((line) => (line.tells === 'effect' ? [line.fence] : [])))
        .sort(),
    async close() {
      await Promise.all(servers.map((server) => server.kill()))
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

function linesOf(file: string): readonly HeldServerLine[] {
  // The last line may be half written.
  const whole = readFileSync(file, 'utf8').split('\n').slice(0, -1)
  return whole.map((line) => JSON.parse(line) as HeldServerLine)
}

/** The tables that `transaction()` of a held server writes to, and the records, in a database that they may be made in. */
export interface HeldTables {
  /** The fences under which a key's effect was committed, in order. */
  effectsOf(key: string): Promise<readonly number[]>
  /** How often the row that every run locks was changed. */
  changesOf(row: string): Promise<number>
  addRow(row: string): Promise<void>
  /** What the record of a key says. */
  recordOf(key: string): Promise<{ readonly status: string; readonly fence: number; readonly body: string }>
  close(): Promise<void>
}

/** Makes the tables, where they are not there already. */
export async function heldTables(url: string): Promise<HeldTables> {
  const pool = new Pool({ connectionString: url, max: 2 })
  pool.on('error', () => {})
  await postgresStore(pool).migrate()
  await pool.query(`
    create table if not exists held_effects (key text not null, fence int not null);
    create table if not exists held_rows (name text primary key, changes int not null default 0);
  `)
  return {
    async effectsOf(key) {
      const { rows } = await pool.query<{ fence: number }>(
        'select fence from held_effects where key = $1 order by fence',
        [key],
      )
      return rows.map(({ fence }) => fence)
    },
    async changesOf(row) {
      const { rows } = await pool.query<{ changes: number }>(
        'select changes from held_rows where name = $1',
        [row],
      )
      return rows[0]?.changes ?? 0
    },
    async addRow(row) {
      await pool.query('insert into held_rows (name) values ($1)', [row])
    },
    async recordOf(key) {
      const { rows } = await pool.query<{ status: string; fence: number; body: string }>(
        `select status, fence::int as fence, convert_from(body, 'utf8') as body from oncekey_records where key = $1`,
        [key],
      )
      return rows[0] ?? expect.fail(`there is no record of ${key}`)
    },
    close: () => pool.end(),
  }
}
