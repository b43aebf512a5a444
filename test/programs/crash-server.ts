import { createInterface } from 'node:readline'
import Fastify from 'fastify'
import type { IdempotencyStore } from 'oncekey'
import idempotency from 'oncekey/fastify'
import { postgresStore } from 'oncekey/postgres'
import { redisStore } from 'oncekey/redis'
import { Pool } from 'pg'
import { MODES, type Mode } from '../crash/modes.js'
import { addRoute } from '../crash/routes.js'

/** How a server of the crash test is set up: the first argument, as JSON. */
export interface CrashServerOptions {
  readonly seed: string
  readonly modes: readonly Mode[]
  readonly leaseMs: number
  readonly storeTimeoutMs: number
  readonly postgresUrl: string
  readonly redisUrl: string
  readonly providerUrl: string
}

/** What a server is told, as one line of JSON, when it is its turn to serve. Until then it only is ready to. */
export interface CrashServerTurn {
  readonly name: string
  readonly port: number
}

/** What a server tells, as lines of JSON. */
export type CrashServerLine =
  | { readonly tells: 'ready' | 'serving' }
  | {
      readonly tells: 'event'
      readonly at: number
      readonly type: string
      readonly key: string
      /** The record's name in the store. */
      readonly id: string
      readonly fence?: number
      readonly detail?: string
    }

const options = JSON.parse(process.argv[2] ?? '{}') as CrashServerOptions
const UNTOLD = new Set(['replayed', 'in-progress', 'mismatch', 'unknown', 'waited'])
const RETRY_PORT_MS = 20
/** A line that fits into a pipe at once is written whole, or not at all. */
const LONGEST_DETAIL = 300

tell({ tells: 'ready' })
const lines = createInterface(process.stdin)
// Whoever started this program has gone.
lines.once('close', () => process.exit())
const turn = await new Promise<CrashServerTurn>((resolve) => {
  lines.once('line', (line) => resolve(JSON.parse(line) as CrashServerTurn))
})
await serve(turn)
tell({ tells: 'serving' })

async function serve({ name, port }: CrashServerTurn): Promise<void> {
  const app = Fastify()
  const pool = new Pool({ connectionString: options.postgresUrl, max: 10 })
  // A pool without a listener ends the process when an idle connection breaks.
  pool.on('error', (error) => console.error(`server ${name}: an idle connection broke: ${error.message}`))
  const handlers = { running: 0 }
  app.get('/running', () => handlers)

  for (const kind of ['postgres', 'redis'] as const) {
    const modes = options.modes.filter((mode) => MODES[mode].store === kind)
    if (modes.length === 0) continue
    const store = await openStore(kind, pool)
    await app.register(async (context) => {
      await context.register(idempotency, {
        store,
        scope: 'shared',
        lease: options.leaseMs,
        storeTimeout: options.storeTimeoutMs,
        secret: 'a secret of the crash test',
      })
      context.idempotency.on((event) => {
        if (!('operation' in event) || UNTOLD.has(event.type)) return
        const { key, id } = event.operation
        tell({
          tells: 'event',
          at: Date.now(),
          type: event.type,
          key,
          id,
          ...('fence' in event && { fence: event.fence }),
          ...detailOf(event),
        })
      })
      for (const mode of modes) addRoute(context, mode, { options, pool, server: name }, handlers)
    })
  }
  await listen(app, port)
}

async function openStore(kind: 'postgres' | 'redis', pool: Pool): Promise<IdempotencyStore> {
  if (kind === 'postgres') {
    // A prepared claim is another statement: some processes send one, some the other, for the same keys.
    const store = postgresStore(pool, { prepare: process.pid % 2 === 0 })
    await store.migrate()
    return store
  }
  // Only where it is needed: it takes a good part of the time that a start takes.
  const { Redis } = await import('ioredis')
  const redis = new Redis(options.redisUrl)
  redis.on('error', (error) => console.error(`the connection to Redis failed: ${error.message}`))
  return redisStore(redis)
}

/** The one before this one has been killed, and its port may not be free yet. */
async function listen(app: ReturnType<typeof Fastify>, port: number): Promise<void> {
  await app.ready()
  for (;;) {
    try {
      await app.listen({ port, host: '127.0.0.1' })
      return
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error
      await new Promise((resolve) => setTimeout(resolve, RETRY_PORT_MS))
    }
  }
}

function detailOf(event: object): { readonly detail?: string } {
  if ('error' in event) return { detail: String(event.error).slice(0, LONGEST_DETAIL) }
  if ('why' in event) return { detail: String(event.why) }
  if ('late' in event && event.late === true) return { detail: 'late' }
  return {}
}

/** In one write, which is done when it returns. */
function tell(line: CrashServerLine): void {
  process.stdout.write(`${JSON.stringify(line)}\n`)
}
