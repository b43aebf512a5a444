import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { until } from '../../src/testing/store-fixtures.js'
import { type Fault, type FaultProxy, startFaultProxy } from '../../src/testing/test-kit.js'
import { type FaultBackend, postgresBackend, redisBackend } from '../support/fault-backends.js'
import { type FaultBench, openFaultBench, said } from '../support/fault-bench.js'
import { type FaultyStep, STEPS, type Step } from '../support/fault-steps.js'
import { gate } from '../support/gate.js'
import { describeWith } from '../support/services.js'

const FAULTS = {
  cut: { kind: 'cut' },
  reset: { kind: 'reset' },
  'drop the answer': { kind: 'drop-answer' },
  'cut everywhere': { kind: 'cut', everywhere: true },
  stall: { kind: 'stall' },
  'stall everywhere': { kind: 'stall', everywhere: true },
  'half-open': { kind: 'half-open' },
  'half-open everywhere': { kind: 'half-open', everywhere: true },
  'drop the answer, half-open': { kind: 'drop-answer', leaves: 'half-open' },
} as const satisfies Record<string, Fault>

type FaultName = keyof typeof FAULTS

/** The client learns of these at once, and a new connection is to be had. */
const LOUD: readonly FaultName[] = ['cut', 'reset', 'drop the answer']
/** Of these it does not learn, or there is no new connection until the fault is healed. */
const LASTING: readonly FaultName[] = [
  'cut everywhere',
  'stall',
  'stall everywhere',
  'half-open',
  'half-open everywhere',
  'drop the answer, half-open',
]
const ALL = [...LOUD, ...LASTING]

/** What happens to an operation when a step of it meets one of `faults`. */
interface Cells {
  readonly faults: readonly FaultName[]
  /** What the client is answered with. */
  readonly answer: string
  /** The trouble that operators are told of, until then. */
  readonly reported?: string
  /** Whether the run loses its outcome to another one. */
  readonly isLost?: boolean
  /** What the store says once the fault is healed, before anybody retries. */
  readonly record: 'absent' | 'unknown' | 'completed'
  /** What a retry is answered with, in the end. */
  readonly retry: string
  /** How often the handler has run by then. */
  readonly runs: number
}

type Table = Readonly<Record<FaultyStep, readonly Cells[]>>

const AWAY = '503 STORE_UNAVAILABLE'

/** ioredis connects anew and sends again what was not answered: what breaks loudly is not even noticed. */
const REDIS: Table = {
  claim: [
    { faults: LOUD, answer: '201', record: 'completed', retry: '201 replayed', runs: 1 },
    { faults: LASTING, answer: AWAY, reported: 'claim-abandoned', record: 'absent', retry: '201', runs: 1 },
  ],
  renewal: [
    { faults: LOUD, answer: '201', record: 'completed', retry: '201 replayed', runs: 1 },
    {
      faults: LASTING,
      answer: '201',
      reported: 'renewal-failed',
      record: 'completed',
      retry: '201 replayed',
      runs: 1,
    },
  ],
  completion: [
    { faults: LOUD, answer: '201', record: 'completed', retry: '201 replayed', runs: 1 },
    {
      faults: LASTING,
      answer: '201',
      reported: 'save-failed',
      record: 'completed',
      retry: '201 replayed',
      runs: 1,
    },
  ],
  release: [
    { faults: LOUD, answer: '429', record: 'absent', retry: '201', runs: 2 },
    { faults: LASTING, answer: '429', reported: 'release-failed', record: 'absent', retry: '201', runs: 2 },
  ],
  replay: [
    { faults: LOUD, answer: '201 replayed', record: 'completed', retry: '201 replayed', runs: 1 },
    {
      faults: LASTING,
      answer: AWAY,
      reported: 'claim-abandoned',
      record: 'completed',
      retry: '201 replayed',
      runs: 1,
    },
  ],
  'reading the answer of another run': [
    {
      faults: LOUD,
      answer: '201 replayed',
      isLost: true,
      record: 'completed',
      retry: '201 replayed',
      runs: 2,
    },
    { faults: LASTING, answer: AWAY, isLost: true, record: 'completed', retry: '201 replayed', runs: 2 },
  ],
  settling: [
    { faults: LOUD, answer: '201 replayed', record: 'completed', retry: '201 replayed', runs: 0 },
    { faults: LASTING, answer: AWAY, record: 'completed', retry: '201 replayed', runs: 0 },
  ],
}

