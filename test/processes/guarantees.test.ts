import { randomUUID } from 'node:crypto'
import { afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest'
import { type Downstream, startDownstream } from '../support/downstream.js'
import { type HeldServer, type HeldServers, heldServers, heldTables } from '../support/held-server.js'
import { startPostgresServer } from '../support/postgres-server.js'
import { startRedisServer } from '../support/redis-server.js'
import { describeWith } from '../support/services.js'

// The cells of the table in docs/guarantees.md that have no test elsewhere. Each is named as it stands there.

const { redisUrl, postgresUrl } = inject('services')
const LAPSES = { timeout: 20_000, interval: 50 }
const LEASE = '500ms'
/** Long enough to see that a claim has outlived a crash of its store, and is not merely lapsed. */
const LONG_LEASE = '10m'

let held: HeldServers
const ends: (() => Promise<unknown>)[] = []
beforeEach(() => {
  held = heldServers()
})
afterEach(async () => {
  await held.close()
  for (const end of ends.splice(0).reverse()) await end()
})

/** Sends a request again and again until it has an answer that is final. */
async function retried(server: HeldServer, key: string): ReturnType<HeldServer['send']> {
  let answer: Awaited<ReturnType<HeldServer['send']>> | undefined
  await expect
    .poll(async () => {
      answer = await server.send(key)
      return answer.status
    }, LAPSES)
    .toBe(201)
  return answer ?? expect.fail('there is no answer')
}

describe('lease, any store | store loses its last writes', () => {
  const PERSISTENCE = {
    'without persistence': [],
    'with appendfsync always': ['--appendonly', 'yes', '--appendfsync', 'always'],
  } as const

  /** A completed operation and a running one, on a server that is then killed and started again. */
  async function afterACrash(start: () => Promise<{ store: 'redis' | 'postgres'; server: Crashing }>) {
    const { store, server } = await start()
    ends.push(() => server.stop())
    if (store === 'postgres') await (await heldTables(server.url)).close()
    const app = await held.start({
      store,
      url: server.url,
      way: 'lease',
      plugin: { lease: LONG_LEASE, storeTimeout: '10s' },
    })
    const [completed, running] = [randomUUID(), randomUUID()]
    expect((await app.send(completed)).status).toBe(201)
    await app.hold(running)
    await server.crash()
    // Another process, so that nothing is left but what the store knows.
    const other = await held.start({ store, url: server.url, way: 'lease', plugin: { lease: LONG_LEASE } })
    return { completed, running, other }
  }

  interface Crashing {
    readonly url: string
    crash(): Promise<void>
    stop(): Promise<void>
  }

  describeWith(['redis'], 'Redis: bounded by persistence', () => {
    async function crashing(persistence: keyof typeof PERSISTENCE) {
      return { store: 'redis' as const, server: await startRedisServer({ args: PERSISTENCE[persistence] }) }
    }

    it('without any, a retry runs every operation again', async () => {
      const { completed, running, other } = await afterACrash(() => crashing('without persistence'))
      for (const key of [completed, running])
        expect(await other.send(key)).toEqual({ status: 201, isReplay: false, body: { fence: 1 } })
    })

    it('with appendonly and appendfsync always, none lost', async () => {
      const { completed, running, other } = await afterACrash(() => crashing('with appendfsync always'))
      expect(await other.send(completed)).toEqual({ status: 201, isReplay: true, body: { fence: 1 } })
      expect((await other.send(running)).body.code).toBe('IDEMPOTENCY_KEY_IN_PROGRESS')
      expect([held.effectsOf(completed), held.effectsOf(running)]).toEqual([[1], [1]])
    })
  })

  describeWith(['postgres'], 'Postgres', () => {
    it('none lost', async () => {
      const { completed, running, other } = await afterACrash(async () => ({
        store: 'postgres' as const,
        server: await startPostgresServer({ settings: { fsync: 'on' } }),
      }))
      expect(await other.send(completed)).toEqual({ status: 201, isReplay: true, body: { fence: 1 } })
      expect((await other.send(running)).body.code).toBe('IDEMPOTENCY_KEY_IN_PROGRESS')
      expect([held.effectsOf(completed), held.effectsOf(running)]).toEqual([[1], [1]])
    })
  })
})

describeWith(['postgres'], 'transaction(), Postgres', () => {
  const options = (url: string) =>
    ({ store: 'postgres', url, way: 'transaction', plugin: { lease: LEASE, atomic: true } }) as const

  it('| handler dies after its effect | effect and answer roll back together; a retry runs it: exactly once', async () => {
    const tables = await heldTables(postgresUrl)
    ends.push(() => tables.close())
    const [dying, other] = await Promise.all([
      held.start(options(postgresUrl)),
      held.start(options(postgresUrl)),
    ])
    const key = randomUUID()
    await dying.hold(key)
    await dying.kill()
    expect(await tables.effectsOf(key)).toEqual([])
    expect(await retried(other, key)).toEqual({ status: 201, isReplay: false, body: { fence: 2 } })
    expect(await other.send(key)).toEqual({ status: 201, isReplay: true, body: { fence: 2 } })
    expect(await tables.effectsOf(key)).toEqual([2])
  })

  it('| store loses its last writes | together or not at all', async () => {
    const server = await startPostgresServer({ settings: { fsync: 'on' } })
    ends.push(() => server.stop())
    const tables = await heldTables(server.url)
    ends.push(() => tables.close())
    const app = await held.start(options(server.url))
    const keys = Array.from({ length: 60 }, () => randomUUID())
    const first = new Map<string, { readonly status: number; readonly body: unknown }>()
    // When it crashes, some have their effect and have not committed, some have committed, and the rest is under way.
    const running = await Promise.all(keys.slice(0, 5).map((key) => app.hold(key)))
    const answers = [...running.map(({ answer }) => answer), ...keys.slice(5).map((key) => app.send(key))]
    const sending = answers.map(async (answer, index) => first.set(keys[index] ?? '', await answer))
    await expect.poll(() => first.size, { timeout: 20_000, interval: 1 }).toBeGreaterThan(5)
    await server.crash()
    held.letGo(1)
    await Promise.all(sending)
    const succeeded = keys.filter((key) => first.get(key)?.status === 201)
    expect(succeeded.length).toBeGreaterThan(0)
    expect(succeeded.length).toBeLessThan(keys.length)
    await Promise.all(
      keys.map(async (key) => {
        const effects = await tables.effectsOf(key)
        const answer = await retried(app, key)
        const before = first.get(key)
        // Who was told of a success gets it again. Who was not gets what was kept with the effect, if there was one.
        if (before?.status === 201) expect(answer).toMatchObject({ isReplay: true, body: before.body })
        expect(answer.isReplay).toBe(effects.length === 1)
        expect(await tables.effectsOf(key)).toEqual([answer.body.fence])
      }),
    )
  }, 120_000)
})

describe('derived keys downstream', () => {
  let downstream: Downstream
  beforeEach(async () => {
    downstream = await startDownstream()
    ends.push(() => downstream.close())
  })

  for (const store of ['redis', 'postgres'] as const) {
    describeWith([store], `on ${store}`, () => {
      const url = store === 'redis' ? redisUrl : postgresUrl
      const start = () =>
        held.start({
          store,
          url,
          way: 'derived keys',
          downstream: downstream.url,
          plugin: { lease: LEASE, onUnknown: 'rerun' },
        })
      beforeAll(async () => {
        if (store === 'postgres') await (await heldTables(url)).close()
      })

      it('| handler dies after its effect | the re-run sends the same downstream keys', async () => {
        const [dying, other] = await Promise.all([start(), start()])
        const key = randomUUID()
        await dying.hold(key)
        await dying.kill()
        expect(await retried(other, key)).toEqual({ status: 201, isReplay: false, body: { fence: 2 } })
        expectSameKeyTwice()
      })

      it('| handler stalls past its lease | the re-run sends the same downstream keys', async () => {
        const [stalling, other] = await Promise.all([start(), start()])
        const key = randomUUID()
        const { answer } = await stalling.hold(key)
        stalling.stop()
        expect(await retried(other, key)).toEqual({ status: 201, isReplay: false, body: { fence: 2 } })
        held.letGo(1)
        stalling.resume()
        expect(await answer).toEqual({ status: 201, isReplay: true, body: { fence: 2 } })
        expectSameKeyTwice()
      })
    })
  }

  describeWith(['redis'], 'on a Redis that persists nothing', () => {
    it('| store loses its last writes | the re-run sends the same downstream keys', async () => {
      const server = await startRedisServer()
      ends.push(() => server.stop())
      const app = await held.start({
        store: 'redis',
        url: server.url,
        way: 'derived keys',
        downstream: downstream.url,
        plugin: { storeTimeout: '10s' },
      })
      const key = randomUUID()
      expect((await app.send(key)).status).toBe(201)
      await server.crash()
      expect(await retried(app, key)).toEqual({ status: 201, isReplay: false, body: { fence: 1 } })
      expectSameKeyTwice()
    })
  })

  function expectSameKeyTwice(): void {
    expect(downstream.keys).toHaveLength(2)
    expect(new Set(downstream.keys).size).toBe(1)
  }
})
