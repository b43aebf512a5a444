import { randomUUID } from 'node:crypto'
import { Cluster, Redis } from 'ioredis'
import { Redis as Redis5 } from 'ioredis-5'
import { afterAll, beforeAll, expect, inject, it, vi } from 'vitest'
import type { ListQuery } from '../../src/contract/store.js'
import { redisStore } from '../../src/stores/redis.js'
import { storeContract } from '../../src/testing/store-contract.js'
import { aClaim, anOutcome, assertOutcome, aToken, HOUR, lapsed } from '../../src/testing/store-fixtures.js'
import { checked } from '../support/checked-store.js'
import { type RedisServer, startRedisServer } from '../support/redis-server.js'
import { describeWith } from '../support/services.js'
import { checkStoreModel } from '../support/store-model.js'
import { everyStep } from '../support/store-steps.js'

const { redisUrl } = inject('services')
let client: Redis
beforeAll(() => {
  client = new Redis(redisUrl, { lazyConnect: true })
})
afterAll(() => {
  client.disconnect()
})

describeWith(['redis'], 'redisStore', () => {
  it.each(storeContract)('$name', async ({ run }) => {
    await run(await checked(redisStore(client)))
  })

  it.each(storeContract)('$name (before its check)', async ({ run }) => {
    await run(redisStore(client))
  })

  it('follows the model through any interleaving of clients', async () => {
    const store = await checked(redisStore(client, { prefix: `${randomUUID()}:` }))
    await checkStoreModel(() => store, { numRuns: 40 })
  })

  it('brings its scripts back after the server has forgotten them', async () => {
    const store = redisStore(client)
    const claim = aClaim()
    await client.script('FLUSH')
    expect(await store.claim(claim)).toEqual({ status: 'acquired', fence: 1 })
    await client.script('FLUSH')
    expect(await store.complete(claim.id, claim.token, anOutcome(), HOUR)).toBe(true)
  })

  it('makes one round trip a step', async () => {
    const sent: string[] = []
    const counting = {
      info: client.info.bind(client),
      config: client.config.bind(client),
      callBuffer(command: string, args: (string | Buffer | number)[]) {
        sent.push(command)
        return client.callBuffer(command, args)
      },
    }
    const store = redisStore(counting)
    const steps = everyStep(store)
    for (const step of steps) await step()
    sent.length = 0
    for (const step of steps) {
      await step()
      expect(sent.splice(0)).toEqual(['evalsha'])
    }
  })

  it('makes one command of the claims of a turn, and one of its completions, up to a limit', async () => {
    const sent: unknown[] = []
    const store = redisStore({
      info: client.info.bind(client),
      config: client.config.bind(client),
      callBuffer(command: string, args: (string | Buffer | number)[]) {
        if (command === 'evalsha') sent.push(args[1])
        return client.callBuffer(command, args)
      },
    })
    await store.check?.()
    const claims = Array.from({ length: 100 }, () => aClaim())
    await Promise.all(claims.map((claim) => store.claim(claim)))
    sent.length = 0
    const [others, found, kept] = await Promise.all([
      Promise.all(Array.from({ length: 100 }, () => store.claim(aClaim()))),
      Promise.all(claims.slice(0, 10).map(({ id }) => store.claim(aClaim({ id })))),
      Promise.all(claims.map(({ id, token }) => store.complete(id, token, anOutcome(), HOUR))),
    ])
    expect(sent.toSorted()).toEqual([36, 46, 64, 64])
    expect(new Set(others.map(({ status }) => status))).toEqual(new Set(['acquired']))
    expect(new Set(found.map(({ status }) => status)).size).toBe(1)
    expect(new Set(kept)).toEqual(new Set([true]))
  })

  it('gives each step of a turn its own answer, lease, ttl and body', async () => {
    const prefix = `${randomUUID()}:`
    const store = await checked(redisStore(client, { prefix }))
    const claims = Array.from({ length: 40 }, (_, index) => {
      const leaseMs = 60_000 * (1 + (index % 3))
      const ttlMs = index % 2 === 0 ? HOUR : 2 * HOUR
      return aClaim({ leaseMs, ttlMs, fingerprint: `f${index}` })
    })
    await Promise.all(claims.map((claim) => store.claim(claim)))
    for (const { id, leaseMs, ttlMs, fingerprint } of claims) {
      const found = await store.find(id)
      if (found?.status !== 'running') throw new Error('The claim does not run')
      expect(found.fingerprint).toBe(fingerprint)
      expect(Math.ceil(found.leaseLeftMs / 60_000) * 60_000).toBe(leaseMs)
      expect(Math.ceil(found.expiresInMs / HOUR) * HOUR).toBe(ttlMs)
    }
    // Text, bytes that are no text, nothing, and tombstones: some of them cannot share a command.
    const bodies = [Buffer.from('text'), Buffer.from([0xff, 0, 0xfe]), Buffer.alloc(0), null]
    const outcomes = claims.map((_, index) =>
      anOutcome({ head: `head ${index}`, body: bodies[index % 4] ?? null }),
    )
    const kept = await Promise.all(
      claims.map(({ id, token }, index) =>
        // Every fifth is not the holder.
        store.complete(id, index % 5 === 0 ? aToken() : token, outcomes[index] ?? anOutcome(), HOUR),
      ),
    )
    expect(kept).toEqual(claims.map((_, index) => index % 5 !== 0))
    const retries = await Promise.all(claims.map(({ id }) => store.claim(aClaim({ id }))))
    for (const [index, retry] of retries.entries()) {
      expect(retry.status).toBe(index % 5 === 0 ? 'running' : 'completed')
      if (retry.status === 'completed') assertOutcome(retry.outcome, outcomes[index] ?? anOutcome())
    }
  })

  it('takes over only what asked for it, of the claims of a turn', async () => {
    const store = await checked(redisStore(client))
    const ids = (await Promise.all(Array.from({ length: 4 }, () => lapsed(store)))).map(({ id }) => id)
    const claims = ids.map((id, index) => store.claim(aClaim({ id, takeOver: index % 2 === 0 })))
    expect((await Promise.all(claims)).map(({ status }) => status)).toEqual([
      'acquired',
      'unknown',
      'acquired',
      'unknown',
    ])
  })

  it('does not let what it cannot read, or what is damaged, harm the other steps of a turn', async () => {
    const store = await checked(redisStore(client))
    const [foreign, list] = [aClaim().id, aClaim().id]
    const damaged = [
      '1C179',
      '1C179\nsb0\n',
      '1C1790000000000 token 1\nsb0\n',
      '1C1790000000000 token 1 f []\nsb',
    ].map((text) => ({ id: aClaim().id, text }))
    await client.set(`oncekey:${foreign}`, '9R something new')
    await client.rpush(`oncekey:${list}`, 'not a record')
    for (const { id, text } of damaged) await client.set(`oncekey:${id}`, text)
    const [first, second] = [aClaim(), aClaim()]
    const steps = (...of: readonly unknown[]) => Promise.allSettled(of)
    const unfit = { status: 'rejected', reason: { code: 'IDEMPOTENCY_STORE_UNFIT' } }
    const wrongType = { status: 'rejected', reason: { message: expect.stringMatching(/^WRONGTYPE/) } }
    const claimOf = (id: string) => store.claim(aClaim({ id }))
    expect(
      await steps(
        store.claim(first),
        claimOf(foreign),
        claimOf(list),
        ...damaged.map(({ id }) => claimOf(id)),
        store.claim(second),
      ),
    ).toMatchObject([
      { value: { status: 'acquired' } },
      unfit,
      wrongType,
      ...damaged.map(() => unfit),
      { value: { status: 'acquired' } },
    ])
    const completionOf = (id: string, token = aToken()) => store.complete(id, token, anOutcome(), HOUR)
    expect(
      await steps(
        completionOf(first.id, first.token),
        completionOf(foreign),
        completionOf(list),
        completionOf(second.id, second.token),
      ),
    ).toMatchObject([{ value: true }, unfit, wrongType, { value: true }])
    await client.del(...[foreign, list, ...damaged.map(({ id }) => id)].map((id) => `oncekey:${id}`))
  })

  it('takes a lease that lasts for as long as anybody can say', async () => {
    const store = redisStore(client)
    const claim = aClaim({ leaseMs: Number.MAX_SAFE_INTEGER })
    expect(await store.claim(claim)).toEqual({ status: 'acquired', fence: 1 })
    expect(await store.renew(claim.id, claim.token, Number.MAX_SAFE_INTEGER)).toBe(true)
    expect((await store.find(claim.id))?.status).toBe('running')
    expect(await store.complete(claim.id, claim.token, anOutcome(), HOUR)).toBe(true)
    expect((await store.claim(aClaim({ id: claim.id }))).status).toBe('completed')
  })

  it('brings its scripts back for all steps of a turn', async () => {
    const store = await checked(redisStore(client))
    const claims = Array.from({ length: 10 }, () => aClaim())
    await client.script('FLUSH')
    const acquired = { status: 'acquired', fence: 1 }
    expect(await Promise.all(claims.map((claim) => store.claim(claim)))).toEqual(claims.map(() => acquired))
    await client.script('FLUSH')
    const kept = claims.map(({ id, token }) => store.complete(id, token, anOutcome(), HOUR))
    expect(new Set(await Promise.all(kept))).toEqual(new Set([true]))
  })

  it('reads no further page for a list that was called off, also where it has found nothing', async () => {
    const prefix = `${randomUUID()}:`
    const running = redisStore(client, { prefix })
    await Promise.all(Array.from({ length: 120 }, () => running.claim(aClaim())))
    const calledOff = new AbortController()
    let reads = 0
    const store = redisStore(
      {
        info: client.info.bind(client),
        config: client.config.bind(client),
        callBuffer(command: string, args: (string | Buffer | number)[]) {
          if (command === 'evalsha') {
            reads += 1
            calledOff.abort()
          }
          return client.callBuffer(command, args)
        },
      },
      { prefix },
    )
    const found: string[] = []
    for await (const { id } of store.list?.({ status: 'unknown', signal: calledOff.signal }) ?? [])
      found.push(id)
    expect(found).toEqual([])
    expect(reads).toBeGreaterThan(0)
    expect(reads).toBeLessThanOrEqual(50)
  })

  it('looks through no further keys for a list that was called off, also where none is a record', async () => {
    const prefix = `${randomUUID()}:`
    const others = Array.from({ length: 2000 }, (_, index) => `${prefix}not-a-record-${index}`)
    await client.mset(...others.flatMap((key) => [key, '']))
    const calledOff = new AbortController()
    let scans = 0
    const store = redisStore(
      {
        info: client.info.bind(client),
        config: client.config.bind(client),
        callBuffer(command: string, args: (string | Buffer | number)[]) {
          scans += 1
          calledOff.abort()
          return client.callBuffer(command, args)
        },
      },
      { prefix },
    )
    for await (const { id } of store.list?.({ signal: calledOff.signal }) ?? [])
      expect.fail(`${id} is no record`)
    expect(scans).toBe(1)
    await client.del(...others)
  })

  it('reads a list in pages, and ends it with its limit', async () => {
    let underWay = 0
    let most = 0
    let reads = 0
    const counting = {
      info: client.info.bind(client),
      config: client.config.bind(client),
      async callBuffer(command: string, args: (string | Buffer | number)[]) {
        if (command === 'scan') return client.callBuffer(command, args)
        reads += 1
        underWay += 1
        most = Math.max(most, underWay)
        return client.callBuffer(command, args).finally(() => {
          underWay -= 1
        })
      },
    }
    const store = redisStore(counting, { prefix: `${randomUUID()}:` })
    const found = async (query: ListQuery): Promise<readonly string[]> => {
      const ids: string[] = []
      for await (const { id } of store.list?.(query) ?? []) ids.push(id)
      return ids
    }
    for (let claims = 0; claims < 160; claims += 1) await store.claim(aClaim())
    most = 0
    expect(await found({})).toHaveLength(160)
    expect(most).toBeGreaterThan(1)
    expect(most).toBeLessThanOrEqual(50)
    reads = 0
    expect(await found({ limit: 3 })).toHaveLength(3)
    expect(reads).toBeLessThanOrEqual(50)
  })

  it('gives every record a time to live', async () => {
    const prefix = `${randomUUID()}:`
    const store = redisStore(client, { prefix })
    const running = aClaim()
    await store.claim(running)
    const completed = aClaim()
    await store.claim(completed)
    await store.complete(completed.id, completed.token, anOutcome(), HOUR)
    const unknown = await lapsed(store)
    const takenOver = aClaim({ id: (await lapsed(store)).id, takeOver: true })
    await store.claim(takenOver)
    await store.release(takenOver.id, takenOver.token)
    for (const { id } of [running, completed, unknown, takenOver]) {
      const left = await client.pttl(prefix + id)
      expect(left).toBeGreaterThan(HOUR / 2)
      expect(left).toBeLessThanOrEqual(HOUR)
    }
  })

  it('names records by its prefix and the prefix of the client', async () => {
    const prefixed = new Redis(redisUrl, { keyPrefix: 'app:' })
    const store = await checked(redisStore(prefixed, { prefix: 'once:' }))
    const claims = [aClaim(), aClaim()]
    await Promise.all(claims.map((claim) => store.claim(claim)))
    for (const { id } of claims) expect(await client.exists(`app:once:${id}`)).toBe(1)
    prefixed.disconnect()
  })

  it('refuses to touch a record in a format that it does not know', async () => {
    const store = redisStore(client)
    const { id } = aClaim()
    await client.set(`oncekey:${id}`, '9R something new')
    await expect(store.claim(aClaim({ id }))).rejects.toMatchObject({ code: 'IDEMPOTENCY_STORE_UNFIT' })
    await expect(store.complete(id, aToken(), anOutcome(), HOUR)).rejects.toMatchObject({
      code: 'IDEMPOTENCY_STORE_UNFIT',
    })
    expect(await client.get(`oncekey:${id}`)).toBe('9R something new')
  })

  it('refuses a client and a prefix that it cannot use', () => {
    expect(() => redisStore({} as never)).toThrow(/ioredis/)
    expect(() => redisStore(client, { prefix: 1 as never })).toThrow(/"prefix"/)
  })

  it('leaves the client open', async () => {
    expect(await client.ping()).toBe('PONG')
  })
})

