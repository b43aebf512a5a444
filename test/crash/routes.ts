import { randomUUID } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'
import type { FastifyInstance, FastifyReply, FastifyRequest, RouteHandlerMethod } from 'fastify'
import type { FastifyRouteIdempotency } from 'oncekey/fastify'
import type { Pool, PoolClient } from 'pg'
import type { CrashServerOptions } from '../programs/crash-server.js'
import { type Mode, movesMoney } from './modes.js'
import { type Random, seededRandom } from './random.js'

/** What a client asks for, in every mode. */
export interface OperationBody {
  readonly from: string
  readonly to: string
  readonly amount: number
}

/** What a success answers with. `receipt` is new in every run: two runs never give the same answer. */
export interface Receipt {
  readonly receipt: string
  readonly fence: number
  readonly amount: number
}

/** What the handlers need. */
export interface RouteParts {
  readonly options: CrashServerOptions
  readonly pool: Pool
  /** Which of the servers this is. */
  readonly server: string
}

/** One run of a handler. */
interface Run {
  readonly mode: Mode
  readonly key: string
  readonly fence: number
  readonly server: string
  readonly body: OperationBody
  readonly random: Random
  /** Waits for nothing, a little, or now and then for longer than a lease. */
  readonly hesitate: () => Promise<void>
}

/** How long a statement of a transfer waits for a lock. A stopped server keeps the ones it has. */
const LOCK_TIMEOUT_MS = 300

const FAILS_ONCE_IN = 25

/** Adds the route of a mode. `handlers.running` counts what has not ended, whether a client waits for it or not. */
export function addRoute(
  app: FastifyInstance,
  mode: Mode,
  parts: RouteParts,
  handlers: { running: number },
): void {
  const act = actOf(mode, parts)
  const handler: RouteHandlerMethod = async (request, reply) => {
    handlers.running += 1
    try {
      return await act(runOf(mode, request, parts), request, reply)
    } finally {
      handlers.running -= 1
    }
  }
  const config = { idempotency: { required: true, ...policyOf(mode) } }
  app.post(`/${mode}`, { config, schema: { response: { 201: RECEIPT_SCHEMA } } }, handler)
}

/** Anything else is stripped: what is kept and what is sent must both have been serialised by it. */
const RECEIPT_SCHEMA = {
  type: 'object',
  properties: { receipt: { type: 'string' }, fence: { type: 'integer' }, amount: { type: 'integer' } },
} as const

function policyOf(mode: Mode): FastifyRouteIdempotency {
  if (mode === 'reject' || mode === 'redis-reject') return { onUnknown: 'reject' }
  if (mode === 'rerun' || mode === 'redis-rerun') return { onUnknown: 'rerun' }
  const isolation = mode === 'serializable' ? mode : 'read committed'
  return { atomic: true, transaction: { isolation, lockTimeout: LOCK_TIMEOUT_MS } }
}

type Act = (run: Run, request: FastifyRequest, reply: FastifyReply) => Promise<unknown>

function actOf(mode: Mode, { options, pool }: RouteParts): Act {
  if (mode === 'save-in') return (run, request, reply) => saveIn(run, pool, request, reply)
  if (movesMoney(mode)) return inTransaction
  if (mode === 'rerun' || mode === 'redis-rerun')
    return (run, request, reply) => charge(run, options.providerUrl, request, reply)
  return (run, _request, reply) => haveEffect(run, pool, reply)
}

function runOf(mode: Mode, request: FastifyRequest, { options, server }: RouteParts): Run {
  const { key = '', fence } = request.idempotency
  // What a handler does differs between attempts: one that failed must not fail for ever.
  const random = seededRandom(`${options.seed}/${key}/${fence}/${String(request.headers['x-attempt'])}`)
  const body = request.body as OperationBody
  return { mode, key, fence, server, body, random, hesitate: () => hesitate(random, options.leaseMs) }
}

async function hesitate(random: Random, leaseMs: number): Promise<void> {
  const luck = random.next()
  if (luck < 0.01) await pause(leaseMs * random.between(1, 1.5))
  else if (luck < 0.1) await pause(random.between(50, 200))
  else if (luck < 0.8) await pause(random.between(0, 30))
}

/** An effect that nothing takes back: a statement that commits by itself. */
async function haveEffect(run: Run, pool: Pool, reply: FastifyReply): Promise<Receipt> {
  const receipt = newReceipt(run)
  await run.hesitate()
  await pool.query('insert into effects (key, mode, fence, server, receipt) values ($1, $2, $3, $4, $5)', [
    run.key,
    run.mode,
    run.fence,
    run.server,
    receipt.receipt,
  ])
  await run.hesitate()
  reply.code(201)
  return receipt
}

