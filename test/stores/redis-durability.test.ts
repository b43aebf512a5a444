import { randomUUID } from 'node:crypto'
import { Redis } from 'ioredis'
import { Redis as Redis5 } from 'ioredis-5'
import { afterAll, afterEach, beforeAll, expect, inject, it, vi } from 'vitest'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { type RedisStoreOptions, redisStore, type WaitReplicas } from '../../src/stores/redis.js'
import { storeContract } from '../../src/testing/store-contract.js'
import { aClaim, anOutcome, HOUR, lapsed } from '../../src/testing/store-fixtures.js'
import { type RedisServer, startRedisServer } from '../support/redis-server.js'
import {
  type ReplicatedRedis,
  startReplicatedRedis,
  startWatchedRedis,
  type WatchedRedis,
} from '../support/redis-topologies.js'
import { describeWith } from '../support/services.js'
import { checkStoreModel } from '../support/store-model.js'
import { everyStep } from '../support/store-steps.js'

/** For replicas that are there, however busy the machine is. */
const PATIENT: WaitReplicas = { count: 1, timeout: '30s' }
/** For replicas that are not. */
const BRIEF: WaitReplicas = { count: 1, timeout: '200ms' }
const TOO_FEW = /^0 of 1 replicas/

vi.setConfig({ testTimeout: 120_000 })

describeWith(['redis'], 'redisStore › waitReplicas', () => {
  const client = new Redis(inject('services').redisUrl, { lazyConnect: true })

  it.each([
    ['true', true, 'option "waitReplicas" must be { count, timeout }; got true'],
    ['null', null, 'option "waitReplicas" must be { count, timeout }; got null'],
    ['no count', { timeout: '1s' }, 'option "waitReplicas.count" must be a whole number of at least 1'],
    ['a count of 0', { count: 0 }, 'option "waitReplicas.count" must be a whole number of at least 1; got 0'],
    ['half a replica', { count: 0.5 }, 'got 0.5'],
    ['a count in text', { count: '1' }, 'got 1'],
    ['no end of waiting', { count: 1, timeout: 0 }, 'option "waitReplicas.timeout" must be a duration'],
    ['less than a millisecond', { count: 1, timeout: '0.4ms' }, 'from 1ms to 1m; got 0.4ms'],
    ['more than a minute', { count: 1, timeout: '61s' }, 'from 1ms to 1m; got 61s'],
    ['no duration', { count: 1, timeout: 'soon' }, "such as '500ms', from 1ms to 1m; got soon"],
  ])('refuses %s', (_, waitReplicas, message) => {
    const options = { waitReplicas } as unknown as RedisStoreOptions
    expect(() => redisStore(client, options)).toThrow(
      expect.objectContaining({
        code: 'IDEMPOTENCY_OPTIONS_INVALID',
        message: expect.stringContaining(message),
      }),
    )
  })

  it('refuses a client without pipelines', () => {
    const bare = { callBuffer: async () => 0, info: async () => '', config: async () => [] }
    expect(() => redisStore(bare, { waitReplicas: { count: 1 } })).toThrow(/pipelines/)
    expect(() => redisStore(bare)).not.toThrow()
  })
})

