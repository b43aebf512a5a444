import { createHash } from 'node:crypto'
import { Redis } from 'ioredis'
import { Redis as Redis5 } from 'ioredis-5'
import { Pool } from 'pg'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { tableNames } from '../../src/stores/postgres-names.js'
import { createStatements } from '../../src/stores/postgres-statements.js'
import { redisStore } from '../../src/stores/redis.js'
import * as scripts from '../../src/stores/redis-scripts.js'
import type { FaultProxy } from '../../src/testing/test-kit.js'
import { startRedisServer } from './redis-server.js'
import { everyStep } from './store-steps.js'

/** The steps of a store that go over the wire. */
export type WireStep = 'claim' | 'renew' | 'complete' | 'release' | 'find' | 'settle'

/** A server of a store, and the ways to it. */
export interface FaultBackend {
  readonly target: { readonly host: string; readonly port: number }
  /** The store past every proxy. */
  readonly direct: IdempotencyStore
  /** What goes over the wire at each step, and at no other. */
  readonly wire: Readonly<Record<WireStep, string>>
  /** A store whose client connects through a proxy, set up as `docs/stores.md` advises, but less patient. */
  connect(proxy: FaultProxy): { readonly store: IdempotencyStore; end(): Promise<void> }
  stop(): Promise<void>
}

/** How long the clients wait for a connection that says nothing. Longer than the engine waits for a step. */
const SILENCE_MS = 1000

/** A Redis of its own, since others make the shared one forget its scripts. */
export async function redisBackend(version: 5 | 6): Promise<FaultBackend> {
  const server = await startRedisServer()
  const client = new Redis(server.url)
  const direct = redisStore(client)
  for (const step of everyStep(direct)) await step()
  return {
    target: { host: '127.0.0.1', port: server.port },
    direct,
    wire: {
      claim: sha(scripts.CLAIM),
      renew: sha(scripts.RENEW),
      complete: sha(scripts.COMPLETE),
      release: sha(scripts.RELEASE),
      find: sha(scripts.FIND),
      settle: sha(scripts.SETTLE),
    },
    connect(proxy) {
      const options = { retryStrategy: () => 20, socketTimeout: SILENCE_MS }
      const through = proxy.through(server.url)
      const broken = version === 5 ? new Redis5(through, options) : new Redis(through, options)
      // Faults are what is tested: without a listener, ioredis writes every error to the console.
      broken.on('error', () => {})
      return { store: redisStore(broken), end: async () => broken.disconnect() }
    },
    async stop() {
      client.disconnect()
      await server.stop()
    },
  }
}

/** The shared Postgres. */
export async function postgresBackend(url: string): Promise<FaultBackend> {
  const pool = new Pool({ connectionString: url, max: 4 })
  const direct = postgresStore(pool)
  await direct.migrate()
  const { claim, steps, find, settleByOutcome } = createStatements(tableNames())
  const { renew, complete, release } = steps
  const { hostname, port } = new URL(url)
  return {
    target: { host: hostname, port: Number(port) },
    direct,
    wire: {
      claim,
      renew: renew.one,
      complete: complete.one,
      release: release.one,
      find,
      settle: settleByOutcome,
    },
    connect(proxy) {
      const broken = new Pool({
        connectionString: proxy.through(url),
        max: 4,
        connectionTimeoutMillis: SILENCE_MS,
      })
      // A pool without a listener ends the process when an idle connection breaks.
      broken.on('error', () => {})
      return { store: postgresStore(broken, { queryTimeout: SILENCE_MS }), end: () => broken.end() }
    },
    stop: () => pool.end(),
  }
}

function sha(script: string): string {
  return createHash('sha1').update(script).digest('hex')
}
