import { randomUUID } from 'node:crypto'
import Fastify, { type FastifyInstance } from 'fastify'
import idempotency from 'oncekey/fastify'
import { postgresStore } from 'oncekey/postgres'
import { Pool, type PoolClient } from 'pg'

/** Which server to run: the first argument, as JSON. */
export interface TransactionServerOptions {
  readonly variant: 'ours' | 'by hand'
  readonly prepare: boolean
  readonly postgresUrl: string
  readonly connections: number
}

const { variant, prepare, postgresUrl, connections } = JSON.parse(
  process.argv[2] ?? '{}',
) as TransactionServerOptions
const ACCOUNTS = 10_000

const pool = new Pool({ connectionString: postgresUrl, max: connections })
await pool.query(`
  create table if not exists accounts (id int primary key, balance bigint not null);
  insert into accounts select id, 1000000 from generate_series(1, ${ACCOUNTS}) id on conflict do nothing;
  create table if not exists transfers (id uuid primary key, payer int not null, payee int not null, amount int not null);
  create table if not exists claims (key text primary key, fingerprint text not null, status int, body text);
`)

/** The statements of a transfer, prepared or not as the rest is. */
async function transfer(tx: PoolClient): Promise<{ readonly id: string; readonly status: string }> {
  const id = randomUUID()
  const payer = 1 + Math.floor(Math.random() * ACCOUNTS)
  const payee = 1 + Math.floor(Math.random() * ACCOUNTS)
  // In one order, so that two transfers never wait for each other.
  const steps = [
    { account: payer, change: -500 },
    { account: payee, change: 500 },
  ].sort((a, b) => a.account - b.account)
  for (const { account, change } of steps)
    await query(tx, 'change', 'update accounts set balance = balance + $2 where id = $1', [account, change])
  await query(tx, 'record', 'insert into transfers (id, payer, payee, amount) values ($1, $2, $3, 500)', [
    id,
    payer,
    payee,
  ])
  return { id, status: 'accepted' }
}

function query(tx: PoolClient, name: string, text: string, values: unknown[]) {
  return tx.query(prepare ? { name, text, values } : { text, values })
}

async function ours(): Promise<FastifyInstance> {
  const store = postgresStore(pool, { prepare })
  await store.migrate()
  const app = Fastify()
  await app.register(idempotency, { store, scope: 'shared' })
  app.post('/', { config: { idempotency: { atomic: true } } }, (request, reply) =>
    request.idempotency.transaction(async (tx: PoolClient) => {
      reply.code(201)
      return transfer(tx)
    }),
  )
  return app
}

/** The least that somebody would write by hand: a claim row in the same transaction, and the answer in it. */
async function byHand(): Promise<FastifyInstance> {
  const app = Fastify()
  app.post('/', async (request, reply) => {
    const key = String(request.headers['idempotency-key'])
    const tx = await pool.connect()
    try {
      await tx.query('begin')
      const claimed = await query(
        tx,
        'claim',
        'insert into claims (key, fingerprint) values ($1, $2) on conflict do nothing',
        [key, JSON.stringify(request.body)],
      )
      if (claimed.rowCount === 0) {
        const { rows } = await query(tx, 'replay', 'select status, body from claims where key = $1', [key])
        await tx.query('commit')
        const { status, body } = rows[0] as { status: number; body: string }
        return reply.code(status).type('application/json').header('idempotent-replayed', 'true').send(body)
      }
      const body = JSON.stringify(await transfer(tx))
      await query(tx, 'keep', 'update claims set status = 201, body = $2 where key = $1', [key, body])
      await tx.query('commit')
      return reply.code(201).type('application/json').send(body)
    } catch (error) {
      await tx.query('rollback')
      throw error
    } finally {
      tx.release()
    }
  })
  return app
}

const app = variant === 'ours' ? await ours() : await byHand()
process.stdout.write(`${await app.listen({ port: 0, host: '127.0.0.1' })}\n`)
