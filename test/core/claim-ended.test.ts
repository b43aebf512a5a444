import { randomUUID } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { createEngine, type Engine, type Operation } from '../../src/core/engine.js'
import type { IdempotencyEvent } from '../../src/core/events.js'
import type { Execution } from '../../src/core/execution.js'
import { DEFAULT_POLICY, type Policy } from '../../src/core/policy.js'
import { memoryStore } from '../../src/stores/memory.js'
import { anOutcome } from '../../src/testing/store-fixtures.js'
import { disturbed } from '../support/disturbed-store.js'

const PATIENT = { timeout: 20_000 }

function setUp(policy: Partial<Policy> = {}) {
  const inner = memoryStore()
  const line = disturbed(inner)
  const settings = { namespace: '', storeTimeoutMs: 100, replayCache: false, sweepMs: false } as const
  const engine = createEngine({ ...settings, store: line.store })
  const other = createEngine({ ...settings, store: inner })
  const events: IdempotencyEvent[] = []
  engine.on((event) => events.push(event))
  const operation: Operation = {
    scope: 'acme',
    key: randomUUID(),
    fingerprint: 'one',
    route: 'POST /payments',
    policy: { ...DEFAULT_POLICY, ...policy },
  }
  const count = (type: IdempotencyEvent['type']): number =>
    events.filter((event) => event.type === type).length
  return { engine, other, line, events, operation, count }
}

async function run(engine: Engine, operation: Operation): Promise<Execution> {
  const begun = await engine.begin(operation)
  if (begun.kind !== 'run') throw new Error('The operation was replayed')
  return begun.execution
}

/** Lets the lease of a claim lapse, and another process take the operation over. */
async function takenOver({ engine, other, line, operation }: ReturnType<typeof setUp>): Promise<Execution> {
  const execution = await run(engine, operation)
  line.disturb('renew', 'stalls')
  const later = { ...operation, policy: { ...operation.policy, onUnknown: 'rerun' as const } }
  await expect
    .poll(
      () =>
        other.begin(later).then(
          ({ kind }) => kind,
          () => 'refused',
        ),
      PATIENT,
    )
    .toBe('run')
  return execution
}

describe('the end of a claim is told once', () => {
  it('when its outcome was kept', async () => {
    const { engine, operation, count } = setUp()
    const execution = await run(engine, operation)
    expect(count('claim-ended')).toBe(0)
    await execution.complete(anOutcome())
    await execution.release()
    expect(count('claim-ended')).toBe(1)
  })

  it('when it was given back', async () => {
    const { engine, operation, count } = setUp()
    await (await run(engine, operation)).release()
    expect(count('claim-ended')).toBe(1)
  })

  it('when its outcome is saved late, and not before', async () => {
    const { engine, line, operation, count } = setUp()
    const execution = await run(engine, operation)
    line.disturb('complete', 'fails')
    await execution.complete(anOutcome())
    expect(count('claim-ended')).toBe(0)
    line.heal()
    await expect.poll(() => count('claim-ended'), PATIENT).toBe(1)
    expect(count('completed')).toBe(1)
  })

  it('when saving its outcome was given up', async () => {
    const { engine, line, operation, count } = setUp({ leaseMs: 100, maxRunMs: 150 })
    const execution = await run(engine, operation)
    line.disturb('complete', 'fails')
    await execution.complete(anOutcome())
    await expect.poll(() => count('claim-ended'), PATIENT).toBe(1)
    expect(count('save-abandoned')).toBe(1)
  })

  it('when giving it back was given up', async () => {
    const { engine, line, operation, count } = setUp({ leaseMs: 100, maxRunMs: 150 })
    const execution = await run(engine, operation)
    line.disturb('release', 'fails')
    await execution.release()
    await expect.poll(() => count('claim-ended'), PATIENT).toBe(1)
    expect(count('released')).toBe(0)
  })

  it('when somebody else had taken it', async () => {
    const world = setUp({ leaseMs: 60 })
    const execution = await takenOver(world)
    await Promise.resolve(execution.complete(anOutcome())).catch(() => {})
    expect(world.count('outcome-lost')).toBe(1)
    expect(world.count('claim-ended')).toBe(1)
  })

  it('when it is given back, and somebody else had taken it', async () => {
    const world = setUp({ leaseMs: 60 })
    const execution = await takenOver(world)
    await execution.release()
    expect(world.count('claim-lost')).toBe(1)
    expect(world.count('claim-ended')).toBe(1)
  })

  it('when a transaction turned out not to be committed', async () => {
    const { engine, operation, count } = setUp()
    const execution = await run(engine, operation)
    expect(await execution.decide(anOutcome())).toBeUndefined()
    expect(count('rolled-back')).toBe(1)
    expect(count('claim-ended')).toBe(1)
  })

  it('when nobody could find out whether a transaction was committed', async () => {
    const { engine, line, operation, count } = setUp({ leaseMs: 100, maxRunMs: 150 })
    const execution = await run(engine, operation)
    line.disturb('find', 'fails')
    await expect(execution.decide(anOutcome())).rejects.toMatchObject({
      code: 'IDEMPOTENCY_COMMIT_UNDECIDED',
    })
    expect(count('claim-ended')).toBe(0)
    await expect.poll(() => count('claim-ended'), PATIENT).toBe(1)
  })

  it('and carries the very object of its claim', async () => {
    const { engine, operation, events } = setUp()
    await (await run(engine, operation)).complete(anOutcome())
    const subjects = events.flatMap((event) => ('operation' in event ? [event.operation] : []))
    expect(new Set(subjects).size).toBe(1)
    expect(subjects).toHaveLength(3)
  })
})

