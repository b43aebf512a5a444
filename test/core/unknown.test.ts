import { randomUUID } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { createEngine, type Engine, type Operation } from '../../src/core/engine.js'
import type { Execution } from '../../src/core/execution.js'
import { DEFAULT_POLICY, type Policy } from '../../src/core/policy.js'
import { memoryStore } from '../../src/stores/memory.js'
import { anOutcome } from '../../src/testing/store-fixtures.js'
import { disturbed } from '../support/disturbed-store.js'
import { gate } from '../support/gate.js'

/** An operation whose first process has died in the middle: its lease has lapsed, and nobody will ever say how it ended. */
async function orphaned(policy: Partial<Policy>): Promise<{
  readonly engine: Engine
  readonly operation: Operation
  readonly dead: Execution
}> {
  const store = memoryStore()
  const line = disturbed(store)
  const settings = {
    namespace: '',
    storeTimeoutMs: 200,
    replayCache: false,
    sweepMs: false,
    secret: 'sixteen bytes at least',
  } as const
  const operation: Operation = {
    scope: 'acme',
    key: randomUUID(),
    fingerprint: 'one',
    route: 'POST /payments',
    policy: { ...DEFAULT_POLICY, leaseMs: 50 },
  }
  const asked = { ...operation, policy: { ...operation.policy, ...policy } }
  const begun = await createEngine({ ...settings, store: line.store }).begin(asked)
  if (begun.kind !== 'run') throw new Error('The operation was replayed')
  line.disturb('renew', 'stalls')
  const engine = createEngine({ ...settings, store })
  await expect
    .poll(() => engine.begin(operation).catch((error) => error.code))
    .toBe('IDEMPOTENCY_OUTCOME_UNKNOWN')
  return { engine, operation: asked, dead: begun.execution }
}

describe("onUnknown: 'reject'", () => {
  it('never runs the operation again, and replays the late answer from then on', async () => {
    const { engine, operation, dead } = await orphaned({})
    for (let attempt = 0; attempt < 3; attempt += 1)
      await expect(engine.begin(operation)).rejects.toMatchObject({ code: 'IDEMPOTENCY_OUTCOME_UNKNOWN' })
    await dead.complete(anOutcome())
    expect(await engine.begin(operation)).toMatchObject({ kind: 'replay' })
  })
})

