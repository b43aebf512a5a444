import { randomUUID } from 'node:crypto'
import Fastify, { type FastifyInstance } from 'fastify'
import { Pool } from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest'
import idempotency from '../../src/adapters/fastify.js'
import { recordId } from '../../src/contract/key.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { until } from '../../src/testing/store-fixtures.js'
import { type Fault, type FaultProxy, startFaultProxy } from '../../src/testing/test-kit.js'
import { send } from '../support/fastify-app.js'
import { said } from '../support/fault-bench.js'
import { type Money, someMoney } from '../support/money.js'
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
const ALL = Object.keys(FAULTS) as FaultName[]

/** What goes over the wire at each step of a transaction, and at no other. */
const STEPS = {
  begin: /\0?begin\0/,
  'a statement of the application': /insert into \S+\.transfers/,
  'the outcome and the commit': /; commit/,
} as const

/** What happens to an operation when a step of its transaction meets one of `faults`. */
interface Cells {
  readonly step: keyof typeof STEPS
  readonly faults: readonly FaultName[]
  readonly answer: string
  /** What the store says once the fault is healed and nobody has retried yet. */
  readonly record: 'absent' | 'completed' | 'absent or completed'
  readonly retry: readonly string[]
}

const AWAY = '503 STORE_UNAVAILABLE'
const UNDECIDED = '503 COMMIT_UNDECIDED'

const TABLE: readonly Cells[] = [
  { step: 'begin', faults: ALL, answer: AWAY, record: 'absent', retry: ['201'] },
  // The application hears of its own statement first, and fails: 500, and nothing has happened.
  { step: 'a statement of the application', faults: ALL, answer: '500', record: 'absent', retry: ['201'] },
  {
    step: 'the outcome and the commit',
    // It did not arrive, and after the claim is given back it cannot commit any more: also not when it arrives late.
    faults: ['cut', 'reset', 'stall', 'half-open'],
    answer: AWAY,
    record: 'absent',
    retry: ['201'],
  },
  {
    step: 'the outcome and the commit',
    faults: ['drop the answer', 'drop the answer, half-open'],
    answer: '201',
    record: 'completed',
    retry: ['201 replayed'],
  },
  {
    step: 'the outcome and the commit',
    faults: ['cut everywhere', 'half-open everywhere'],
    answer: UNDECIDED,
    record: 'absent',
    retry: ['201'],
  },
  {
    step: 'the outcome and the commit',
    // When everything goes on at once, the commit and the step that decides about it meet at the server.
    faults: ['stall everywhere'],
    answer: UNDECIDED,
    record: 'absent or completed',
    retry: ['201', '201 replayed'],
  },
]

const STORE_TIMEOUT_MS = 400
/** How long the pool waits for a connection that says nothing: also for the application's own statements. */
const SILENCE_MS = 1000

describeWith(['postgres'], 'a fault between a transaction and Postgres', () => {
  const { postgresUrl } = inject('services')
  let direct: Pool
  let money: Money
  let proxy: FaultProxy
  let broken: Pool
  let app: FastifyInstance

  beforeAll(async () => {
    direct = new Pool({ connectionString: postgresUrl, max: 4 })
    await postgresStore(direct).migrate()
  })
  afterAll(() => direct.end())
  beforeEach(async () => {
    money = await someMoney(direct, `money_${randomUUID().slice(0, 8)}`)
    const { hostname, port } = new URL(postgresUrl)
    proxy = await startFaultProxy({ target: { host: hostname, port: Number(port) } })
    broken = new Pool({
      connectionString: proxy.through(postgresUrl),
      max: 4,
      connectionTimeoutMillis: SILENCE_MS,
      query_timeout: SILENCE_MS,
    })
    // A pool without a listener ends the process when an idle connection breaks.
    broken.on('error', () => {})
    app = Fastify()
    await app.register(idempotency, {
      store: postgresStore(broken),
      scope: 'shared',
      namespace: money.schema,
      storeTimeout: STORE_TIMEOUT_MS,
      sweep: false,
    })
    app.post('/', { config: { idempotency: { atomic: true } } }, (request, reply) =>
      request.idempotency.transaction(async (tx) => {
        const { key } = request.idempotency
        await tx.query(`insert into ${money.schema}.transfers (key, payee, amount) values ($1, 'bob', 1)`, [
          key,
        ])
        reply.code(201)
        return { key }
      }),
    )
    await app.ready()
  })
  afterEach(async () => {
    proxy.heal()
    await app.close()
    await proxy.stop()
    await broken.end()
    await money.drop()
  })

  const cells = TABLE.flatMap(({ faults, ...cell }) => faults.map((fault) => ({ fault, ...cell })))

  it('is tried with every fault at every step', () => {
    const tried = cells.map(({ step, fault }) => `${step}, ${fault}`)
    expect(new Set(tried).size).toBe(cells.length)
    expect(tried.length).toBe(ALL.length * Object.keys(STEPS).length)
  })

  describe.each(Object.keys(STEPS) as (keyof typeof STEPS)[])('at %s', (step) => {
    it.each(cells.filter((cell) => cell.step === step))(
      '($fault) is answered with $answer, leaves the record $record, and the effect is there once in the end',
      async ({ fault, answer, record, retry }) => {
        const key = randomUUID()
        const armed = proxy.arm({ ...FAULTS[fault], match: STEPS[step] })
        expect(said(await send(app, '/', { key }))).toBe(answer)
        expect(armed.timesFired).toBe(1)

        proxy.heal()
        const id = recordId({ namespace: money.schema, scope: 'shared', key })
        await until(postgresStore(direct), id, (found) => record.includes(found?.status ?? 'absent'))
        const retried = await sendUntilAnswered(key)
        expect(retry).toContain(said(retried))
        expect(await send(app, '/', { key })).toMatchObject({ isReplay: true, bytes: retried.bytes })
        expect(await money.transfers()).toEqual([key])
      },
    )
  })

  /** Sends the request again for as long as it is told to. */
  async function sendUntilAnswered(key: string): ReturnType<typeof send> {
    for (;;) {
      const answer = await send(app, '/', { key })
      if (![AWAY, UNDECIDED, '409 KEY_IN_PROGRESS', '500'].includes(said(answer))) return answer
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }
})
