import { randomUUID } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import type { ClaimRequest } from '../../src/contract/store.js'
import { createEngine, type Engine, type Operation } from '../../src/core/engine.js'
import type { IdempotencyEvent } from '../../src/core/events.js'
import type { Execution } from '../../src/core/execution.js'
import { DEFAULT_POLICY, type Policy } from '../../src/core/policy.js'
import { memoryStore } from '../../src/stores/memory.js'
import { anOutcome, HOUR } from '../../src/testing/store-fixtures.js'
import { type DisturbedStore, disturbed } from '../support/disturbed-store.js'
import { gate } from '../support/gate.js'

interface Setup {
  readonly engine: Engine
  readonly line: DisturbedStore
  readonly events: IdempotencyEvent[]
}

function setUp(
  given: {
    readonly cached?: boolean
    readonly shared?: DisturbedStore
    readonly storeTimeoutMs?: number
  } = {},
): Setup {
  const line = given.shared ?? disturbed(memoryStore())
  const engine = createEngine({
    store: line.store,
    namespace: '',
    storeTimeoutMs: given.storeTimeoutMs ?? 50,
    replayCache: given.cached === true && { entries: 100, bytes: 1_000_000, maxAgeMs: HOUR },
    sweepMs: false,
  })
  const events: IdempotencyEvent[] = []
  engine.on((event) => events.push(event))
  return { engine, line, events }
}

function anOperation(policy: Partial<Policy> = {}, given: Partial<Operation> = {}): Operation {
  return {
    scope: 'acme',
    key: randomUUID(),
    fingerprint: 'one',
    route: 'POST /payments',
    policy: { ...DEFAULT_POLICY, ...policy },
    ...given,
  }
}

async function run(engine: Engine, operation: Operation): Promise<Execution> {
  const begun = await engine.begin(operation)
  if (begun.kind !== 'run') throw new Error('The operation was replayed')
  return begun.execution
}

function typesOf(events: readonly IdempotencyEvent[]): string[] {
  return events.map(({ type }) => type).filter((type) => type !== 'store-call')
}

/** A policy whose lease lapses soon, for a holder that cannot renew. */
const SHORT: Partial<Policy> = { leaseMs: 60, maxRunMs: 20_000 }

