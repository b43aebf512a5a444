import { randomUUID } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { isPromise } from '../../src/contract/maybe-promise.js'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { type Begun, createEngine, type Engine, type Operation } from '../../src/core/engine.js'
import type { IdempotencyEvent } from '../../src/core/events.js'
import { DEFAULT_POLICY } from '../../src/core/policy.js'
import { memoryStore } from '../../src/stores/memory.js'
import { anOutcome, HOUR } from '../../src/testing/store-fixtures.js'

function setUp(store: IdempotencyStore = memoryStore()): {
  readonly engine: Engine
  readonly events: IdempotencyEvent[]
} {
  const engine = createEngine({
    store,
    namespace: '',
    storeTimeoutMs: 1000,
    replayCache: { entries: 100, bytes: 1_000_000, maxAgeMs: HOUR },
    sweepMs: false,
  })
  const events: IdempotencyEvent[] = []
  engine.on((event) => events.push(event))
  return { engine, events }
}

function anOperation(given: Partial<Operation> = {}): Operation {
  return {
    scope: 'acme',
    key: randomUUID(),
    fingerprint: 'one',
    route: 'POST /payments',
    policy: DEFAULT_POLICY,
    ...given,
  }
}

/** What `beginNow` gives without a promise. */
function atOnce(engine: Engine, operation: Operation): Begun {
  const begun = engine.beginNow(operation)
  if (isPromise(begun)) throw new Error('There is something to wait for')
  return begun
}

function runAtOnce(engine: Engine, operation: Operation) {
  const begun = atOnce(engine, operation)
  if (begun.kind !== 'run') throw new Error('The operation was replayed')
  return begun.execution
}

function typesOf(events: readonly IdempotencyEvent[]): string[] {
  return events.map((event) => (event.type === 'store-call' ? `store ${event.step}` : event.type))
}

describe('engine › a store that answers at once', () => {
  it('claims, keeps and replays without a promise, and reports each step', async () => {
    const { engine, events } = setUp()
    await engine.check()
    const operation = anOperation()
    const execution = runAtOnce(engine, operation)
    expect(execution).toMatchObject({ fence: 1, isProtected: true })
    expect(execution.complete(anOutcome())).toEqual({ whose: 'own' })
    expect(await engine.begin(operation)).toMatchObject({ kind: 'replay', outcome: anOutcome() })
    // From here on the replay cache has it.
    expect(atOnce(engine, operation)).toMatchObject({ kind: 'replay', outcome: anOutcome() })
    expect(typesOf(events)).toEqual([
      ...['store claim', 'claimed', 'store complete', 'completed', 'claim-ended'],
      ...['store claim', 'replayed', 'replayed'],
    ])
    const calls = events.filter((event) => event.type === 'store-call')
    for (const { durationMs } of calls) expect(durationMs).toBeGreaterThanOrEqual(0)
    expect(calls).toHaveLength(3)
  })

  it('refuses a duplicate that comes while the first runs, and another request with its key', async () => {
    const { engine } = setUp()
    await engine.check()
    const operation = anOperation()
    const execution = runAtOnce(engine, operation)
    await expect(engine.beginNow(operation)).rejects.toMatchObject({ code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
    await execution.complete(anOutcome())
    await engine.begin(operation)
    const other = { ...operation, fingerprint: 'two' }
    expect(() => engine.beginNow(other)).toThrow(expect.objectContaining({ code: 'IDEMPOTENCY_KEY_REUSED' }))
    await expect(engine.begin(other)).rejects.toMatchObject({ code: 'IDEMPOTENCY_KEY_REUSED' })
  })

  it('answers no scope with what the cache holds of another, however scope and key divide', async () => {
    const { engine } = setUp()
    await engine.check()
    const names = [
      { scope: 'a', key: 'bc' },
      { scope: 'ab', key: 'c' },
      { scope: 'a4:b', key: 'c' },
      { scope: 'a', key: 'b1:c' },
    ]
    for (const [index, name] of names.entries()) {
      const operation = anOperation(name)
      await runAtOnce(engine, operation).complete(anOutcome({ head: `${index}` }))
      await engine.begin(operation)
    }
    for (const [index, name] of names.entries())
      expect(atOnce(engine, anOperation(name))).toMatchObject({ outcome: { head: `${index}` } })
  })

  it('waits for a promise that is not one of Node', async () => {
    const store = memoryStore()
    const { engine } = setUp({
      ...store,
      claim: (request) => {
        const answer = Promise.resolve(store.claim(request))
        // biome-ignore lint/suspicious/noThenProperty: what another library calls a promise
        return { then: answer.then.bind(answer) } as ReturnType<IdempotencyStore['claim']>
      },
    })
    await engine.check()
    expect(isPromise(engine.beginNow(anOperation()))).toBe(true)
    expect(await engine.begin(anOperation())).toMatchObject({ kind: 'run', execution: { fence: 1 } })
  })

  it('refuses when the store throws before it answers, and gives nothing back that was not asked for', async () => {
    let releases = 0
    const { engine, events } = setUp({
      ...memoryStore(),
      claim() {
        throw new Error('there is no connection')
      },
      async release() {
        releases += 1
        return true
      },
    })
    await engine.check()
    await expect(engine.begin(anOperation())).rejects.toMatchObject({ code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
    await engine.close()
    expect(releases).toBe(0)
    expect(typesOf(events)).toEqual(['store claim', 'claim-abandoned', 'refused'])
  })

  it('lets the answer go when the store throws at its completion, and saves it later', async () => {
    const store = memoryStore()
    let fails = true
    const { engine, events } = setUp({
      ...store,
      complete(...args) {
        if (fails) throw new Error('there is no connection')
        return store.complete(...args)
      },
    })
    await engine.check()
    const operation = anOperation()
    const execution = runAtOnce(engine, operation)
    expect(await execution.complete(anOutcome())).toEqual({ whose: 'own' })
    fails = false
    await expect.poll(() => typesOf(events)).toContain('completed')
    expect(await engine.begin(operation)).toMatchObject({ kind: 'replay' })
  })
})