describe('every call of begin', () => {
  const ENDS = new Set([
    'claimed',
    'replayed',
    'in-progress',
    'mismatch',
    'unknown',
    'unprotected',
    'refused',
  ])

  it('is told of once, whatever becomes of it', async () => {
    const { engine, other, line, operation, events } = setUp()
    const ends = () => events.map(({ type }) => type).filter((type) => ENDS.has(type))
    const first = await run(engine, operation)
    await engine.begin(operation).catch(() => {})
    await engine.begin({ ...operation, fingerprint: 'two' }).catch(() => {})
    await first.complete(anOutcome())
    await engine.begin(operation)
    line.disturb('claim', 'fails')
    const fresh = { ...operation, key: randomUUID() }
    await engine.begin(fresh).catch(() => {})
    await engine.begin({ ...fresh, policy: { ...fresh.policy, onStoreOutage: 'run' } })
    line.heal()
    const orphan = {
      ...operation,
      key: randomUUID(),
      policy: { ...operation.policy, leaseMs: 50, maxRunMs: 60 },
    }
    await other.begin(orphan)
    const asked = {
      ...orphan,
      policy: {
        ...orphan.policy,
        onUnknown: async () => {
          throw new Error('the provider does not answer')
        },
      },
    }
    const before = events.length
    await expect
      .poll(() => engine.begin(asked).catch(({ code }) => code), PATIENT)
      .toBe('IDEMPOTENCY_OUTCOME_UNKNOWN')
    const ofOrphan = events.slice(before).map(({ type }) => type)
    expect(ofOrphan.filter((type) => type === 'unknown')).toHaveLength(1)
    expect(
      ends()
        .filter((type) => type !== 'unknown')
        .slice(0, 6),
    ).toEqual(['claimed', 'in-progress', 'mismatch', 'replayed', 'refused', 'unprotected'])
    await Promise.all([engine.close(), other.close()])
  })

  it('says when an unknown operation was first seen', async () => {
    const { engine, other, operation, events } = setUp()
    const orphan = { ...operation, policy: { ...operation.policy, leaseMs: 50, maxRunMs: 60 } }
    const from = Date.now()
    await other.begin(orphan)
    const until = Date.now()
    await expect
      .poll(() => engine.begin(orphan).catch(({ code }) => code), PATIENT)
      .toBe('IDEMPOTENCY_OUTCOME_UNKNOWN')
    const unknown = events.find((event) => event.type === 'unknown')
    expect(unknown).toMatchObject({ fence: 1 })
    expect(unknown?.firstSeenAt).toBeGreaterThanOrEqual(from)
    expect(unknown?.firstSeenAt).toBeLessThanOrEqual(until)
  })
})

describe('traceWith', () => {
  it('asks once at each claim, and never for a duplicate', async () => {
    const { engine, operation } = setUp()
    let asked = 0
    const end = engine.traceWith(() => `trace ${++asked}`)
    const execution = await run(engine, operation)
    expect(execution.traceparent).toBe('trace 1')
    await execution.complete(anOutcome())
    await engine.begin(operation)
    expect(asked).toBe(1)
    end()
    expect((await run(engine, { ...operation, key: randomUUID() })).traceparent).toBeUndefined()
  })

  it('runs an operation whose trace cannot be told', async () => {
    const { engine, operation } = setUp()
    const warnings: Error[] = []
    const noted = (warning: Error) => void warnings.push(warning)
    process.on('warning', noted)
    engine.traceWith(() => {
      throw new Error('no tracer')
    })
    expect((await run(engine, operation)).traceparent).toBeUndefined()
    await expect.poll(() => warnings.map(({ message }) => message)).toContain('no tracer')
    process.off('warning', noted)
  })
})
