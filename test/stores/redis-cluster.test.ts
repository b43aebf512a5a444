import { randomUUID } from 'node:crypto'
import { Cluster } from 'ioredis'
import { Cluster as Cluster5 } from 'ioredis-5'
import { afterAll, afterEach, beforeAll, expect, it, vi } from 'vitest'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { redisStore, type WaitReplicas } from '../../src/stores/redis.js'
import { keySlot } from '../../src/stores/redis-slot.js'
import { storeContract } from '../../src/testing/store-contract.js'
import { aClaim, anId, anOutcome, HOUR } from '../../src/testing/store-fixtures.js'
import { type RedisCluster, type Shard, startRedisCluster, withAdmin } from '../support/redis-topologies.js'
import { retriedOperations } from '../support/retried-operations.js'
import { describeWith } from '../support/services.js'

const PATIENT: WaitReplicas = { count: 1, timeout: '30s' }
const BRIEF: WaitReplicas = { count: 1, timeout: '200ms' }
const TOO_FEW = /^0 of 1 replicas/
/** Where a client may have the prefix of its keys. */
interface Prefixes {
  readonly keyPrefix?: string
  readonly redisOptions?: { readonly keyPrefix: string }
}

const patience = { timeout: 60_000, interval: 20 }

vi.setConfig({ testTimeout: 120_000 })

