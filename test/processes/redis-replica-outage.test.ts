import { randomUUID } from 'node:crypto'
import Fastify, { type FastifyInstance } from 'fastify'
import { Redis } from 'ioredis'
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import idempotency from '../../src/adapters/fastify.js'
import { recordId } from '../../src/contract/key.js'
import type { IdempotencyEvent } from '../../src/core/events.js'
import { redisStore } from '../../src/stores/redis.js'
import { send } from '../support/fastify-app.js'
import { type Gate, gate } from '../support/gate.js'
import type { RedisServer } from '../support/redis-server.js'
import { type ReplicatedRedis, startReplicatedRedis } from '../support/redis-topologies.js'
import { describeWith } from '../support/services.js'

const patience = { timeout: 60_000, interval: 20 }

vi.setConfig({ testTimeout: 120_000 })

describeWith(['redis-topologies'], 'an outage of the replica that waitReplicas asks for', () => {
  let redis: ReplicatedRedis
  let replica: RedisServer
  let client: Redis
  let app: FastifyInstance
  let events: IdempotencyEvent[]
  let started: Gate
  let finish: Gate
  let effects: number
  beforeEach(async () => {
    redis = await startReplicatedRedis({ replicas: 1 })
    replica = redis.replicas[0] ?? expect.fail()
    client = new Redis(redis.master.port)
    started = gate()
    finish = gate()
    effects = 0
    app = await serve()
    events = []
    app.idempotency.on((event) => events.push(event))
  })
  afterEach(async () => {
    replica.resume()
    await app.close()
    client.disconnect()
    await redis.stop()
  })

  async function serve(): Promise<FastifyInstance> {
    const server = Fastify()
    const store = redisStore(client, { waitReplicas: { count: 1, timeout: '1s' } })
    await server.register(idempotency, { store, scope: 'shared', storeTimeout: '10s' })
    server.post('/', async (_request, reply) => {
      effects += 1
      started.open()
      await finish.opened
      return reply.code(201).send({ effects })
    })
    await server.ready()
    return server
  }

  function recordOf(key: string): string {
    return `oncekey:${recordId({ namespace: '', scope: 'shared', key })}`
  }

  it('at the claim is a 503: nothing runs, and the claim is given back while the replica is still away', async () => {
    const key = randomUUID()
    finish.open()
    replica.pause()
    expect(await send(app, '/', { key })).toMatchObject({
      status: 503,
      code: 'IDEMPOTENCY_STORE_UNAVAILABLE',
    })
    expect(events).toContainEqual(
      expect.objectContaining({
        type: 'claim-abandoned',
        error: expect.objectContaining({
          cause: new Error('0 of 1 replicas have the record after 1000 ms'),
        }),
      }),
    )
    await expect.poll(() => client.exists(recordOf(key)), patience).toBe(0)
    expect(effects).toBe(0)
    replica.resume()
    await expect.poll(async () => (await send(app, '/', { key })).status, patience).toBe(201)
    expect(await send(app, '/', { key })).toMatchObject({ status: 201, isReplay: true })
    expect(effects).toBe(1)
  })

  it('at the completion lets the answer go, and saves it until the replica has it', async () => {
    const key = randomUUID()
    const first = send(app, '/', { key })
    await started.opened
    replica.pause()
    finish.open()
    const answer = await first
    expect(answer).toMatchObject({ status: 201, isReplay: false })
    const typesSeen = () => events.map(({ type }) => type)
    expect(typesSeen()).toContain('save-failed')
    // The first caller has its answer, and so has whoever asks another process.
    const other = await serve()
    expect(await send(other, '/', { key })).toMatchObject({
      status: 201,
      isReplay: true,
      bytes: answer.bytes,
    })
    await other.close()
    expect(typesSeen()).not.toContain('completed')
    replica.resume()
    await expect.poll(typesSeen, patience).toContain('completed')
    expect(events).toContainEqual(expect.objectContaining({ type: 'completed', late: true }))
    const onReplica = new Redis(replica.port)
    expect(await onReplica.get(recordOf(key))).toMatch(/^1C/)
    onReplica.disconnect()
    expect(effects).toBe(1)
  })
})
