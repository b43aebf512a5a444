import Fastify from 'fastify'
import { expect } from 'vitest'
import idempotency, { type FastifyIdempotencyOptions } from '../../src/adapters/fastify.js'
import type { IdempotencyEvent } from '../../src/core/events.js'
import { aClaim, until } from '../../src/testing/store-fixtures.js'
import { type Answered, send } from './fastify-app.js'
import type { FaultBench } from './fault-bench.js'

/** A step of a request, and how to bring a request to it. */
export interface Step {
  readonly policy?: Partial<FastifyIdempotencyOptions>
  /** The status that the handler answers with in its first, second, ... run; 201 by default. */
  readonly answer?: (run: number) => number
  /** Whether the engine gives the step up in a time of its own, and not after `storeTimeout`. */
  readonly hasOwnTimeout?: boolean
  /** Brings the request to the step, arms the fault for it, and gives what the client is answered with. */
  run(bench: FaultBench): Promise<Answered>
}

/** The steps that a fault can meet. */
export type FaultyStep = keyof typeof STEPS

export const STEPS = {
  claim: {
    run(bench: FaultBench) {
      bench.finish()
      bench.strike('claim')
      return bench.send()
    },
  },

  renewal: {
    policy: { lease: '1200ms' },
    hasOwnTimeout: true,
    async run(bench: FaultBench) {
      const answer = bench.send()
      await bench.started
      bench.strike('renew')
      await bench.reports((events) => events.some(isRenewal))
      // It has failed, or was sent again. The handler goes on until one has succeeded.
      bench.proxy.heal()
      await bench.reports((events) => events.some((event) => isRenewal(event) && event.error === undefined))
      bench.finish()
      return answer
    },
  },

  completion: {
    async run(bench: FaultBench) {
      const answer = bench.send()
      await bench.started
      bench.strike('complete')
      bench.finish()
      return answer
    },
  },

  release: {
    answer: (run: number) => (run === 1 ? 429 : 201),
    run(bench: FaultBench) {
      bench.finish()
      bench.strike('release')
      return bench.send()
    },
  },

  replay: {
    async run(bench: FaultBench) {
      bench.finish()
      expect(await bench.send()).toMatchObject({ status: 201 })
      bench.strike('claim')
      return bench.send()
    },
  },

  'reading the answer of another run': {
    policy: { lease: '200ms', maxRun: '200ms' },
    async run(bench: FaultBench) {
      const { direct } = bench.backend
      const answer = bench.send()
      await bench.started
      await until(direct, bench.id, (record) => record?.status === 'unknown')
      await takeOver(bench)
      bench.strike('find')
      bench.finish()
      return answer
    },
  },

  settling: {
    policy: { onUnknown: () => ({ outcome: { status: 201, body: { found: 'out' } } }) },
    async run(bench: FaultBench) {
      const { direct } = bench.backend
      await direct.claim(aClaim({ id: bench.id, fingerprint: 'unchecked', leaseMs: 1 }))
      await until(direct, bench.id, (record) => record?.status === 'unknown')
      bench.strike('settle')
      return bench.send()
    },
  },
} as const satisfies Record<string, Step>

function isRenewal(event: IdempotencyEvent): event is Extract<IdempotencyEvent, { type: 'store-call' }> {
  return event.type === 'store-call' && event.step === 'renew'
}

/** Runs the operation in another process, as it were, while the first run still goes on. */
async function takeOver(bench: FaultBench): Promise<void> {
  const other = Fastify()
  await other.register(idempotency, { store: bench.backend.direct, scope: 'shared', onUnknown: 'rerun' })
  other.post('/', (_request, reply) => {
    bench.runs += 1
    return reply.code(201).send({ run: bench.runs })
  })
  expect(await send(other, '/', { key: bench.key })).toMatchObject({ status: 201, isReplay: false })
  await other.close()
}
