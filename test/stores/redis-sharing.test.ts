import { createHash, randomUUID } from 'node:crypto'
import { Redis, type RedisOptions } from 'ioredis'
import { afterAll, beforeAll, expect, inject, it, onTestFinished, vi } from 'vitest'
import type { ClaimRequest, IdempotencyStore } from '../../src/contract/store.js'
import { type RedisArgument, type RedisClient, redisStore } from '../../src/stores/redis.js'
import { sharing } from '../../src/stores/redis-batch.js'
import { CLAIM, COMPLETE } from '../../src/stores/redis-scripts.js'
import { aClaim, anOutcome, assertOutcome, HOUR, lapsed } from '../../src/testing/store-fixtures.js'
import { startFaultProxy } from '../../src/testing/test-kit.js'
import { gate } from '../support/gate.js'
import { type RedisServer, startRedisServer } from '../support/redis-server.js'
import { describeWith } from '../support/services.js'

const WARNING = expect.stringContaining('routes commands by their first key: steps are sent one by one')

describeWith(['redis'], 'redisStore, where commands may share their way', () => {
  let servers: readonly RedisServer[]
  let backends: readonly Redis[]
  let first: Redis
  beforeAll(async () => {
    servers = await Promise.all([startRedisServer(), startRedisServer()])
    backends = servers.map(({ url }) => new Redis(url))
    first = backends[0] ?? expect.fail()
  })
  afterAll(async () => {
    for (const backend of backends) backend.disconnect()
    await Promise.all(servers.map((server) => server.stop()))
  })

  const routeOf = (key: unknown): number => (createHash('md5').update(String(key)).digest()[0] ?? 0) % 2

  /** What a proxy such as twemproxy or Envoy is to its clients: several servers, one for each command, by its first key. */
  function aProxy(to: readonly Redis[] = backends): RedisClient {
    return {
      info: (section) => first.info(section),
      config: (subcommand, parameter) => first.config(subcommand, parameter),
      callBuffer: (command, args) =>
        (to[routeOf(args[2]) % to.length] ?? expect.fail()).callBuffer(command, args),
    }
  }

  /** What a store sends, command and number of keys, on its way to `client`. */
  function recorded(client: RedisClient): { readonly client: RedisClient; readonly sent: unknown[] } {
    const sent: unknown[] = []
    return {
      sent,
      client: {
        info: (section) => client.info(section),
        config: (subcommand, parameter) => client.config(subcommand, parameter),
        callBuffer(command, args) {
          sent.push(`${command} ${args[1]}`)
          return client.callBuffer(command, args)
        },
      },
    }
  }

  const claimThree = async (store: IdempotencyStore): Promise<void> => {
    const claims = await Promise.all([aClaim(), aClaim(), aClaim()].map((claim) => store.claim(claim)))
    expect(new Set(claims.map(({ status }) => status))).toEqual(new Set(['acquired']))
  }
  const TOGETHER = ['evalsha 3']
  const ALONE = ['evalsha 1', 'evalsha 1', 'evalsha 1']

  async function scriptsThere(): Promise<void> {
    for (const backend of backends)
      await Promise.all([CLAIM, COMPLETE].map((text) => backend.script('LOAD', text)))
  }

  /** A claim whose record a proxy keeps on one of the servers. */
  function aClaimOn(server: number): ClaimRequest {
    for (;;) {
      const claim = aClaim()
      if (routeOf(`oncekey:${claim.id}`) === server) return claim
    }
  }

  it('gives a key to one of two stores only, whatever else is in their turns, behind a proxy', async () => {
    const stores = [redisStore(aProxy()), redisStore(aProxy())]
    for (const store of stores) expect(await store.check?.()).toContainEqual(WARNING)
    for (const on of [0, 1]) {
      const contested = Array.from({ length: 10 }, () => aClaimOn(on))
      const tokens = contested.map(() => [randomUUID(), randomUUID()])
      // Each store's turn begins with a claim of its own, and each of these is on another server.
      const results = await Promise.all(
        stores.map(async (store, which) => {
          const [, ...results] = await Promise.all([
            store.claim(aClaimOn(which)),
            ...contested.map(({ id }, index) =>
              store.claim(aClaim({ id, token: tokens[index]?.[which] ?? '' })),
            ),
          ])
          return results.map(({ status }) => status)
        }),
      )
      for (const index of contested.keys())
        expect(results.map((statuses) => statuses[index]).toSorted()).toEqual(['acquired', 'running'])

      const [keeper = expect.fail(), other = expect.fail()] = stores
      const kept = await Promise.all(
        contested.map(({ id }, index) => {
          const holder = results[0]?.[index] === 'acquired' ? 0 : 1
          return keeper.complete(id, tokens[index]?.[holder] ?? '', anOutcome(), HOUR)
        }),
      )
      expect(new Set(kept)).toEqual(new Set([true]))
      const retries = await Promise.all(contested.map(({ id }) => other.claim(aClaim({ id }))))
      expect(new Set(retries.map(({ status }) => status))).toEqual(new Set(['completed']))
    }
  })

  it('shares commands with one server, once the check has seen that it may', async () => {
    await scriptsThere()
    const calls = async () => /cmdstat_evalsha:calls=(\d+)/.exec(await first.info('commandstats'))?.[1] ?? '0'
    const client = new Redis(servers[0]?.url ?? '', { socketTimeout: 5000 })
    onTestFinished(() => client.disconnect())
    const store = redisStore(client)
    const callsOf = async (work: () => Promise<void>): Promise<number> => {
      const before = Number(await calls())
      await work()
      return Number(await calls()) - before
    }
    expect(await callsOf(() => claimThree(store))).toBe(3)
    expect(await store.check?.()).toEqual([expect.stringContaining('persists nothing')])
    expect(await callsOf(() => claimThree(store))).toBe(1)
    // A check that finds the same takes nothing away.
    await store.check?.()
    expect(await callsOf(() => claimThree(store))).toBe(1)
  })

  it('tries more keys than ever share a command, in two round trips', async () => {
    const { client, sent } = recorded(first)
    const store = redisStore(client)
    await store.check?.()
    expect(sent).toEqual(['eval 256', ...Array.from({ length: 256 }, () => 'eval 1')])
  })

  it('sends each step alone while the check has not seen all keys, and shares from then on', async () => {
    await scriptsThere()
    const { client, sent } = recorded(first)
    const [lastRead, answer] = [gate(), gate()]
    let reads = 0
    const slow: RedisClient = {
      ...client,
      async callBuffer(command, args) {
        const reply = await client.callBuffer(command, args)
        if (command === 'eval' && args[1] === 1) {
          reads += 1
          if (reads === 256) {
            lastRead.open()
            await answer.opened
          }
        }
        return reply
      },
    }
    const store = redisStore(slow)
    const checked = store.check?.()
    await Promise.all([claimThree(store), lastRead.opened])
    expect(sent.filter((one) => String(one).startsWith('evalsha'))).toEqual(ALONE)
    sent.length = 0
    await claimThree(store)
    expect(sent.splice(0)).toEqual(ALONE)
    answer.open()
    await checked
    await claimThree(store)
    expect(sent).toEqual(TOGETHER)
  })

  it('shares nothing when a single key was not where it belongs', async () => {
    await scriptsThere()
    let reads = 0
    const { client, sent } = recorded(first)
    const forgetful: RedisClient = {
      ...client,
      async callBuffer(command, args) {
        const reply = await client.callBuffer(command, args)
        if (command !== 'eval' || args[1] !== 1) return reply
        reads += 1
        return reads === 256 ? null : reply
      },
    }
    const store = redisStore(forgetful)
    expect(await store.check?.()).toContainEqual(WARNING)
    sent.length = 0
    await claimThree(store)
    expect(sent).toEqual(ALONE)
  })

  it('shares no more when a later check finds a proxy', async () => {
    await scriptsThere()
    const to = [first]
    const { client, sent } = recorded(aProxy(to))
    const store = redisStore(client)
    expect(await store.check?.()).not.toContainEqual(WARNING)
    sent.length = 0
    await claimThree(store)
    expect(sent).toEqual(TOGETHER)
    to.splice(0, 1, ...backends)
    expect(await store.check?.()).toContainEqual(WARNING)
    sent.length = 0
    await claimThree(store)
    expect(sent).toEqual(ALONE)
  })

  it('shares nothing, and says nothing, where the probe was refused', async () => {
    await scriptsThere()
    const refusing: Record<string, (args: RedisArgument[]) => boolean> = {
      'the write': (args) => args[1] === 256,
      'a read': (args) => args[1] === 1,
    }
    for (const [what, isRefused] of Object.entries(refusing)) {
      const { client, sent } = recorded(first)
      const store = redisStore({
        ...client,
        callBuffer: (command, args) =>
          command === 'eval' && isRefused(args)
            ? Promise.reject(new Error('NOPERM this user has no permissions'))
            : client.callBuffer(command, args),
      })
      expect([what, await store.check?.()]).toEqual([what, [expect.stringContaining('persists nothing')]])
      sent.length = 0
      await claimThree(store)
      expect([what, ...sent]).toEqual([what, ...ALONE])
    }
  })

  it('goes on without sharing as a user that may not use EVAL', async () => {
    await scriptsThere()
    await first.call('ACL', 'SETUSER', 'careful', 'reset', 'on', '>secret', '~oncekey:*', '+@all', '-eval')
    const user = new Redis(servers[0]?.url ?? '', {
      username: 'careful',
      password: 'secret',
      socketTimeout: 5000,
    })
    onTestFinished(() => user.disconnect())
    const { client, sent } = recorded(user)
    const store = redisStore(client)
    expect(await store.check?.()).toEqual([expect.stringContaining('persists nothing')])
    sent.length = 0
    await claimThree(store)
    expect(sent).toEqual(ALONE)
  })

  it('names its keys as records are named, lists none of them, and leaves none behind', async () => {
    const prefix = `${randomUUID()}:`
    const client = new Redis(servers[0]?.url ?? '', { keyPrefix: 'app:' })
    onTestFinished(() => client.disconnect())
    const [listed, go] = [gate(), gate()]
    const store = redisStore(
      {
        info: (section) => client.info(section),
        config: (subcommand, parameter) => client.config(subcommand, parameter),
        options: client.options,
        async callBuffer(command, args) {
          const reply = await client.callBuffer(command, args)
          if (command === 'eval' && args[1] === 256) {
            listed.open()
            await go.opened
          }
          return reply
        },
      },
      { prefix },
    )
    const checked = store.check?.()
    await listed.opened
    const written = await first.keys(`app:${prefix}*`)
    expect(written).toHaveLength(256)
    for (const key of written) {
      // What an id looks like, to a list and to operators' tools.
      expect(key.slice(`app:${prefix}`.length)).not.toMatch(/^[\w-]{43}$/)
      const left = await first.pttl(key)
      expect(left).toBeGreaterThan(0)
      expect(left).toBeLessThanOrEqual(10_000)
    }
    for await (const { id } of store.list?.({}) ?? []) expect.fail(`${id} is no record`)
    go.open()
    await checked
    expect(await first.keys(`*${prefix}*`)).toEqual([])
  })

  it('sends alone what waited for the end of its turn when sharing was given up', async () => {
    const permit = { isGiven: true }
    const ends: (() => void)[] = []
    const evaluated: (readonly string[])[] = []
    const step = sharing({
      permit,
      turns: { atEnd: (work) => ends.push(work) },
      async evaluate(keys) {
        evaluated.push(keys)
        return [0, ...keys]
      },
      read: (reply) => reply,
    })
    const steps = ['a', 'b', 'c'].map((key) => step(key, []))
    permit.isGiven = false
    for (const end of ends) end()
    expect(await Promise.all(steps)).toEqual(['a', 'b', 'c'])
    expect(evaluated).toEqual([['a'], ['b'], ['c']])
  })

  it('tries nothing where it shares no command', async () => {
    const { client, sent } = recorded(first)
    const options = { waitReplicas: { count: 1 } }
    await redisStore({ ...client, pipeline: first.pipeline.bind(first) }, options).check?.()
    await redisStore({ ...client, nodes: () => [] }).check?.()
    expect(sent).toEqual([])
  })
})

