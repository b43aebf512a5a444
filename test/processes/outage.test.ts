import { randomUUID } from 'node:crypto'
import Fastify, { type FastifyInstance } from 'fastify'
import { Redis } from 'ioredis'
import { Pool } from 'pg'
import { afterEach, beforeEach, expect, it } from 'vitest'
import idempotency from '../../src/adapters/fastify.js'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { redisStore } from '../../src/stores/redis.js'
import { send } from '../support/fastify-app.js'
import { type Gate, gate } from '../support/gate.js'
import { startPostgresServer } from '../support/postgres-server.js'
import { startRedisServer } from '../support/redis-server.js'
import { describeWith } from '../support/services.js'

interface Backend {
  readonly store: IdempotencyStore
  readonly server: { pause(): void; resume(): void; stop(): Promise<void> }
  disconnect(): Promise<void>
}

const BACKENDS = {
  async redis(): Promise<Backend> {
    const server = await startRedisServer()
    const client = new Redis(server.url, { retryStrategy: () => 50 })
    // An outage is what is tested here: without a listener, ioredis writes every error to the console.
    client.on('error', () => {})
    return {
      store: redisStore(client),
      server,
      async disconnect() {
        client.disconnect()
      },
    }
  },
  async postgres(): Promise<Backend> {
    const server = await startPostgresServer()
    const pool = new Pool({ connectionString: server.url, max: 4 })
    // A pool without a listener ends the process when an idle connection breaks.
    pool.on('error', () => {})
    const store = postgresStore(pool)
    await store.migrate()
    return { store, server, disconnect: () => pool.end() }
  },
}

const STORE_TIMEOUT_MS = 300
/** A busy machine may be late by this much, and an answer still counts as given in time. */
const LATENESS_MS = 500

for (const name of ['redis', 'postgres'] as const) {
  describeWith([name], `an outage of ${name}`, () => {
    let backend: Backend
    let app: FastifyInstance
    let started: Gate
    let finish: Gate
    let effects: number
    beforeEach(async () => {
      backend = await BACKENDS[name]()
      started = gate()
      finish = gate()
      effects = 0
      app = Fastify()
      const { store } = backend
      await app.register(idempotency, { store, scope: 'shared', storeTimeout: STORE_TIMEOUT_MS })
      app.post('/', async (_request, reply) => {
        effects += 1
        started.open()
        await finish.opened
        return reply.code(201).send({ effects })
      })
      await app.ready()
    })
    afterEach(async () => {
      backend.server.resume()
      await app.close()
      await backend.server.stop().catch(() => {})
      await backend.disconnect()
    })

    async function refusedInTime(key: string): Promise<void> {
      const startedAt = performance.now()
      const answer = await send(app, '/', { key })
      expect(answer).toMatchObject({ status: 503, code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
      expect(performance.now() - startedAt).toBeLessThan(STORE_TIMEOUT_MS + LATENESS_MS)
      expect(effects).toBe(0)
    }

    it('at the claim is a 503 within the timeout, and nothing runs until it is back', async () => {
      const key = randomUUID()
      finish.open()
      backend.server.pause()
      await refusedInTime(key)
      await refusedInTime(key)
      backend.server.resume()
      await expect
        .poll(async () => (await send(app, '/', { key })).status, { timeout: 15_000, interval: 50 })
        .toBe(201)
      expect(await send(app, '/', { key })).toMatchObject({ status: 201, isReplay: true })
      expect(effects).toBe(1)
    })

    it('that ended its server is a 503 within the timeout, and nothing runs', async () => {
      await backend.server.stop()
      await refusedInTime(randomUUID())
      await refusedInTime(randomUUID())
    })

    it('at the completion lets the client have its answer, and the record is saved when it is back', async () => {
      const key = randomUUID()
      const first = send(app, '/', { key })
      await started.opened
      backend.server.pause()
      finish.open()
      const answer = await first
      expect(answer).toMatchObject({ status: 201, isReplay: false })
      backend.server.resume()
      await expect
        .poll(() => send(app, '/', { key }), { timeout: 15_000, interval: 50 })
        .toMatchObject({ status: 201, isReplay: true, bytes: answer.bytes })
      expect(effects).toBe(1)
    })
  })
}
