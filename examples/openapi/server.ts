import swagger from '@fastify/swagger'
import Fastify from 'fastify'
import { memoryStore } from 'oncekey'
import idempotency, { openApiTransform } from 'oncekey/fastify'

export const app = Fastify()
await app.register(swagger, {
  openapi: { info: { title: 'The bank', version: '1.0.0' } },
  transform: openApiTransform(),
})
await app.register(idempotency, { store: memoryStore(), scope: 'shared' })

app.post('/payments', { config: { idempotency: { required: true } } }, () => ({ id: 'p-1' }))
await app.ready()

export const description = app.swagger()
