import { Redis } from 'ioredis'
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { type RedisStoreOptions, redisStore, type WaitReplicas } from '../../src/stores/redis.js'
import { startWatchedRedis, type WatchedRedis, withAdmin } from '../support/redis-topologies.js'
import { type RetriedOperations, retriedOperations } from '../support/retried-operations.js'
import { describeWith } from '../support/services.js'

/** Long enough for a busy machine: what is tested are failovers, not refusals because of a slow replica. */
const WAIT: WaitReplicas = { count: 1, timeout: '900ms' }
const STORE_TIMEOUT_MS = 2000
/** A busy machine may be late by this much, and an answer still counts as given in time. */
const LATENESS_MS = 3000
const CLIENTS = 32
const patience = { timeout: 60_000, interval: 20 }
/** Longer than a Sentinel goes on believing what a replica last said about itself. */
const LONG_ENOUGH_MS = 3000

vi.setConfig({ testTimeout: 120_000 })

describeWith(['redis-topologies'], 'a failover by Sentinel', () => {
  let redis: WatchedRedis
  let client: Redis
  let operations: RetriedOperations
  beforeEach(async () => {
    redis = await startWatchedRedis()
    client = new Redis({ ...redis.address, retryStrategy: () => 50 })
    // A failover is what is tested here: without a listener, ioredis writes every error to the console.
    client.on('error', () => {})
  })
  afterEach(async () => {
    await operations.close()
    client.disconnect()
    await redis.stop()
  })

  function operate(options: RedisStoreOptions): RetriedOperations {
    operations = retriedOperations(redisStore(client, options), { storeTimeoutMs: STORE_TIMEOUT_MS })
    return operations
  }

  /** Stops replicas, and makes the master drop them: what it is told from now on does not reach them. */
  async function cutOff(replicas: WatchedRedis['replicas']): Promise<void> {
    for (const replica of replicas) replica.pause()
    await withAdmin(redis.master.port, async (admin) => {
      await admin.call('CLIENT', 'KILL', 'TYPE', 'replica')
      // The others come back at once.
      const others = redis.replicas.length - replicas.length
      await expect.poll(() => admin.wait(others, 100), patience).toBe(others)
    })
  }

  /** Ends the master with whatever it is doing, lets replicas that were cut off go on, and waits for a new master. */
  async function failOver(): Promise<number> {
    await redis.master.stop('SIGKILL')
    const killedAt = performance.now()
    for (const replica of redis.replicas) replica.resume()
    await expect.poll(() => redis.promoted(), patience).toBeDefined()
    return killedAt
  }

  function answeredBefore(time: number): number {
    return operations.answered.filter(({ answeredAt }) => answeredAt < time).length
  }

  function ranTwice(): number {
    return operations.answered.filter(({ key }) => operations.effectsOf(key) > 1).length
  }

  function expectRefusalsInTime(): void {
    for (const code of operations.refusals.keys())
      expect(['IDEMPOTENCY_STORE_UNAVAILABLE', 'IDEMPOTENCY_KEY_IN_PROGRESS']).toContain(code)
    // A claim and a completion.
    expect(operations.longestAttemptMs).toBeLessThan(2 * STORE_TIMEOUT_MS + LATENESS_MS)
  }

  it('loses what had not reached the replicas, without waitReplicas: it runs again', async () => {
    const { perform, retryAll } = operate({})
    await perform(100)
    await withAdmin(redis.master.port, (admin) => admin.wait(2, 10_000))
    await cutOff(redis.replicas)
    await perform(100)
    await failOver()
    await retryAll()
    console.log(`replicas cut off, no waitReplicas: ${ranTwice()} of 200 operations ran twice`)
    expect(ranTwice()).toBe(100)
    expectRefusalsInTime()
  })

  it('may lose the last moment, without waitReplicas, when its replicas follow closely', async () => {
    const { start, retryAll } = operate({})
    const stop = start(CLIENTS)
    await expect.poll(() => operations.answered.length, patience).toBeGreaterThan(1000)
    const killedAt = await failOver()
    await stop()
    const before = answeredBefore(killedAt)
    await retryAll()
    console.log(`replicas close, no waitReplicas: ${ranTwice()} of ${before} operations ran twice`)
    expectRefusalsInTime()
  })

  it('runs nothing twice, with waitReplicas, when its replicas follow closely', async () => {
    const { start, retryAll } = operate({ waitReplicas: WAIT })
    const stop = start(CLIENTS)
    await expect.poll(() => operations.answered.length, patience).toBeGreaterThan(1000)
    const killedAt = await failOver()
    await stop()
    const before = answeredBefore(killedAt)
    const answers = await retryAll()
    console.log(`replicas close, waitReplicas 1: ${ranTwice()} of ${before} operations ran twice`)
    expect(ranTwice()).toBe(0)
    expect(answers).toEqual(operations.answered.map(({ answer }) => answer))
    expectRefusalsInTime()
  })

  it('runs nothing twice, with waitReplicas, when one of its two replicas is cut off', async () => {
    const { start, retryAll } = operate({ waitReplicas: WAIT })
    await cutOff(redis.replicas.slice(0, 1))
    const cutAt = performance.now()
    const stop = start(CLIENTS)
    await expect.poll(() => performance.now() - cutAt, patience).toBeGreaterThan(LONG_ENOUGH_MS)
    const killedAt = await failOver()
    await stop()
    const before = answeredBefore(killedAt)
    const answers = await retryAll()
    console.log(
      `one of two replicas cut off, waitReplicas 1: ${ranTwice()} of ${before} operations ran twice`,
    )
    expect(await redis.promoted()).toBe(redis.replicas[1]?.port)
    expect(ranTwice()).toBe(0)
    expect(answers).toEqual(operations.answered.map(({ answer }) => answer))
    expectRefusalsInTime()
  })

  it('runs nothing, with waitReplicas, while all replicas are cut off, and each operation once afterwards', async () => {
    const { start, retryAll } = operate({ waitReplicas: { count: 1, timeout: '100ms' } })
    await cutOff(redis.replicas)
    const stop = start(CLIENTS)
    await expect
      .poll(() => operations.refusals.get('IDEMPOTENCY_STORE_UNAVAILABLE'), patience)
      .toBeGreaterThan(CLIENTS)
    expect(operations.answered).toEqual([])
    await failOver()
    await stop()
    await retryAll()
    expect(ranTwice()).toBe(0)
    expectRefusalsInTime()
  })
})