/** pg fails a statement with its connection. It is never sent again by itself: the engine, or the client, does so. */
const POSTGRES: Table = {
  claim: [
    { faults: ALL, answer: AWAY, reported: 'claim-abandoned', record: 'absent', retry: '201', runs: 1 },
  ],
  renewal: [
    {
      faults: ALL,
      answer: '201',
      reported: 'renewal-failed',
      record: 'completed',
      retry: '201 replayed',
      runs: 1,
    },
  ],
  completion: [
    {
      faults: ALL,
      answer: '201',
      reported: 'save-failed',
      record: 'completed',
      retry: '201 replayed',
      runs: 1,
    },
  ],
  release: [
    { faults: ALL, answer: '429', reported: 'release-failed', record: 'absent', retry: '201', runs: 2 },
  ],
  replay: [
    {
      faults: ALL,
      answer: AWAY,
      reported: 'claim-abandoned',
      record: 'completed',
      retry: '201 replayed',
      runs: 1,
    },
  ],
  'reading the answer of another run': [
    { faults: ALL, answer: AWAY, isLost: true, record: 'completed', retry: '201 replayed', runs: 2 },
  ],
  settling: [
    {
      faults: ['cut', 'reset', 'cut everywhere', 'half-open', 'half-open everywhere'],
      answer: AWAY,
      record: 'unknown',
      retry: '201 replayed',
      runs: 0,
    },
    {
      faults: ['drop the answer', 'drop the answer, half-open', 'stall', 'stall everywhere'],
      answer: AWAY,
      record: 'completed',
      retry: '201 replayed',
      runs: 0,
    },
  ],
}

/** A step that is to fail in time must not fail on a busy machine before anything has befallen it. */
const BRIEF_MS = 500
/** A step that is to succeed, or to fail at once, never waits as long. */
const LONG_MS = 10_000

const BACKENDS = [
  { name: 'redis (ioredis 5)', service: 'redis', start: () => redisBackend(5), table: REDIS },
  { name: 'redis (ioredis 6)', service: 'redis', start: () => redisBackend(6), table: REDIS },
  {
    name: 'postgres',
    service: 'postgres',
    start: () => postgresBackend(inject('services').postgresUrl),
    table: POSTGRES,
  },
] as const

for (const { name, service, start, table } of BACKENDS) {
  describeWith([service], `a fault between the engine and ${name}`, () => {
    let backend: FaultBackend
    beforeAll(async () => {
      backend = await start()
    })
    afterAll(() => backend.stop())

    describe.concurrent.each(Object.entries(table) as [FaultyStep, readonly Cells[]][])(
      'at %s',
      (step, cells) => {
        const rows = cells.flatMap(({ faults, ...expected }) => faults.map((fault) => ({ fault, expected })))

        for (const { fault, expected } of rows) {
          const { answer, record, retry } = expected
          it(`${fault}: ${answer}, then ${record}, and a retry gets ${retry}`, async (test) => {
            const isLoud = LOUD.includes(fault)
            const { hasOwnTimeout = false }: Step = STEPS[step]
            const bench = await openFaultBench(backend, STEPS[step], {
              fault: FAULTS[fault],
              storeTimeoutMs: isLoud || hasOwnTimeout ? LONG_MS : BRIEF_MS,
            })
            test.onTestFinished(bench.close)
            await check(bench, STEPS[step], expected)
            // Nobody waited for a timeout.
            if (isLoud) expect(bench.longestWaitMs).toBeLessThan(LONG_MS / 2)
          })
        }

        it('and in no other way', () => {
          expect(rows.map(({ fault }) => fault).sort()).toEqual(Object.keys(FAULTS).sort())
        })
      },
    )
  })
}