describeWith(['redis-topologies'], 'redisStore with a replica', () => {
  let redis: ReplicatedRedis
  let replica: RedisServer
  let client: Redis
  let admin: Redis
  let patient: IdempotencyStore
  let brief: IdempotencyStore
  beforeAll(async () => {
    redis = await startReplicatedRedis({ replicas: 1 })
    replica = redis.replicas[0] ?? expect.fail()
    client = new Redis(redis.master.port)
    admin = new Redis(redis.master.port)
    patient = redisStore(client, { waitReplicas: PATIENT })
    brief = redisStore(client, { waitReplicas: BRIEF })
  })
  afterEach(async () => {
    replica.resume()
    await caughtUp()
  })
  afterAll(async () => {
    client.disconnect()
    admin.disconnect()
    await redis.stop()
  })

  /** Resolves when the replica has everything. */
  async function caughtUp(): Promise<void> {
    await expect.poll(() => admin.wait(1, 1000), { timeout: 60_000 }).toBe(1)
  }

  async function waits(): Promise<number> {
    return Number(/cmdstat_wait:calls=(\d+)/.exec(await admin.info('commandstats'))?.[1] ?? 0)
  }

  async function changes(): Promise<number> {
    return Number(/rdb_changes_since_last_save:(\d+)/.exec(await admin.info('persistence'))?.[1])
  }

  async function isWaiting(): Promise<boolean> {
    return (await admin.info('clients')).includes('blocked_clients:1')
  }

  it.each(storeContract)('$name', async ({ run }) => {
    await run(patient)
  })

  it.each(storeContract)('$name (ioredis 5)', async ({ run }) => {
    const older = new Redis5(redis.master.port)
    try {
      await run(redisStore(older, { waitReplicas: PATIENT }))
    } finally {
      older.disconnect()
    }
  })

  it('follows the model through any interleaving of clients', async () => {
    const createStore = () => redisStore(client, { prefix: `${randomUUID()}:`, waitReplicas: PATIENT })
    await checkStoreModel(createStore, { numRuns: 10 })
  })

  it('makes one round trip a step, and asks for replicas where a loss would matter', async () => {
    const sent: string[] = []
    const counting = {
      info: client.info.bind(client),
      config: client.config.bind(client),
      callBuffer(command: string, args: (string | Buffer | number)[]) {
        sent.push(command)
        return client.callBuffer(command, args)
      },
      pipeline() {
        const pipeline = client.pipeline()
        const commands: string[] = []
        return {
          callBuffer(command: string, args: (string | Buffer | number)[]) {
            commands.push(command)
            return pipeline.callBuffer(command, args)
          },
          exec() {
            sent.push(commands.join(' '))
            return pipeline.exec()
          },
        }
      },
    }
    const steps = everyStep(redisStore(counting, { waitReplicas: PATIENT }))
    for (const step of steps) await step()
    sent.length = 0
    for (const step of steps) await step()
    const [durable, plain] = ['evalsha wait', 'evalsha']
    //                    claim    renew  find   complete claim    settle   release
    expect(sent).toEqual([durable, plain, plain, durable, durable, durable, plain])
  })

  it('asks once for all steps of a turn', async () => {
    await patient.claim(aClaim())
    const before = await waits()
    const claims = await Promise.all(Array.from({ length: 50 }, () => patient.claim(aClaim())))
    expect(new Set(claims.map(({ status }) => status))).toEqual(new Set(['acquired']))
    expect(await waits()).toBe(before + 1)
  })

  it('has what it acquired, completed and settled on the replica when it says so', async () => {
    const onReplica = new Redis(replica.port)
    for (let round = 0; round < 50; round += 1) {
      const claim = aClaim()
      await patient.claim(claim)
      expect(await onReplica.get(`oncekey:${claim.id}`)).toMatch(/^1R/)
      await patient.complete(claim.id, claim.token, anOutcome(), HOUR)
      expect(await onReplica.get(`oncekey:${claim.id}`)).toMatch(/^1C/)
    }
    const { id } = await lapsed(patient)
    await patient.settle(id, anOutcome(), HOUR)
    expect(await onReplica.get(`oncekey:${id}`)).toMatch(/^1C/)
    onReplica.disconnect()
  })

  it('rejects a claim that too few replicas have, and acquires it when its token asks again', async () => {
    const claim = aClaim()
    replica.pause()
    await expect(brief.claim(claim)).rejects.toThrow(TOO_FEW)
    await expect(brief.claim(claim)).rejects.toThrow(TOO_FEW)
    replica.resume()
    await caughtUp()
    expect(await patient.claim(claim)).toEqual({ status: 'acquired', fence: 1 })
  })

  it('rejects a claim that too few replicas have after the server has forgotten the script', async () => {
    replica.pause()
    await admin.script('FLUSH')
    await expect(brief.claim(aClaim())).rejects.toThrow(TOO_FEW)
  })

  it('rejects a completion that too few replicas have, and keeps it when its token asks again', async () => {
    const claim = aClaim()
    await patient.claim(claim)
    replica.pause()
    await expect(brief.complete(claim.id, claim.token, anOutcome(), HOUR)).rejects.toThrow(TOO_FEW)
    await expect(brief.complete(claim.id, claim.token, anOutcome(), HOUR)).rejects.toThrow(TOO_FEW)
    replica.resume()
    await caughtUp()
    expect(await patient.complete(claim.id, claim.token, anOutcome(), HOUR)).toBe(true)
  })

  it('waits for what an earlier completion wrote when another connection repeats it', async () => {
    const claim = aClaim()
    await patient.claim(claim)
    replica.pause()
    await expect(brief.complete(claim.id, claim.token, anOutcome(), HOUR)).rejects.toThrow(TOO_FEW)
    const other = new Redis(redis.master.port)
    const store = redisStore(other, { waitReplicas: BRIEF })
    const before = await changes()
    await expect(store.complete(claim.id, claim.token, anOutcome(), HOUR)).rejects.toThrow(TOO_FEW)
    // Newer versions of Redis count only from what the connection itself wrote: something it must have written.
    expect(await changes()).toBeGreaterThan(before)
    other.disconnect()
  })

  it('rejects a settlement that too few replicas have', async () => {
    const [kept, removed] = [await lapsed(patient), await lapsed(patient)]
    replica.pause()
    await expect(brief.settle(kept.id, anOutcome(), HOUR)).rejects.toThrow(TOO_FEW)
    await expect(brief.settle(removed.id, 'release', HOUR)).rejects.toThrow(TOO_FEW)
  })

  it('goes on renewing, releasing, reading and answering without the replica', async () => {
    const [running, completed] = [aClaim(), aClaim()]
    for (const claim of [running, completed]) await patient.claim(claim)
    await patient.complete(completed.id, completed.token, anOutcome(), HOUR)
    const unknown = await lapsed(patient)
    replica.pause()
    expect(await brief.renew(running.id, running.token, HOUR)).toBe(true)
    expect(await brief.find(running.id)).toMatchObject({ status: 'running' })
    for (const [{ id }, status] of [
      [running, 'running'],
      [completed, 'completed'],
      [unknown, 'unknown'],
    ] as const)
      expect(await brief.claim(aClaim({ id }))).toMatchObject({ status })
    expect(await brief.complete(unknown.id, running.token, anOutcome(), HOUR)).toBe(false)
    expect(await brief.release(running.id, running.token)).toBe(true)
  })

  it('lets no step wait for more than the one before it, however many there are without the replica', async () => {
    const before = await waits()
    replica.pause()
    const claims: Promise<unknown>[] = []
    const startedAt = performance.now()
    for (let turn = 0; turn < 100; turn += 1) {
      claims.push(expect(brief.claim(aClaim())).rejects.toThrow(TOO_FEW))
      await new Promise((resolve) => setImmediate(resolve))
    }
    await Promise.all(claims)
    // Two waits of 200 ms, where one for each claim would be 20 s.
    expect(performance.now() - startedAt).toBeLessThan(10_000)
    expect((await waits()) - before).toBeLessThan(10)
  })

  it.each([
    ['ioredis 6', () => new Redis(redis.master.port)],
    ['ioredis 5', () => new Redis5(redis.master.port)],
  ])('rejects a step whose connection broke before the replicas had it (%s)', async (_, connect) => {
    const breaking = connect()
    const store = redisStore(breaking, { waitReplicas: PATIENT })
    const claim = aClaim()
    await store.claim(aClaim())
    replica.pause()
    // Counted on the next connection, which has written nothing, every replica would have it.
    const claimed = expect(store.claim(claim)).rejects.toThrow(/connection/i)
    await expect.poll(isWaiting, { timeout: 60_000 }).toBe(true)
    await admin.call('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes')
    await claimed
    expect(await store.find(claim.id)).toMatchObject({ status: 'running' })
    breaking.disconnect()
  })

  it('goes on after a client that drops what it had sent when its connection breaks', async () => {
    const forgetful = new Redis(redis.master.port, { autoResendUnfulfilledCommands: false })
    const store = redisStore(forgetful, { waitReplicas: { count: 1, timeout: '1s' } })
    await store.claim(aClaim())
    redis.master.pause()
    // It and its WAIT are on their way to a server that does not answer. Nobody ever settles them.
    Promise.resolve(store.claim(aClaim())).catch(() => {})
    await expect.poll(() => forgetful.commandQueue.length).toBe(2)
    forgetful.stream.destroy()
    redis.master.resume()
    expect(await store.claim(aClaim())).toEqual({ status: 'acquired', fence: 1 })
    forgetful.disconnect()
  })

  it('says at start that there are fewer replicas than it is to wait for', async () => {
    const warningsOf = (store: IdempotencyStore) => store.check?.()
    const few = expect.stringContaining('waitReplicas asks for 2, and a master of Redis has 1')
    expect(await warningsOf(redisStore(client, { waitReplicas: { count: 2 } }))).toContainEqual(few)
    expect(await warningsOf(redisStore(client, { waitReplicas: { count: 1 } }))).not.toContainEqual(few)
  })
})