describe('engine › begin', () => {
  it('runs a new operation, and replays its outcome to every retry', async () => {
    const { engine, events } = setUp()
    const operation = anOperation()
    const execution = await run(engine, operation)
    expect(execution).toMatchObject({ fence: 1, isProtected: true })
    expect(await execution.complete(anOutcome())).toEqual({ whose: 'own' })
    const replay = await engine.begin(operation)
    expect(replay).toMatchObject({ kind: 'replay', outcome: anOutcome() })
    expect(typesOf(events)).toEqual(['claimed', 'completed', 'claim-ended', 'replayed'])
  })

  it('refuses a duplicate while the first is running', async () => {
    const { engine, events } = setUp()
    const operation = anOperation()
    await run(engine, operation)
    await expect(engine.begin(operation)).rejects.toMatchObject({ code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
    expect(typesOf(events)).toEqual(['claimed', 'in-progress'])
  })

  it.each(['running', 'unknown', 'completed', 'cached'])(
    'refuses another fingerprint while the key is %s, and keeps the first outcome',
    async (state) => {
      const { engine, line } = setUp({ cached: state === 'cached' })
      const operation = anOperation(SHORT)
      const execution = await run(engine, operation)
      if (state === 'unknown') {
        line.disturb('renew', 'fails')
        await expect
          .poll(() => engine.begin(operation).catch((error) => error.code))
          .toBe('IDEMPOTENCY_OUTCOME_UNKNOWN')
      }
      if (state === 'completed' || state === 'cached') await execution.complete(anOutcome())
      if (state === 'cached') await engine.begin(operation)
      await expect(engine.begin({ ...operation, fingerprint: 'two' })).rejects.toMatchObject({
        code: 'IDEMPOTENCY_KEY_REUSED',
      })
      await execution.complete(anOutcome())
      expect(await engine.begin(operation)).toMatchObject({ kind: 'replay', outcome: anOutcome() })
    },
  )

  it('keeps scopes and namespaces apart', async () => {
    const { engine } = setUp()
    const operation = anOperation()
    await (await run(engine, operation)).complete(anOutcome())
    expect(await engine.begin({ ...operation, scope: 'other' })).toMatchObject({ kind: 'run' })
  })

  it.each([
    [{ key: '' }, 'IDEMPOTENCY_KEY_INVALID'],
    [{ key: 'k'.repeat(256) }, 'IDEMPOTENCY_KEY_INVALID'],
    [{ key: 'a\nb' }, 'IDEMPOTENCY_KEY_INVALID'],
    [{ key: '\ud800' }, 'IDEMPOTENCY_KEY_INVALID'],
    [{ scope: '' }, 'IDEMPOTENCY_SCOPE_MISSING'],
    [{ scope: '\ud800' }, 'IDEMPOTENCY_SCOPE_MISSING'],
  ])('refuses %o', async (given, code) => {
    const { engine, line } = setUp()
    await expect(engine.begin(anOperation({}, given))).rejects.toMatchObject({ code })
    expect(line.calls.claim).toBe(0)
  })

  it('asks the store for one claim, however many callers of one id there are', async () => {
    const { engine, line } = setUp()
    const operation = anOperation()
    const begun = await Promise.allSettled(Array.from({ length: 100 }, () => engine.begin(operation)))
    expect(begun.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
    expect(line.calls.claim).toBe(1)
  })

  it('answers a storm of retries from its cache, after the first, without the store', async () => {
    const { engine, line, events } = setUp({ cached: true })
    const operation = anOperation()
    await (await run(engine, operation)).complete(anOutcome())
    expect(await engine.begin(operation)).toMatchObject({ kind: 'replay' })
    const before = { ...line.calls }
    await Promise.all(Array.from({ length: 50 }, () => engine.begin(operation)))
    expect(line.calls).toEqual(before)
    expect(events.filter((event) => event.type === 'replayed' && event.from === 'cache')).toHaveLength(50)
  })

  it('does not answer from its cache past the ttl of the outcome', async () => {
    const { engine } = setUp({ cached: true })
    const operation = anOperation({ ttlMs: 30 })
    await (await run(engine, operation)).complete(anOutcome())
    await engine.begin(operation)
    await expect.poll(async () => (await engine.begin(operation).catch(() => undefined))?.kind).toBe('run')
  })

  it('survives a listener that throws', async () => {
    const { engine } = setUp()
    const warned = new Promise((resolve) => process.once('warning', resolve))
    engine.on(() => {
      throw new Error('a broken listener')
    })
    await (await run(engine, anOperation())).complete(anOutcome())
    expect(await warned).toMatchObject({ message: 'a broken listener' })
  })
})

describe('engine › holding a claim', () => {
  it('renews it for as long as the handler runs', async () => {
    const { engine, line } = setUp()
    const other = setUp({ shared: line })
    const operation = anOperation(SHORT)
    const execution = await run(engine, operation)
    await expect.poll(() => line.calls.renew).toBeGreaterThan(5)
    await expect(other.engine.begin(operation)).rejects.toMatchObject({ code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
    expect(execution.signal.aborted).toBe(false)
    await execution.complete(anOutcome())
    expect(await other.engine.begin(operation)).toMatchObject({ kind: 'replay' })
  })

  it('aborts the signal when the claim may be lost, and keeps the late outcome', async () => {
    const { engine, line, events } = setUp()
    const operation = anOperation(SHORT)
    const execution = await run(engine, operation)
    line.disturb('renew', 'stalls')
    await new Promise((resolve) => execution.signal.addEventListener('abort', resolve))
    expect(execution.signal.reason).toMatchObject({ code: 'IDEMPOTENCY_CLAIM_LOST' })
    expect(typesOf(events)).toContain('claim-lost')
    await expect
      .poll(() => engine.begin(operation).catch((error) => error.code))
      .toBe('IDEMPOTENCY_OUTCOME_UNKNOWN')
    expect(await execution.complete(anOutcome())).toEqual({ whose: 'own' })
    expect(await engine.begin(operation)).toMatchObject({ kind: 'replay' })
  })

  it('stops at maxRun: the signal aborts, and the operation becomes unknown', async () => {
    const { engine, events } = setUp()
    const operation = anOperation({ leaseMs: 40, maxRunMs: 100 })
    const execution = await run(engine, operation)
    await new Promise((resolve) => execution.signal.addEventListener('abort', resolve))
    expect(execution.signal.reason).toMatchObject({ code: 'IDEMPOTENCY_MAX_RUN_EXCEEDED' })
    await expect
      .poll(() => engine.begin(operation).catch((error) => error.code))
      .toBe('IDEMPOTENCY_OUTCOME_UNKNOWN')
    expect(typesOf(events)).toContain('max-run')
  })

  it('gives a released key to the next caller', async () => {
    const { engine, events } = setUp()
    const operation = anOperation()
    await (await run(engine, operation)).release()
    expect(await run(engine, operation)).toMatchObject({ fence: 1 })
    expect(typesOf(events)).toEqual(['claimed', 'released', 'claim-ended', 'claimed'])
  })

  it('ends once: a second completion or release changes nothing', async () => {
    const { engine, line } = setUp()
    const execution = await run(engine, anOperation())
    await execution.complete(anOutcome())
    await execution.complete(anOutcome({ head: 'second' }))
    await execution.release()
    expect(line.calls).toMatchObject({ complete: 1, release: 0 })
  })
})

describe('engine › a store that is away', () => {
  it.each(['fails', 'stalls'] as const)('refuses within the timeout when the claim %s', async (how) => {
    const { engine, line } = setUp()
    line.disturb('claim', how)
    const startedAt = performance.now()
    await expect(engine.begin(anOperation())).rejects.toMatchObject({ code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
    expect(performance.now() - startedAt).toBeLessThan(1000)
  })

  it('gives back a claim whose answer was lost', async () => {
    const { engine, line, events } = setUp()
    const operation = anOperation()
    line.disturb('claim', 'loses-answer')
    await expect(engine.begin(operation)).rejects.toMatchObject({ code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
    expect(typesOf(events)).toContain('claim-abandoned')
    line.heal()
    await expect.poll(async () => (await engine.begin(operation).catch(() => undefined))?.kind).toBe('run')
  })

  it.each(['has failed', 'is still open'])(
    'gives back a claim that %s, and arrives after its release',
    async (fate) => {
      const store = memoryStore()
      const arrived = gate()
      let late: ClaimRequest | undefined
      let releases = 0
      const { engine } = setUp({
        shared: disturbed({
          ...store,
          async claim(request) {
            if (late !== undefined) return store.claim(request)
            late = request
            if (fate === 'has failed') throw new Error('the connection broke')
            await arrived.opened
            return { status: 'acquired', fence: 1 }
          },
          async release(id, token) {
            releases += 1
            if (releases > 1) await arrived.opened
            return store.release(id, token)
          },
        }),
      })
      const operation = anOperation()
      await expect(engine.begin(operation)).rejects.toMatchObject({ code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
      await expect.poll(() => releases, { timeout: 5000 }).toBe(2)
      if (late !== undefined) await store.claim(late)
      arrived.open()
      const kind = () =>
        engine.begin(operation).then(
          (begun) => begun.kind,
          () => undefined,
        )
      await expect.poll(kind, { timeout: 5000 }).toBe('run')
    },
  )

  it('asks no more than twice to give back a claim that has failed and never arrives', async () => {
    const { engine, line, events } = setUp({ storeTimeoutMs: 10_000 })
    line.disturb('claim', 'fails')
    await expect(engine.begin(anOperation())).rejects.toMatchObject({ code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
    // Waits for what goes on in the background.
    await engine.close()
    expect(line.calls.release).toBe(2)
    expect(typesOf(events)).toEqual(['claim-abandoned', 'refused'])
  })

  it('runs unprotected where the route says so, and reports it', async () => {
    const { engine, line, events } = setUp()
    line.disturb('claim', 'fails')
    const execution = await run(engine, anOperation({ onStoreOutage: 'run' }))
    expect(execution).toMatchObject({ fence: 0, isProtected: false })
    expect(await execution.complete(anOutcome())).toEqual({ whose: 'own' })
    expect(typesOf(events)).toContain('unprotected')
    expect(line.calls.complete).toBe(0)
  })

  it('does not run unprotected when the store is full', async () => {
    const engine = createEngine({
      store: memoryStore({ maxEntries: 1 }),
      namespace: '',
      storeTimeoutMs: 50,
      replayCache: false,
      sweepMs: false,
    })
    await run(engine, anOperation())
    await expect(engine.begin(anOperation({ onStoreOutage: 'run' }))).rejects.toMatchObject({
      code: 'IDEMPOTENCY_STORE_FULL',
    })
  })

  it.each(['fails', 'loses-answer'] as const)(
    'lets the answer go when completion %s, and saves the outcome when the store is back',
    async (how) => {
      const { engine, line, events } = setUp()
      const operation = anOperation()
      const execution = await run(engine, operation)
      line.disturb('complete', how)
      expect(await execution.complete(anOutcome())).toEqual({ whose: 'own' })
      expect(typesOf(events)).toContain('save-failed')
      line.heal()
      await expect
        .poll(async () => (await engine.begin(operation).catch(() => undefined))?.kind)
        .toBe('replay')
      expect(events.find((event) => event.type === 'completed')).toMatchObject({ late: true })
    },
  )

  it('goes on renewing while an outcome waits to be saved', async () => {
    const { engine, line } = setUp()
    const operation = anOperation(SHORT)
    const execution = await run(engine, operation)
    line.disturb('complete', 'fails')
    await execution.complete(anOutcome())
    const renewals = line.calls.renew
    await expect.poll(() => line.calls.renew).toBeGreaterThan(renewals + 3)
    await expect(setUp({ shared: line }).engine.begin(operation)).rejects.toMatchObject({
      code: 'IDEMPOTENCY_KEY_IN_PROGRESS',
    })
    line.heal()
    await expect.poll(async () => (await engine.begin(operation).catch(() => undefined))?.kind).toBe('replay')
  })

  it('gives up saving at maxRun, and says so', async () => {
    const { engine, line, events } = setUp()
    const execution = await run(engine, anOperation({ leaseMs: 40, maxRunMs: 60 }))
    line.disturb('complete', 'fails')
    line.disturb('renew', 'fails')
    await execution.complete(anOutcome())
    await expect.poll(() => typesOf(events), { timeout: 5000 }).toContain('save-abandoned')
  })

  it('tries again to give a claim back', async () => {
    const { engine, line } = setUp()
    const operation = anOperation()
    const execution = await run(engine, operation)
    line.disturb('release', 'fails')
    await execution.release()
    line.heal()
    await expect.poll(async () => (await engine.begin(operation).catch(() => undefined))?.kind).toBe('run')
  })

  it('reports a release whose answer was lost as a release, and not as a loss', async () => {
    const { engine, line, events } = setUp()
    const execution = await run(engine, anOperation())
    line.disturb('release', 'loses-answer')
    await execution.release()
    line.heal()
    await expect.poll(() => typesOf(events), { timeout: 5000 }).toContain('released')
    expect(typesOf(events)).toEqual(['claimed', 'release-failed', 'released', 'claim-ended'])
    expect(execution.signal.aborted).toBe(false)
  })

  it('keeps a tombstone when the store has no room for the body', async () => {
    const store = memoryStore({ maxBytes: 3000 })
    const engine = createEngine({
      store,
      namespace: '',
      storeTimeoutMs: 50,
      replayCache: false,
      sweepMs: false,
    })
    const operation = anOperation()
    const execution = await run(engine, operation)
    await execution.complete(anOutcome({ body: new Uint8Array(5000) }))
    expect(await engine.begin(operation)).toMatchObject({ kind: 'replay', outcome: { body: null } })
  })

  it('waits at close for an outcome that is being saved', async () => {
    const { engine, line, events } = setUp({ storeTimeoutMs: 5000 })
    const execution = await run(engine, anOperation())
    line.disturb('complete', 'fails')
    await execution.complete(anOutcome())
    line.heal()
    expect(typesOf(events)).not.toContain('completed')
    await engine.close()
    expect(typesOf(events)).toContain('completed')
  })

  it('does not wait at close for longer than the timeout, and says what it left', async () => {
    const { engine, line, events } = setUp()
    const execution = await run(engine, anOperation())
    line.disturb('complete', 'fails')
    await execution.complete(anOutcome())
    await engine.close()
    expect(events.at(-1)).toMatchObject({ type: 'store-warning' })
  })
})
