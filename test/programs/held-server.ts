import { appendFileSync, existsSync } from 'node:fs'
import { setTimeout as pause } from 'node:timers/promises'
import Fastify, { type FastifyRequest } from 'fastify'
import { Redis } from 'ioredis'
import idempotency, { type FastifyIdempotencyOptions } from 'oncekey/fastify'
import { postgresStore } from 'oncekey/postgres'
import { redisStore } from 'oncekey/redis'
import { Pool } from 'pg'

/** How a server whose handler can be held is set up: the first argument, as JSON. */
export interface HeldServerOptions {
  readonly store: 'redis' | 'postgres'
  readonly url: string
  /**
   * What the handler does before it is held: writes a line that nothing takes back, or a row in `transaction()`, or calls
   * `downstream` with a derived key.
   */
  readonly way: 'lease' | 'transaction' | 'derived keys'
  /** Where the process tells what it does, a line of JSON each. It outlives the process. */
  readonly told: string
  /** The handler of a run is held, where the request asks for it, until there is a file of this name and its fence. */
  readonly gate: string
  readonly plugin?: Pick<FastifyIdempotencyOptions, 'lease' | 'atomic' | 'transaction' | 'storeTimeout'> & {
    readonly onUnknown?: 'reject' | 'rerun'
  }
  /** Ends sessions of the database that do nothing inside of a transaction. */
  readonly idleInTransactionMs?: number
  /** In `transaction()`, every run changes the same row, which then is locked. */
  readonly locksRow?: string
  readonly downstream?: string
}

/** A line that a held server tells. */
export type HeldServerLine =
  | { readonly tells: 'event'; readonly type: string; readonly key: string; readonly why?: string }
  /** The effect of a run, that it is held now, and that its signal has aborted. */
  | { readonly tells: 'effect' | 'held' | 'aborted'; readonly key: string; readonly fence: number }

const options = JSON.parse(process.argv[2] ?? '{}') as HeldServerOptions
const { idleInTransactionMs } = options
const pool =
  options.store === 'postgres'
    ? new Pool({
        connectionString: options.url,
        max: 10,
        ...(idleInTransactionMs !== undefined && {
          idle_in_transaction_session_timeout: idleInTransactionMs,
        }),
      })
    : undefined
// A pool without a listener ends the process when an idle connection breaks.
pool?.on('error', () => {})
const redis = options.store === 'redis' ? new Redis(options.url, { retryStrategy: () => 50 }) : undefined
redis?.on('error', () => {})

const app = Fastify()
await app.register(idempotency, {
  store: pool !== undefined ? postgresStore(pool) : redisStore(redis as Redis),
  scope: 'shared',
  secret: 'a secret of the tests of held servers',
  replayCache: false,
  ...options.plugin,
})
app.idempotency.on((event) => {
  if (!('operation' in event)) return
  const { key } = event.operation
  tell({ tells: 'event', type: event.type, key, ...('why' in event && { why: event.why }) })
})

app.post('/', async (request, reply) => {
  const { key = '', fence, signal } = request.idempotency
  signal.addEventListener('abort', () => tell({ tells: 'aborted', key, fence }))
  switch (options.way) {
    case 'lease':
      tell({ tells: 'effect', key, fence })
      break
    case 'derived keys':
      await fetch(options.downstream ?? '', {
        method: 'POST',
        headers: { 'idempotency-key': request.idempotency.deriveKey('psp') },
      })
      tell({ tells: 'effect', key, fence })
      break
    case 'transaction':
      return request.idempotency.transaction(async (tx) => {
        await tx.query('insert into held_effects (key, fence) values ($1, $2)', [key, fence])
        if (options.locksRow !== undefined)
          await tx.query('update held_rows set changes = changes + 1 where name = $1', [options.locksRow])
        await beHeld(request)
        reply.code(201)
        return { fence }
      })
  }
  await beHeld(request)
  reply.code(201)
  return { fence }
})

async function beHeld(request: FastifyRequest): Promise<void> {
  const { key = '', fence } = request.idempotency
  if (request.headers['x-hold'] !== String(fence)) return
  tell({ tells: 'held', key, fence })
  while (!existsSync(`${options.gate}-${fence}`)) await pause(5)
}

function tell(line: HeldServerLine): void {
  appendFileSync(options.told, `${JSON.stringify(line)}\n`)
}

const address = await app.listen({ port: 0, host: '127.0.0.1' })
process.stdout.write(`${address}\n`)
