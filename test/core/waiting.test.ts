import { randomUUID } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { createEngine, type Engine, type Operation } from '../../src/core/engine.js'
import { DEFAULT_POLICY, type Policy } from '../../src/core/policy.js'
import { memoryStore } from '../../src/stores/memory.js'
import { anOutcome } from '../../src/testing/store-fixtures.js'
import { disturbed } from '../support/disturbed-store.js'

const SETTINGS = { namespace: '', storeTimeoutMs: 500, replayCache: false, sweepMs: false } as const

function anOperation(whenBusy: Policy['whenBusy']): Operation {
  return {
    scope: 'acme',
    key: randomUUID(),
    fingerprint: 'one',
    route: 'POST /payments',
    policy: { ...DEFAULT_POLICY, whenBusy },
  }
}

async function start(engine: Engine, operation: Operation) {
  const begun = await engine.begin(operation)
  if (begun.kind !== 'run') throw new Error('The operation was replayed')
  return begun.execution
}

describe.each(['in one process', 'in two processes, woken by watch', 'in two processes, by looking again'])(
  'whenBusy: wait, %s',
  (where) => {
    function engines(): readonly [Engine, Engine] {
      const store = memoryStore()
      // The line has no watch of its own.
      const seen = where.endsWith('again') ? disturbed(store).store : store
      const first = createEngine({ ...SETTINGS, store: seen })
      return [first, where === 'in one process' ? first : createEngine({ ...SETTINGS, store: seen })]
    }

    it('answers duplicates with the outcome of the first', async () => {
      const [first, second] = engines()
      const operation = anOperation({ waitMs: 10_000, waiters: 100 })
      const execution = await start(first, operation)
      const duplicates = Array.from({ length: 5 }, () => second.begin(operation))
      const startedAt = performance.now()
      await execution.complete(anOutcome({ head: 'first' }))
      for (const duplicate of await Promise.all(duplicates))
        expect(duplicate).toMatchObject({ kind: 'replay', outcome: { head: 'first' } })
      // Somebody woke them: they did not sit out their wait.
      expect(performance.now() - startedAt).toBeLessThan(5000)
    })

    it('lets one duplicate run when the first was released', async () => {
      const [first, second] = engines()
      const operation = anOperation({ waitMs: 300, waiters: 100 })
      const execution = await start(first, operation)
      const duplicates = Array.from({ length: 5 }, () => second.begin(operation))
      await execution.release()
      const ended = await Promise.allSettled(duplicates)
      expect(ended.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
    })

    it('refuses a duplicate after its wait', async () => {
      const [first, second] = engines()
      const operation = anOperation({ waitMs: 50, waiters: 100 })
      await start(first, operation)
      await expect(second.begin(operation)).rejects.toMatchObject({ code: 'IDEMPOTENCY_KEY_IN_PROGRESS' })
    })
  },
)

describe('whenBusy: wait', () => {
  it('refuses more waiters than it may hold', async () => {
    const engine = createEngine({ ...SETTINGS, store: memoryStore() })
    const operation = anOperation({ waitMs: 10_000, waiters: 2 })
    const execution = await start(engine, operation)
    const duplicates = Array.from({ length: 5 }, () => engine.begin(operation))
    const ended = Promise.allSettled(duplicates)
    await expect
      .poll(() => Promise.race([...duplicates.slice(2)].map((one) => one.catch(() => 'refused'))))
      .toBe('refused')
    await execution.complete(anOutcome())
    const results = await ended
    expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(2)
  })

  it('asks the store rarely for many who wait for one id', async () => {
    const line = disturbed(memoryStore())
    const [first, second] = [line, line].map(({ store }) => createEngine({ ...SETTINGS, store }))
    if (first === undefined || second === undefined) throw new Error('There are no engines')
    const operation = anOperation({ waitMs: 400, waiters: 1000 })
    await start(first, operation)
    await Promise.allSettled(Array.from({ length: 200 }, () => second.begin(operation)))
    expect(line.calls.claim).toBeLessThan(30)
  })
})