/** An effect elsewhere, under a key that is the same in every run. */
async function charge(
  run: Run,
  providerUrl: string,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<Receipt> {
  await run.hesitate()
  const answer = await fetch(`${providerUrl}/charges`, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      'idempotency-key': request.idempotency.deriveKey('psp'),
    },
    body: JSON.stringify({ for: run.key, mode: run.mode, fence: run.fence, server: run.server }),
  })
  if (answer.status !== 201) throw new Error(`The provider answered ${answer.status}`)
  const { charge: id } = (await answer.json()) as { readonly charge: string }
  await run.hesitate()
  reply.code(201)
  return { ...newReceipt(run), receipt: `${id} ${randomUUID()}` }
}

async function inTransaction(
  run: Run,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<Receipt | Refusal> {
  return request.idempotency.transaction(async (tx) => {
    const ended = await transfer(run, tx)
    reply.code('refusal' in ended ? 402 : 201)
    return ended
  })
}

/** The handler's own transaction, as with an ORM. */
async function saveIn(
  run: Run,
  pool: Pool,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<Receipt | Refusal> {
  const connection = await pool.connect()
  let broken: Error | undefined
  const onBroken = (error: Error): void => {
    broken = error
  }
  connection.on('error', onBroken)
  try {
    await connection.query(`begin; set local lock_timeout = ${LOCK_TIMEOUT_MS}`)
    const ended = await transfer(run, connection)
    if ('refusal' in ended) {
      await connection.query('rollback')
      reply.code(402)
      return ended
    }
    await request.idempotency.saveIn((text, values) => connection.query(text, values), {
      status: 201,
      body: ended,
    })
    await run.hesitate()
    await connection.query('commit')
    reply.code(201)
    return ended
  } catch (error) {
    await rollBack(connection, (failure) => {
      broken = failure
    })
    throw error
  } finally {
    connection.off('error', onBroken)
    connection.release(broken)
  }
}

async function rollBack(connection: PoolClient, onFailure: (error: Error) => void): Promise<void> {
  try {
    await connection.query('rollback')
  } catch (error) {
    // A connection that cannot roll back is closed, and then the server rolls back.
    onFailure(error instanceof Error ? error : new Error(String(error)))
  }
}

interface Refusal {
  readonly refusal: string
}

interface Statements {
  query(text: string, values?: unknown[]): Promise<{ readonly rows: unknown[] }>
}

/** Moves money, refuses where there is not enough, and now and then fails in the middle. */
async function transfer(run: Run, tx: Statements): Promise<Receipt | Refusal> {
  const { from, to, amount } = run.body
  const receipt = newReceipt(run)
  await run.hesitate()
  const hasEnough = run.mode === 'serializable' ? await takeByReading(run, tx) : await take(run, tx)
  if (!hasEnough) return { refusal: `${from} has less than ${amount}` }
  if (run.random.chance(1 / FAILS_ONCE_IN)) throw new Error('The application failed, as it now and then does')
  await run.hesitate()
  await tx.query('update accounts set balance = balance + $2 where id = $1', [to, amount])
  await tx.query(
    'insert into transfers (key, mode, fence, server, receipt, payer, payee, amount) values ($1, $2, $3, $4, $5, $6, $7, $8)',
    [run.key, run.mode, run.fence, run.server, receipt.receipt, from, to, amount],
  )
  await run.hesitate()
  return receipt
}

async function take({ body: { from, amount } }: Run, tx: Statements): Promise<boolean> {
  const { rows } = await tx.query(
    'update accounts set balance = balance - $2 where id = $1 and balance >= $2 returning id',
    [from, amount],
  )
  return rows.length === 1
}

/** Right only where the isolation keeps others from writing between the two statements. */
async function takeByReading({ body: { from, amount }, hesitate }: Run, tx: Statements): Promise<boolean> {
  const { rows } = await tx.query('select balance::int as balance from accounts where id = $1', [from])
  const { balance } = rows[0] as { readonly balance: number }
  if (balance < amount) return false
  await hesitate()
  await tx.query('update accounts set balance = $2 where id = $1', [from, balance - amount])
  return true
}

function newReceipt({ fence, body: { amount } }: Run): Receipt {
  return { receipt: randomUUID(), fence, amount }
}