describeWith(['redis-topologies'], 'redisStore on a master that Sentinels watch', () => {
  let redis: WatchedRedis
  let client: Redis
  beforeAll(async () => {
    redis = await startWatchedRedis()
    client = new Redis({ ...redis.address, socketTimeout: 60_000 })
  })
  afterAll(async () => {
    client.disconnect()
    await redis.stop()
  })

  it.each(storeContract)('$name', async ({ run }) => {
    await run(redisStore(client))
  })

  it.each(storeContract)('$name (with waitReplicas, ioredis 5)', async ({ run }) => {
    const older = new Redis5(redis.address)
    try {
      await run(redisStore(older, { waitReplicas: { count: 2, timeout: '30s' } }))
    } finally {
      older.disconnect()
    }
  })

  it('counts the replicas that have it', async () => {
    const [paused] = redis.replicas
    paused?.pause()
    const store = (count: number) => redisStore(client, { waitReplicas: { count, timeout: '2s' } })
    await expect(store(2).claim(aClaim())).rejects.toThrow('1 of 2 replicas have the record after 2000 ms')
    expect(await store(1).claim(aClaim())).toEqual({ status: 'acquired', fence: 1 })
    paused?.resume()
  })

  it('looks at the master at start', async () => {
    expect(await redisStore(client).check?.()).toEqual([expect.stringContaining('persists nothing')])
    const demanding = redisStore(client, { waitReplicas: { count: 3 } })
    expect(await demanding.check?.()).toContainEqual(expect.stringContaining('has 2'))
  })
})

describeWith(['redis'], 'redisStore on a server with min-replicas-to-write', () => {
  it('refuses what the server refuses to write without its replicas, and keeps nothing', async () => {
    const server = await startRedisServer({ args: ['--min-replicas-to-write', '1'] })
    const client = new Redis(server.url)
    const store = redisStore(client)
    const claim = aClaim()
    await expect(store.claim(claim)).rejects.toThrow(/NOREPLICAS/)
    expect(await store.find(claim.id)).toBeUndefined()
    client.disconnect()
    await server.stop()
  })
})