describeWith(['redis-topologies'], 'redisStore on a cluster of three masters', () => {
  let redis: RedisCluster
  let cluster: Cluster
  beforeAll(async () => {
    redis = await startRedisCluster()
    cluster = await connect()
  })
  afterEach(() => {
    for (const { replicas } of redis.shards) for (const replica of replicas) replica.resume()
  })
  afterAll(async () => {
    cluster.disconnect()
    await redis.stop()
  })

  async function connect(
    options: Prefixes & { readonly slotsRefreshInterval?: number } = {},
  ): Promise<Cluster> {
    const client = new Cluster(redis.startupNodes, { slotsRefreshTimeout: 10_000, ...options })
    // A cluster that does not answer at once is asked again, on a busy machine.
    client.on('error', () => {})
    await new Promise((resolve) => client.once('ready', resolve))
    return client
  }

  function masterOf(client: Cluster, slot: number): Shard {
    const owner = client.slots[slot]?.[0]
    return redis.shards.find(({ master }) => owner === `127.0.0.1:${master.port}`) ?? expect.fail()
  }

  /** A slot without records of other tests, and a prefix whose keys are in it. */
  async function anEmptySlot(): Promise<{ readonly prefix: string; readonly slot: number }> {
    for (;;) {
      const prefix = `{${randomUUID()}}:`
      const slot = keySlot(prefix)
      const { master } = masterOf(cluster, slot)
      const count = await withAdmin(master.port, (admin) => admin.cluster('COUNTKEYSINSLOT', slot))
      if (count === 0) return { prefix, slot }
    }
  }

  it.each(storeContract)('$name', async ({ run }) => {
    await run(redisStore(cluster))
  })

  it.each(storeContract)('$name (with waitReplicas)', async ({ run }) => {
    await run(redisStore(cluster, { waitReplicas: PATIENT }))
  })

  it.each(storeContract)('$name (with waitReplicas, ioredis 5)', async ({ run }) => {
    const older = new Cluster5(redis.startupNodes, { slotsRefreshTimeout: 10_000 })
    try {
      await run(redisStore(older, { waitReplicas: PATIENT }))
    } finally {
      older.disconnect()
    }
  })

  it('knows the slot of a key as the cluster does', async () => {
    const keys = [
      '',
      'oncekey:a',
      anId(),
      'ü漢🚲',
      '{a}b',
      'x{a}',
      '{}a',
      '{}{a}',
      'a{',
      '}a{b}',
      '{a{b}',
      '{a}{b}',
    ]
    for (const key of keys) expect([key, keySlot(key)]).toEqual([key, await cluster.cluster('KEYSLOT', key)])
  })

  it('asks each master once for all steps of a turn', async () => {
    const waits = async (): Promise<number[]> => {
      const nodes = redis.shards.map(({ master }) =>
        withAdmin(master.port, (admin) => admin.info('commandstats')),
      )
      return (await Promise.all(nodes)).map((stats) =>
        Number(/cmdstat_wait:calls=(\d+)/.exec(stats)?.[1] ?? 0),
      )
    }
    const store = redisStore(cluster, { waitReplicas: PATIENT })
    const claimMany = () => Promise.all(Array.from({ length: 100 }, () => store.claim(aClaim())))
    await claimMany()
    const before = await waits()
    expect(new Set((await claimMany()).map(({ status }) => status))).toEqual(new Set(['acquired']))
    expect(await waits()).toEqual(before.map((count) => count + 1))
  })

  it('waits for the replicas of the master that has the record, and for no others', async () => {
    const store = redisStore(cluster, { waitReplicas: { count: 1, timeout: '2s' } })
    const [cutOff = expect.fail()] = redis.shards
    for (const replica of cutOff.replicas) replica.pause()
    const claims = Array.from({ length: 50 }, () => aClaim())
    const answers = await Promise.allSettled(claims.map((claim) => store.claim(claim)))
    for (const [index, { id }] of claims.entries()) {
      const isCutOff = masterOf(cluster, keySlot(`oncekey:${id}`)) === cutOff
      expect(answers[index]?.status).toBe(isCutOff ? 'rejected' : 'fulfilled')
    }
    const { id } = claims.find((_, index) => answers[index]?.status === 'rejected') ?? expect.fail()
    expect(await store.find(id)).toMatchObject({ status: 'running' })
  })

  it.each<[string, Prefixes]>([
    ['', {}],
    [', with a prefix of the client', { keyPrefix: 'app:' }],
    [', with a prefix of its connections', { redisOptions: { keyPrefix: 'app:' } }],
  ])('follows a slot on its way to another master%s', async (_, options) => {
    // It learns of the move from the masters alone.
    const client = await connect({ ...options, slotsRefreshInterval: 0 })
    const { prefix, slot } = await anEmptySlot()
    const from = masterOf(client, slot)
    const to = redis.shards.find((shard) => shard !== from) ?? expect.fail()
    const setSlot = (shard: Shard, ...how: string[]) =>
      withAdmin(shard.master.port, (admin) => admin.call('CLUSTER', 'SETSLOT', slot, ...how))
    const keysIn = (shard: Shard) =>
      withAdmin(shard.master.port, async (admin) => {
        const keys = (await admin.call('CLUSTER', 'GETKEYSINSLOT', slot, 10)) as string[]
        return keys.sort()
      })
    const nameOf = (id: string) => `${client.options.keyPrefix ?? ''}${prefix}${id}`

    const store = redisStore(client, { prefix, waitReplicas: PATIENT })
    const old = aClaim()
    await store.claim(old)
    await setSlot(to, 'IMPORTING', from.id)
    await setSlot(from, 'MIGRATING', to.id)
    await withAdmin(to.master.port, (admin) => admin.script('FLUSH'))

    const added = aClaim()
    expect(await store.claim(added)).toEqual({ status: 'acquired', fence: 1 })
    expect(await store.complete(added.id, added.token, anOutcome(), HOUR)).toBe(true)
    expect(await store.complete(old.id, old.token, anOutcome(), HOUR)).toBe(true)
    expect(await keysIn(from)).toEqual([nameOf(old.id)])
    expect(await keysIn(to)).toEqual([nameOf(added.id)])
    for (const replica of to.replicas) replica.pause()
    const hasty = redisStore(client, { prefix, waitReplicas: BRIEF })
    await expect(hasty.claim(aClaim())).rejects.toThrow(TOO_FEW)
    for (const replica of to.replicas) replica.resume()

    await withAdmin(from.master.port, (admin) =>
      admin.migrate('127.0.0.1', to.master.port, nameOf(old.id), 0, 10_000),
    )
    for (const shard of [to, from]) await setSlot(shard, 'NODE', to.id)
    expect(masterOf(client, slot)).toBe(from)
    const latest = aClaim()
    expect(await store.claim(latest)).toEqual({ status: 'acquired', fence: 1 })
    expect(await keysIn(to)).toContain(nameOf(latest.id))
    expect(await store.claim(aClaim({ id: old.id }))).toMatchObject({ status: 'completed' })
    // Told once, the client asks the cluster, and may ask a node that has not heard of it yet: until then it is told again.
    await expect
      .poll(async () => {
        await store.claim(aClaim())
        return masterOf(client, slot)
      }, patience)
      .toBe(to)
    client.disconnect()
  })

  it('sends steps on whose slot has gone to another master while they waited for their turn', async () => {
    const client = await connect({ slotsRefreshInterval: 0 })
    const { prefix, slot } = await anEmptySlot()
    const from = masterOf(client, slot)
    const to = redis.shards.find((shard) => shard !== from) ?? expect.fail()
    const moving = aClaim({ id: prefix })
    const staying = () => {
      for (;;) {
        const claim = aClaim()
        if (masterOf(client, keySlot(claim.id)) === from) return claim
      }
    }

    const isWaiting = () =>
      withAdmin(from.master.port, async (admin) =>
        (await admin.info('clients')).includes('blocked_clients:1'),
      )
    for (const replica of from.replicas) replica.pause()
    const store = redisStore(client, { prefix: '', waitReplicas: PATIENT })
    const blocking = store.claim(staying())
    await expect.poll(isWaiting, patience).toBe(true)
    const waiting = [moving, staying()].map((claim) => store.claim(claim))
    const setSlot = (shard: Shard, ...how: string[]) =>
      withAdmin(shard.master.port, (admin) => admin.call('CLUSTER', 'SETSLOT', slot, ...how))
    // What a master imports is its own from then on, for every node. Without that they would not agree any more.
    await setSlot(to, 'IMPORTING', from.id)
    for (const shard of [to, from]) await setSlot(shard, 'NODE', to.id)
    await expect
      .poll(async () => {
        await new Promise<void>((resolve) => client.refreshSlotsCache(() => resolve()))
        return masterOf(client, slot)
      }, patience)
      .toBe(to)
    for (const replica of from.replicas) replica.resume()
    for (const claim of [blocking, ...waiting]) expect(await claim).toEqual({ status: 'acquired', fence: 1 })
    client.disconnect()
  })

  it('says at start that a master has fewer replicas than it is to wait for', async () => {
    const warningsOf = (store: IdempotencyStore) => store.check?.()
    const few = expect.stringContaining('waitReplicas asks for 3, and a master of Redis has 2')
    expect(await warningsOf(redisStore(cluster, { waitReplicas: { count: 3 } }))).toContainEqual(few)
    expect(await warningsOf(redisStore(cluster, { waitReplicas: { count: 2 } }))).not.toContainEqual(few)
  })

  // The last one: it ends a master.
  it('runs nothing twice, with waitReplicas, when a master ends and a replica takes its place', async () => {
    const store = redisStore(cluster, { waitReplicas: { count: 1, timeout: '900ms' } })
    const operations = retriedOperations(store, { storeTimeoutMs: 2000 })
    await redis.agreed()
    const [shard = expect.fail()] = redis.shards
    const stop = operations.start(16)
    await expect.poll(() => operations.answered.length, patience).toBeGreaterThan(500)
    await redis.failOver(shard)
    await stop()
    const answers = await operations.retryAll()
    expect(operations.answered.filter(({ key }) => operations.effectsOf(key) !== 1)).toEqual([])
    expect(answers).toEqual(operations.answered.map(({ answer }) => answer))
    await operations.close()
  })
})