async function check(bench: FaultBench, step: Step, expected: Omit<Cells, 'faults'>): Promise<void> {
  const answer = await step.run(bench)
  expect(bench.struck?.timesFired).toBe(1)
  expect(said(answer)).toBe(expected.answer)
  expect([...new Set(bench.troubles)].join()).toBe(expected.reported ?? '')

  bench.proxy.heal()
  await until(bench.backend.direct, bench.id, (record) => (record?.status ?? 'absent') === expected.record)
  const retry = await retried(bench)
  expect(said(retry)).toBe(expected.retry)
  expect(bench.runs).toBe(expected.runs)
  expect(bench.events.some(({ type }) => type === 'outcome-lost')).toBe(expected.isLost ?? false)

  const last = await retried(bench)
  expect(said(last)).toBe('201 replayed')
  expect(bench.runs).toBe(expected.runs)
  for (const given of [answer, retry].filter(({ status }) => status === 201))
    expect(given.bytes).toEqual(last.bytes)
}

/** Sends the request again for as long as it is told to. */
async function retried(bench: FaultBench) {
  for (;;) {
    const answer = await bench.send()
    if (![AWAY, '409 KEY_IN_PROGRESS'].includes(said(answer))) return answer
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

describeWith(['postgres'], 'a fault between the engine and one of many connections', () => {
  let backend: FaultBackend
  beforeAll(async () => {
    backend = await postgresBackend(inject('services').postgresUrl)
  })
  afterAll(() => backend.stop())

  it.each(['stall', 'half-open'] as const)(
    '(%s) does not keep a retry from another connection',
    async (kind) => {
      const bench = await openFaultBench(backend, STEPS.claim, { fault: { kind }, storeTimeoutMs: BRIEF_MS })
      expect(said(await STEPS.claim.run(bench))).toBe(AWAY)
      const retry = await retried(bench)
      expect(said(retry)).toBe('201')
      bench.proxy.heal()
      expect(await retried(bench)).toMatchObject({ isReplay: true, bytes: retry.bytes })
      expect(bench.runs).toBe(1)
      await bench.close()
    },
  )

  /** A bench whose claim stalls, and whose steps at the store pass through `wrap`. */
  async function openStalled(
    storeTimeoutMs: number,
    wrap: (store: IdempotencyStore, proxy: FaultProxy) => Partial<IdempotencyStore>,
  ): Promise<FaultBench> {
    const proxy = await startFaultProxy({ target: backend.target })
    const connection = backend.connect(proxy)
    const store = { ...connection.store, ...wrap(connection.store, proxy) }
    const through = { proxy, connection: { ...connection, store } }
    return openFaultBench(backend, STEPS.claim, { fault: { kind: 'stall' }, storeTimeoutMs, through })
  }

  it('gives back a claim that arrives after its release', async () => {
    const arrived = gate()
    const bench = await openStalled(BRIEF_MS, (store) => ({
      async claim(request) {
        const result = await store.claim(request)
        arrived.open()
        return result
      },
    }))
    expect(said(await STEPS.claim.run(bench))).toBe(AWAY)
    await bench.reports((events) =>
      events.some((event) => event.type === 'store-call' && event.step === 'release'),
    )
    bench.proxy.heal()
    await arrived.opened
    await until(backend.direct, bench.id, (record) => record === undefined)
    expect(said(await retried(bench))).toBe('201')
    expect(bench.runs).toBe(1)
    await bench.close()
  })

  it('gives back a claim that arrives after its connection was given up, and after its release', async () => {
    const claimFailed = gate()
    let releases = 0
    const bench = await openStalled(LONG_MS, (store, proxy) => ({
      claim: (request) =>
        Promise.resolve(store.claim(request)).catch((error: unknown) => {
          claimFailed.open()
          throw error
        }),
      async release(id, token) {
        await claimFailed.opened
        releases += 1
        if (releases > 1) await until(backend.direct, id, (record) => record?.status === 'running')
        const released = await store.release(id, token)
        // What was held in front of the server reaches it only now.
        proxy.heal()
        return released
      },
    }))
    expect(said(await STEPS.claim.run(bench))).toBe(AWAY)
    await expect.poll(() => releases, { timeout: 10_000 }).toBe(2)
    await until(backend.direct, bench.id, (record) => record === undefined)
    expect(said(await retried(bench))).toBe('201')
    await bench.close()
  })
})
