import { randomUUID } from 'node:crypto'
import { Redis } from 'ioredis'
import { afterAll, afterEach, beforeAll, beforeEach, expect, inject, it } from 'vitest'
import type { HeldServerOptions } from '../programs/held-server.js'
import {
  type HeldServer,
  type HeldServers,
  type HeldTables,
  heldServers,
  heldTables,
} from '../support/held-server.js'
import { describeWith } from '../support/services.js'

const { redisUrl, postgresUrl } = inject('services')
const LEASE = '500ms'
const LAPSES = { timeout: 20_000, interval: 50 }

let held: HeldServers
beforeEach(() => {
  held = heldServers()
})
afterEach(() => held.close())

/** Two servers. A request is held in the first one, which then is stopped in the middle of its handler. */
async function stoppedInTheMiddle(options: Omit<HeldServerOptions, 'told' | 'gate'>): Promise<{
  readonly key: string
  readonly stopped: HeldServer
  readonly other: HeldServer
  /** What the stopped server's client is answered with, once it goes on. */
  readonly late: ReturnType<HeldServer['send']>
}> {
  const [stopped, other] = await Promise.all([held.start(options), held.start(options)])
  const key = randomUUID()
  const { answer: late } = await stopped.hold(key)
  stopped.stop()
  return { key, stopped, other, late }
}

/** What a process that was overtaken must have told: it lost the claim, its signal has aborted, its answer is not kept. */
function expectOvertaken(server: HeldServer, key: string): void {
  const told = server.told(key)
  expect(told).toContainEqual({ tells: 'aborted', key, fence: 1 })
  const events = told.flatMap((line) => (line.tells === 'event' ? [line.type] : []))
  expect(events).toEqual(expect.arrayContaining(['claim-lost', 'outcome-lost']))
  expect(events).not.toContain('completed')
}

const WAYS = {
  'a transaction on Postgres': { store: 'postgres', url: postgresUrl, way: 'transaction' },
  'a lease on Postgres': { store: 'postgres', url: postgresUrl, way: 'lease' },
  'a lease on Redis': { store: 'redis', url: redisUrl, way: 'lease' },
} as const

for (const [name, way] of Object.entries(WAYS)) {
  describeWith([way.store], `a process stopped past its lease, in the middle of ${name}`, () => {
    let tables: HeldTables | undefined
    beforeAll(async () => {
      if (way.store === 'postgres') tables = await heldTables(way.url)
    })
    afterAll(() => tables?.close())

    const rerun = { ...way, plugin: { lease: LEASE, onUnknown: 'rerun' } } as const

    async function effectsOf(key: string): Promise<readonly number[]> {
      return way.way === 'transaction' ? ((await tables?.effectsOf(key)) ?? []) : held.effectsOf(key)
    }

    it.each(['before it has noticed', 'after its signal has aborted'])(
      'writes nothing when it comes to its end %s, and answers what the other kept',
      async (when) => {
        const { key, stopped, other, late } = await stoppedInTheMiddle(rerun)
        await expect.poll(async () => (await other.send(key)).status, LAPSES).toBe(201)
        if (when === 'before it has noticed') held.letGo(1)
        stopped.resume()
        if (when === 'after its signal has aborted') {
          await expect
            .poll(() => stopped.told(key), LAPSES)
            .toContainEqual({ tells: 'aborted', key, fence: 1 })
          held.letGo(1)
        }
        expect(await late).toEqual({ status: 201, isReplay: true, body: { fence: 2 } })
        expectOvertaken(stopped, key)
        // The effect of a lease is a line that nothing can take back. That of a transaction was rolled back.
        expect(await effectsOf(key)).toEqual(way.way === 'transaction' ? [2] : [1, 2])
        for (const server of [stopped, other])
          expect(await server.send(key)).toEqual({ status: 201, isReplay: true, body: { fence: 2 } })
        await expectRecord(key)
      },
    )

    it('writes nothing when it goes on while the other still runs, and is refused', async () => {
      const { key, stopped, other, late } = await stoppedInTheMiddle(rerun)
      const answers: Promise<unknown>[] = []
      await expect
        .poll(() => {
          answers.push(other.send(key, { 'x-hold': '2' }).catch((error: unknown) => error))
          return other.told(key).some(({ tells }) => tells === 'held')
        }, LAPSES)
        .toBe(true)
      held.letGo(1)
      stopped.resume()
      expect(await late).toMatchObject({ status: 409, body: { code: 'IDEMPOTENCY_KEY_IN_PROGRESS' } })
      expectOvertaken(stopped, key)
      held.letGo(2)
      expect(await Promise.all(answers)).toContainEqual({ status: 201, isReplay: false, body: { fence: 2 } })
      expect(await stopped.send(key)).toEqual({ status: 201, isReplay: true, body: { fence: 2 } })
      expect(await effectsOf(key)).toEqual(way.way === 'transaction' ? [2] : [1, 2])
      await expectRecord(key)
    })

    /** The record is that of the run that took over. */
    async function expectRecord(key: string): Promise<void> {
      if (tables !== undefined) {
        expect(await tables.recordOf(key)).toEqual({ status: 'completed', fence: 2, body: '{"fence":2}' })
        return
      }
      const redis = new Redis(redisUrl)
      const texts = await Promise.all((await redis.keys('oncekey:*')).map((one) => redis.get(one)))
      redis.disconnect()
      const [record] = texts.filter((text) => text?.includes(key) === true)
      expect(record).toMatch(/^1C\d{13} \S+ 2 [^\n]*\n.*\{"fence":2\}$/s)
    }
  })
}