describe("onUnknown: 'rerun'", () => {
  it('takes the operation over once, with the next fence', async () => {
    const { engine, operation } = await orphaned({ onUnknown: 'rerun' })
    const begun = await Promise.allSettled(Array.from({ length: 20 }, () => engine.begin(operation)))
    const runs = begun.flatMap((one) =>
      one.status === 'fulfilled' && one.value.kind === 'run' ? [one.value.execution] : [],
    )
    expect(runs).toHaveLength(1)
    expect(runs[0]).toMatchObject({ fence: 2 })
  })

  it('does not take it over for another fingerprint', async () => {
    const { engine, operation } = await orphaned({ onUnknown: 'rerun' })
    await expect(engine.begin({ ...operation, fingerprint: 'two' })).rejects.toMatchObject({
      code: 'IDEMPOTENCY_KEY_REUSED',
    })
  })

  it('lets the late first holder be asked again when the second has died as well', async () => {
    const { engine, operation, dead } = await orphaned({ onUnknown: 'rerun' })
    const begun = await engine.begin(operation)
    if (begun.kind !== 'run') throw new Error('The operation was replayed')
    // A claim that was taken over and is given back is unknown again.
    await begun.execution.release()
    await expect(dead.complete(anOutcome())).rejects.toMatchObject({ code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
    expect(await engine.begin(operation)).toMatchObject({ kind: 'run', execution: { fence: 3 } })
  })

  it('gives the late first holder the answer of the second', async () => {
    const { engine, operation, dead } = await orphaned({ onUnknown: 'rerun' })
    const begun = await engine.begin(operation)
    if (begun.kind !== 'run') throw new Error('The operation was replayed')
    await expect(dead.complete(anOutcome({ head: 'late' }))).rejects.toMatchObject({
      code: 'IDEMPOTENCY_KEY_IN_PROGRESS',
    })
    await begun.execution.complete(anOutcome({ head: 'second' }))
    expect(await engine.begin(operation)).toMatchObject({ kind: 'replay', outcome: { head: 'second' } })
  })

  it('answers a late holder with what the second one kept', async () => {
    const { engine, operation, dead } = await orphaned({ onUnknown: 'rerun' })
    const begun = await engine.begin(operation)
    if (begun.kind !== 'run') throw new Error('The operation was replayed')
    await begun.execution.complete(anOutcome({ head: 'second' }))
    expect(await dead.complete(anOutcome({ head: 'late' }))).toMatchObject({
      whose: 'other',
      outcome: { head: 'second' },
    })
  })

  it('makes it unknown again when the second run was released', async () => {
    const { engine, operation } = await orphaned({ onUnknown: 'rerun' })
    const begun = await engine.begin(operation)
    if (begun.kind !== 'run') throw new Error('The operation was replayed')
    await begun.execution.release()
    const cautious = { ...operation, policy: { ...operation.policy, onUnknown: 'reject' as const } }
    await expect(engine.begin(cautious)).rejects.toMatchObject({ code: 'IDEMPOTENCY_OUTCOME_UNKNOWN' })
    expect(await engine.begin(operation)).toMatchObject({ kind: 'run', execution: { fence: 3 } })
  })
})

describe('onUnknown: a function', () => {
  it('derives the keys that the run has sent downstream', async () => {
    const derived: string[] = []
    const { engine, operation, dead } = await orphaned({
      onUnknown: ({ deriveKey }) => {
        derived.push(deriveKey('psp'))
        return 'reject'
      },
    })
    await expect(engine.begin(operation)).rejects.toMatchObject({ code: 'IDEMPOTENCY_OUTCOME_UNKNOWN' })
    expect(derived).toEqual([dead.deriveKey('psp')])
  })

  it('is told what is known, and its outcome is kept', async () => {
    const asked: unknown[] = []
    const { engine, operation } = await orphaned({
      onUnknown: (unknown) => {
        asked.push(unknown)
        return { outcome: anOutcome({ head: 'found out' }) }
      },
    })
    expect(await engine.begin(operation)).toMatchObject({ kind: 'replay', outcome: { head: 'found out' } })
    expect(asked).toEqual([
      {
        key: operation.key,
        scope: 'acme',
        fence: 1,
        meta: expect.objectContaining({ key: operation.key, route: 'POST /payments' }),
        deriveKey: expect.any(Function),
        signal: expect.any(AbortSignal),
      },
    ])
    const retry = { ...operation, policy: { ...operation.policy, onUnknown: 'reject' as const } }
    expect(await engine.begin(retry)).toMatchObject({ kind: 'replay' })
  })

  it.each([
    ['rerun', 'run'],
    ['reject', 'IDEMPOTENCY_OUTCOME_UNKNOWN'],
  ] as const)('is obeyed when it answers %s', async (answer, expected) => {
    const { engine, operation } = await orphaned({ onUnknown: async () => answer })
    const result = await engine.begin(operation).then(
      ({ kind }) => kind,
      (error) => error.code,
    )
    expect(result).toBe(expected)
  })

  it('is asked once for all who wait for its answer', async () => {
    const { opened, open } = gate()
    let asked = 0
    const { engine, operation } = await orphaned({
      onUnknown: async () => {
        asked += 1
        await opened
        return { outcome: anOutcome() }
      },
    })
    const begun = Array.from({ length: 10 }, () => engine.begin(operation))
    await expect.poll(() => asked).toBe(1)
    open()
    for (const each of await Promise.all(begun)) expect(each.kind).toBe('replay')
    expect(asked).toBe(1)
  })

  it('leaves the operation unknown when it fails', async () => {
    const cause = new Error('the provider is down')
    const { engine, operation } = await orphaned({ onUnknown: () => Promise.reject(cause) })
    await expect(engine.begin(operation)).rejects.toMatchObject({
      code: 'IDEMPOTENCY_OUTCOME_UNKNOWN',
      cause,
    })
  })

  it('is given up after maxRun', async () => {
    const { engine, operation } = await orphaned({ maxRunMs: 100, onUnknown: () => new Promise(() => {}) })
    await expect(engine.begin(operation)).rejects.toMatchObject({ code: 'IDEMPOTENCY_OUTCOME_UNKNOWN' })
  })
})
