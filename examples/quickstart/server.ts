import Fastify from 'fastify'
import { Redis } from 'ioredis'
import idempotency from 'oncekey/fastify'
import { redisStore } from 'oncekey/redis'

const app = Fastify()
await app.register(idempotency, {
  store: redisStore(new Redis({ socketTimeout: 5000 })),
  scope: (request) => String(request.headers['x-account'] ?? ''), // who the caller is, once you have authenticated it
  ttl: '24h',
})

app.post('/payments', { config: { idempotency: { required: true, ttl: '7d' } } }, async (_request, reply) => {
  return reply.code(201).send({ id: 'p-1', status: 'accepted' })
})
app.post('/search', { config: { idempotency: false } }, () => [])

await app.listen({ port: 3000 })
