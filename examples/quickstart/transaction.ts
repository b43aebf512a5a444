import Fastify from 'fastify'
import idempotency from 'oncekey/fastify'
import { postgresStore } from 'oncekey/postgres'
import { Pool } from 'pg'

const pool = new Pool()
const store = postgresStore(pool)
await store.migrate()

const app = Fastify()
await app.register(idempotency, { store, scope: (request) => String(request.headers['x-account'] ?? '') })

app.post('/transfers', { config: { idempotency: { required: true, atomic: true } } }, (request, reply) =>
  request.idempotency.transaction(async (tx) => {
    const { rows } = await tx.query('insert into transfers (amount) values ($1) returning id', [500])
    reply.code(201)
    return { id: rows[0].id, status: 'accepted' }
  }),
)

await app.listen({ port: 3000 })
