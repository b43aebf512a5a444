import cors from '@fastify/cors'
import Fastify from 'fastify'
import { memoryStore } from 'oncekey'
import idempotency from 'oncekey/fastify'

export const app = Fastify({ forceCloseConnections: true })
await app.register(cors, {
  origin: ['https://shop.example', 'https://admin.example'],
  methods: ['GET', 'HEAD', 'POST', 'PATCH'],
  allowedHeaders: ['authorization', 'content-type', 'idempotency-key'],
  exposedHeaders: ['idempotent-replayed', 'retry-after'],
  maxAge: 600,
})
await app.register(idempotency, {
  store: memoryStore(), // one of a server, as soon as there are two processes
  scope: (request) => request.headers.authorization ?? '', // who the caller is, once you have authenticated it
  required: true,
})

let payments = 0
app.post('/payments', (_request, reply) => reply.code(201).send({ id: `p-${++payments}` }))