describeWith(['redis'], 'redisStore, where the steps of a command do not fare alike', () => {
  let server: RedisServer
  let admin: Redis
  beforeAll(async () => {
    server = await startRedisServer()
    admin = new Redis(server.url)
    await Promise.all([CLAIM, COMPLETE].map((text) => admin.script('LOAD', text)))
  })
  afterAll(async () => {
    admin.disconnect()
    await server.stop()
  })

  /** A client of its own for this test. */
  function connect(options: Pick<RedisOptions, 'retryStrategy'> = {}, url = server.url): Redis {
    const client = new Redis(url, { socketTimeout: 5000, ...options })
    // Without a listener, ioredis writes every error to the console.
    client.on('error', () => {})
    onTestFinished(() => client.disconnect())
    return client
  }

  /** A store, and how many keys each command of its steps had. */
  function aStore(client = connect()): { readonly store: IdempotencyStore; readonly sent: unknown[] } {
    const sent: unknown[] = []
    const store = redisStore({
      info: client.info.bind(client),
      config: client.config.bind(client),
      options: client.options,
      callBuffer(command: string, args: RedisArgument[]) {
        if (command === 'evalsha') sent.push(args[1])
        return client.callBuffer(command, args)
      },
    })
    return { store, sent }
  }

  async function completedWith(store: IdempotencyStore, outcome = anOutcome()): Promise<string> {
    const claim = aClaim()
    await store.claim(claim)
    expect(await store.complete(claim.id, claim.token, outcome, HOUR)).toBe(true)
    return claim.id
  }

  /** Sets up the server in another way until the test is over, or `undo` is called. */
  async function set(name: string, value: string): Promise<{ undo(): Promise<void> }> {
    const [, before = ''] = (await admin.config('GET', name)) as string[]
    const undo = async (): Promise<void> => void (await admin.config('SET', name, before))
    onTestFinished(undo)
    await admin.config('SET', name, value)
    return { undo }
  }

  const OUT_OF_MEMORY = ['maxmemory', '1', /^OOM/] as const
  const WITHOUT_REPLICAS = ['min-replicas-to-write', '1', /^NOREPLICAS/] as const

  it.each([OUT_OF_MEMORY, WITHOUT_REPLICAS])(
    'answers the claims that write nothing beside one that cannot be written (%s)',
    async (name, value, message) => {
      const { store, sent } = aStore()
      await store.check?.()
      const done = await Promise.all(Array.from({ length: 5 }, () => completedWith(store)))
      const running = aClaim()
      await store.claim(running)
      sent.length = 0
      const { undo } = await set(name, value)
      const ids = [...done.slice(0, 2), aClaim().id, ...done.slice(2), running.id]
      const claims = await Promise.allSettled(ids.map((id) => store.claim(aClaim({ id }))))
      const completed = { value: { status: 'completed' } }
      expect(claims).toMatchObject([
        completed,
        completed,
        { status: 'rejected', reason: { message: expect.stringMatching(message) } },
        completed,
        completed,
        completed,
        { value: { status: 'running' } },
      ])
      expect(sent.splice(0)).toEqual([7, ...ids.map(() => 1)])
      // What a server cannot do now takes no permit away.
      await undo()
      await Promise.all([aClaim(), aClaim()].map((claim) => store.claim(claim)))
      expect(sent).toEqual([2])
    },
  )

  it('answers the completions that write nothing beside one that cannot be written', async () => {
    const { store } = aStore()
    await store.check?.()
    const [lost, held] = [aClaim(), aClaim()]
    await Promise.all([store.claim(lost), store.claim(held)])
    await set('maxmemory', '1')
    const kept = await Promise.allSettled([
      store.complete(held.id, held.token, anOutcome(), HOUR),
      store.complete(lost.id, randomUUID(), anOutcome(), HOUR),
    ])
    expect(kept).toMatchObject([
      { status: 'rejected', reason: { message: expect.stringMatching(/^OOM/) } },
      { value: false },
    ])
  })

  it('tells of each completion and claim what became of it, before one that Redis does not take and behind it', async () => {
    const { store, sent } = aStore()
    await store.check?.()
    const held = [aClaim(), aClaim(), aClaim()]
    await Promise.all(held.map((claim) => store.claim(claim)))
    sent.length = 0
    const tooLong = (index: number) => (index === 1 ? 1e21 : HOUR)
    const kept = await Promise.allSettled(
      held.map(({ id, token }, index) => store.complete(id, token, anOutcome(), tooLong(index))),
    )
    expect(kept).toMatchObject([{ value: true }, { status: 'rejected' }, { value: true }])
    expect(sent.splice(0)).toEqual([3, 1, 1, 1])
    const acquired = { value: { status: 'acquired', fence: 1 } }
    const claims = await Promise.allSettled(
      [0, 1, 2].map((index) => store.claim(aClaim({ ttlMs: tooLong(index) }))),
    )
    expect(claims).toMatchObject([acquired, { status: 'rejected' }, acquired])
  })

  it('repeats no step of a command whose connection broke by itself', async () => {
    const proxy = await startFaultProxy({ target: { host: '127.0.0.1', port: server.port } })
    onTestFinished(() => proxy.stop())
    const client = connect({ retryStrategy: () => null }, proxy.through(server.url))
    const { store, sent } = aStore(client)
    await store.check?.()
    proxy.arm({ kind: 'drop-answer', match: sha(CLAIM) })
    const claims = await Promise.allSettled([aClaim(), aClaim()].map((claim) => store.claim(claim)))
    expect(claims).toMatchObject([{ status: 'rejected' }, { status: 'rejected' }])
    expect(sent).toEqual([2])
  })

  it.each(['cut', 'drop-answer'] as const)(
    'answers all steps of a command that ioredis sends again (%s)',
    async (kind) => {
      const proxy = await startFaultProxy({ target: { host: '127.0.0.1', port: server.port } })
      onTestFinished(() => proxy.stop())
      const { store, sent } = aStore(connect({ retryStrategy: () => 20 }, proxy.through(server.url)))
      await store.check?.()
      const done = await completedWith(store)
      sent.length = 0
      const claims = Array.from({ length: 10 }, () => aClaim())
      const claimed = proxy.arm({ kind, match: sha(CLAIM) })
      const [found, ...results] = await Promise.all(
        [aClaim({ id: done }), ...claims].map((claim) => store.claim(claim)),
      )
      expect(found?.status).toBe('completed')
      expect(results).toEqual(claims.map(() => ({ status: 'acquired', fence: 1 })))
      const completed = proxy.arm({ kind, match: sha(COMPLETE) })
      const kept = await Promise.all(
        claims.map(({ id, token }) => store.complete(id, token, anOutcome(), HOUR)),
      )
      expect(kept).toEqual(claims.map(() => true))
      expect([claimed.timesFired, completed.timesFired]).toEqual([1, 1])
      expect(sent).toEqual([11, 10])
    },
  )

  it.each([
    // One record is more than a command answers with.
    { bytes: 100 * 1024, together: 1 },
    // Four of them are.
    { bytes: 20 * 1024, together: 4 },
  ])(
    'leaves records of $bytes bytes behind the first $together to commands of their own',
    async ({ bytes, together }) => {
      const { store, sent } = aStore()
      await store.check?.()
      const bodies = Array.from({ length: 20 }, (_, index) => Buffer.alloc(bytes, `${index} `))
      const ids = await Promise.all(bodies.map((body) => completedWith(store, anOutcome({ body }))))
      const [running, lapsing, fresh] = [aClaim(), await lapsed(store), aClaim()]
      await store.claim(running)
      sent.length = 0
      const claims = await Promise.all([
        ...ids.map((id) => store.claim(aClaim({ id }))),
        store.claim(running),
        store.claim(aClaim({ id: running.id })),
        store.claim(aClaim({ id: lapsing.id, takeOver: true })),
        store.claim(fresh),
      ])
      for (const [index, body] of bodies.entries()) {
        const claim = claims[index]
        if (claim?.status !== 'completed') throw new Error(`Replay ${index} is ${claim?.status}`)
        assertOutcome(claim.outcome, anOutcome({ body }))
      }
      expect(claims.slice(20)).toMatchObject([
        { status: 'acquired', fence: 1 },
        { status: 'running' },
        { status: 'acquired', fence: 2 },
        { status: 'acquired', fence: 1 },
      ])
      // All but the fresh claim would have found a record.
      expect(sent).toEqual([24, ...Array.from({ length: 20 - together + 3 }, () => 1)])
    },
  )

  it('says that the probe could not be tried, and keeps to what the check before has found', async () => {
    const { store, sent } = aStore()
    const claimTwo = () => Promise.all([aClaim(), aClaim()].map((claim) => store.claim(claim)))
    const couldNot = (rest: string) =>
      expect.stringMatching(new RegExp(`could not be tried \\(OOM .*${rest}`, 's'))
    const { undo } = await set('maxmemory', '1')
    expect(await store.check?.()).toContainEqual(couldNot('they are sent one by one until the next check'))
    await undo()
    await claimTwo()
    expect(sent.splice(0)).toEqual([1, 1])

    expect(await store.check?.()).toEqual([expect.stringContaining('persists nothing')])
    await claimTwo()
    expect(sent.splice(0)).toEqual([2])

    const again = await set('maxmemory', '1')
    expect(await store.check?.()).toContainEqual(couldNot('they go on sharing them'))
    await again.undo()
    await claimTwo()
    expect(sent).toEqual([2])
  })
})