describeWith(['redis'], 'redisStore on an ioredis 5 client', () => {
  it.each(storeContract)('$name', async ({ run }) => {
    const older = new Redis5(redisUrl)
    try {
      await run(await checked(redisStore(older)))
    } finally {
      older.disconnect()
    }
  })
})

describeWith(['redis'], 'redisStore on a client that pipelines by itself', () => {
  it.each(storeContract)('$name', async ({ run }) => {
    const options = { enableAutoPipelining: true }
    const clients = [new Redis(redisUrl, options), new Redis5(redisUrl, options)]
    try {
      for (const one of clients) await run(await checked(redisStore(one)))
    } finally {
      for (const one of clients) one.disconnect()
    }
  })
})

describeWith(['redis'], 'redisStore on a cluster', () => {
  let node: RedisServer
  let cluster: Cluster
  beforeAll(async () => {
    node = await startRedisServer({
      args: [
        '--cluster-enabled',
        'yes',
        '--cluster-announce-ip',
        '127.0.0.1',
        '--maxmemory-policy',
        'allkeys-lru',
      ],
    })
    const admin = new Redis(node.url)
    await admin.call('CLUSTER', 'ADDSLOTSRANGE', '0', '16383')
    await vi.waitFor(async () => expect(await admin.cluster('INFO')).toContain('cluster_state:ok'), 10_000)
    admin.disconnect()
    cluster = new Cluster([{ host: '127.0.0.1', port: node.port }])
  })
  afterAll(async () => {
    cluster.disconnect()
    await node.stop()
  })

  it.each(storeContract)('$name', async ({ run }) => {
    await run(redisStore(cluster))
  })

  it.each(storeContract)('$name (by a client that believes in one node)', async ({ run }) => {
    const single = new Redis(node.url)
    try {
      await run(redisStore(single))
    } finally {
      single.disconnect()
    }
  })

  it('sends each step of a turn by itself', async () => {
    const sent: unknown[] = []
    const store = redisStore({
      info: cluster.info.bind(cluster),
      config: cluster.config.bind(cluster),
      nodes: cluster.nodes.bind(cluster),
      callBuffer(command: string, args: (string | Buffer | number)[]) {
        sent.push(args[1])
        return cluster.callBuffer(command, args)
      },
    })
    await store.check?.()
    sent.length = 0
    await Promise.all([aClaim(), aClaim(), aClaim()].map((claim) => store.claim(claim)))
    expect(sent.slice(0, 3)).toEqual([1, 1, 1])
  })

  it('shares no further command once the server wants each for one slot', async () => {
    const single = new Redis(node.url)
    const sent: unknown[] = []
    // The check has seen another server, as before a failover to this one.
    let current = client
    const store = redisStore({
      info: single.info.bind(single),
      config: single.config.bind(single),
      callBuffer(command: string, args: (string | Buffer | number)[]) {
        if (command === 'evalsha') sent.push(args[1])
        return current.callBuffer(command, args)
      },
    })
    await store.check?.()
    current = single
    const claimThree = () => Promise.all([aClaim(), aClaim(), aClaim()].map((claim) => store.claim(claim)))
    await store.claim(aClaim())
    sent.length = 0
    for (let turn = 0; turn < 2; turn += 1)
      expect(new Set((await claimThree()).map(({ status }) => status))).toEqual(new Set(['acquired']))
    expect(sent).toEqual([3, 1, 1, 1, 1, 1, 1])
    single.disconnect()
  })

  it('looks at its masters at start', async () => {
    expect(await redisStore(cluster).check?.()).toContainEqual(expect.stringContaining('allkeys-lru'))
  })
})

describeWith(['redis'], 'redisStore at start', () => {
  async function warningsOf(args: readonly string[]): Promise<readonly string[] | undefined> {
    const other = await startRedisServer({ args })
    const otherClient = new Redis(other.url, { socketTimeout: 5000 })
    try {
      return await redisStore(otherClient).check?.()
    } finally {
      otherClient.disconnect()
      await other.stop()
    }
  }

  it('warns when the server may evict records', async () => {
    const warnings = await warningsOf(['--appendonly', 'yes', '--maxmemory-policy', 'volatile-ttl'])
    expect(warnings).toEqual([expect.stringContaining('volatile-ttl')])
  })

  it('warns when nothing is persisted', async () => {
    expect(await warningsOf([])).toEqual([expect.stringContaining('persists nothing')])
  })

  it('warns when only snapshots are persisted', async () => {
    expect(await warningsOf(['--save', '60 1'])).toEqual([expect.stringContaining('snapshots only')])
  })

  it('has nothing to say about a server that keeps what it is told', async () => {
    expect(await warningsOf(['--appendonly', 'yes'])).toEqual([])
  })
})