for (const store of ['redis', 'postgres'] as const) {
  describeWith([store], `a process stopped past its lease, without a take-over, on ${store}`, () => {
    const url = store === 'redis' ? redisUrl : postgresUrl
    beforeAll(async () => {
      if (store === 'postgres') await (await heldTables(url)).close()
    })

    it('a second run is refused; the late answer is kept', async () => {
      const { key, stopped, other, late } = await stoppedInTheMiddle({
        store,
        url,
        way: 'lease',
        plugin: { lease: LEASE },
      })
      await expect
        .poll(async () => (await other.send(key)).body.code, LAPSES)
        .toBe('IDEMPOTENCY_OUTCOME_UNKNOWN')
      held.letGo(1)
      stopped.resume()
      expect(await late).toEqual({ status: 201, isReplay: false, body: { fence: 1 } })
      for (const server of [stopped, other])
        expect(await server.send(key)).toEqual({ status: 201, isReplay: true, body: { fence: 1 } })
      expect(held.effectsOf(key)).toEqual([1])
    })
  })
}

describeWith(['postgres'], 'the locks of a process stopped inside of its transaction', () => {
  let tables: HeldTables
  beforeAll(async () => {
    tables = await heldTables(postgresUrl)
  })
  afterAll(() => tables.close())

  async function lockingServers(given: Partial<HeldServerOptions> = {}) {
    const row = randomUUID()
    await tables.addRow(row)
    const options = {
      store: 'postgres',
      url: postgresUrl,
      way: 'transaction',
      locksRow: row,
      plugin: { lease: LEASE, atomic: true, transaction: { lockTimeout: '200ms' } },
      ...given,
    } as const
    return { row, ...(await stoppedInTheMiddle(options)) }
  }

  it('keep others from running again, who give up after lockTimeout, until it goes on', async () => {
    const { row, key, stopped, other, late } = await lockingServers()
    await expect.poll(async () => (await other.send(key)).status, LAPSES).toBe(500)
    expect((await other.send(key)).status).toBe(500)
    held.letGo(1)
    stopped.resume()
    // Whoever of the two has the claim when the other comes to its commit: nothing is done twice.
    await late
    await expect.poll(async () => (await other.send(key)).status, LAPSES).toBe(201)
    expect(await tables.effectsOf(key)).toHaveLength(1)
    expect(await tables.changesOf(row)).toBe(1)
  })

  it('end with its session, where the database ends sessions that idle in a transaction', async () => {
    const { row, key, stopped, other, late } = await lockingServers({ idleInTransactionMs: 1000 })
    await expect.poll(async () => (await other.send(key)).status, LAPSES).toBe(201)
    const kept = await other.send(key)
    held.letGo(1)
    stopped.resume()
    expect(await late).toMatchObject({ status: 503, body: { code: 'IDEMPOTENCY_STORE_UNAVAILABLE' } })
    expect(await stopped.send(key)).toEqual(kept)
    expect(await tables.effectsOf(key)).toEqual([kept.body.fence])
    expect(await tables.changesOf(row)).toBe(1)
  })
})