function sha(script: string): string {
  return createHash('sha1').update(script).digest('hex')
}

describeWith(['redis'], 'redisStore, where a cluster poses as one node', () => {
  const { redisUrl } = inject('services')
  let node: RedisServer
  let single: Redis
  beforeAll(async () => {
    node = await startRedisServer({
      args: ['--cluster-enabled', 'yes', '--cluster-announce-ip', '127.0.0.1'],
    })
    single = new Redis(node.url, { socketTimeout: 5000 })
    await single.call('CLUSTER', 'ADDSLOTSRANGE', '0', '16383')
    await vi.waitFor(async () => expect(await single.cluster('INFO')).toContain('cluster_state:ok'), 10_000)
  })
  afterAll(async () => {
    single.disconnect()
    await node.stop()
  })

  it('shares nothing, and has nothing to say', async () => {
    const sent: unknown[] = []
    const store = redisStore({
      info: single.info.bind(single),
      config: single.config.bind(single),
      callBuffer(command: string, args: RedisArgument[]) {
        if (command === 'evalsha') sent.push(args[1])
        return single.callBuffer(command, args)
      },
    })
    expect(await store.check?.()).toEqual([expect.stringContaining('persists nothing')])
    await single.script('LOAD', CLAIM)
    await Promise.all([aClaim(), aClaim(), aClaim()].map((claim) => store.claim(claim)))
    expect(sent).toEqual([1, 1, 1])
  })

  it('carries out each step of a command that it refuses, and shares no more', async () => {
    const plain = new Redis(redisUrl, { socketTimeout: 5000 })
    onTestFinished(() => plain.disconnect())
    const sent: unknown[] = []
    let to = plain
    const store = redisStore({
      info: plain.info.bind(plain),
      config: plain.config.bind(plain),
      callBuffer(command: string, args: RedisArgument[]) {
        if (command === 'evalsha') sent.push(args[1])
        return to.callBuffer(command, args)
      },
    })
    await store.check?.()
    await single.script('LOAD', CLAIM)
    to = single
    const claimThree = async () => {
      const claims = await Promise.all([aClaim(), aClaim(), aClaim()].map((claim) => store.claim(claim)))
      expect(claims.map(({ status }) => status)).toEqual(['acquired', 'acquired', 'acquired'])
    }
    await claimThree()
    expect(sent.splice(0)).toEqual([3, 1, 1, 1])
    await claimThree()
    expect(sent).toEqual([1, 1, 1])
  })
})
