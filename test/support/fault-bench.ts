import { randomUUID } from 'node:crypto'
import Fastify from 'fastify'
import idempotency from '../../src/adapters/fastify.js'
import { recordId } from '../../src/contract/key.js'
import type { IdempotencyEvent } from '../../src/core/events.js'
import { type ArmedFault, type Fault, type FaultProxy, startFaultProxy } from '../../src/testing/test-kit.js'
import { type Answered, send } from './fastify-app.js'
import type { FaultBackend, WireStep } from './fault-backends.js'
import type { Step } from './fault-steps.js'
import { gate } from './gate.js'

/** One operation of an application whose store is behind a proxy. */
export interface FaultBench {
  readonly backend: FaultBackend
  readonly proxy: FaultProxy
  readonly key: string
  /** The record's name in the store. */
  readonly id: string
  /** Opens when the handler runs for the first time. */
  readonly started: Promise<void>
  /** What the engine has reported since the fault was armed. */
  readonly events: readonly IdempotencyEvent[]
  /** Resolves when what was reported since then makes `isSo` true. */
  reports(isSo: (events: readonly IdempotencyEvent[]) => boolean): Promise<void>
  /** The kinds of trouble among them. */
  readonly troubles: readonly string[]
  /** The fault, once it was armed. */
  readonly struck: ArmedFault | undefined
  /** How long the client waited for an answer at the most. */
  readonly longestWaitMs: number
  /** How often the handler has run. */
  runs: number
  /** Arms the fault for what goes over the wire at a step. */
  strike(step: WireStep): ArmedFault
  /** Lets the handler answer. */
  finish(): void
  /** Sends the request. */
  send(): Promise<Answered>
  close(): Promise<void>
}

const TROUBLES = new Set<string>(['claim-abandoned', 'renewal-failed', 'save-failed', 'release-failed'])

/** Starts an application with one route, and a proxy between it and the server of its store. */
export async function openFaultBench(
  backend: FaultBackend,
  { policy, answer = () => 201 }: Step,
  options: {
    readonly fault: Fault
    readonly storeTimeoutMs: number
    /** A proxy, and a connection through it, where they are there already. */
    readonly through?: {
      readonly proxy: FaultProxy
      readonly connection: ReturnType<FaultBackend['connect']>
    }
  },
): Promise<FaultBench> {
  const proxy = options.through?.proxy ?? (await startFaultProxy({ target: backend.target }))
  const connection = options.through?.connection ?? backend.connect(proxy)
  const started = gate()
  const finish = gate()
  const key = randomUUID()
  let events: IdempotencyEvent[] = []
  let struck: ArmedFault | undefined
  let longestWaitMs = 0

  const app = Fastify()
  const { store } = connection
  await app.register(idempotency, {
    store,
    scope: 'shared',
    storeTimeout: options.storeTimeoutMs,
    sweep: false,
    ...policy,
  })
  app.post('/', async (_request, reply) => {
    bench.runs += 1
    const run = bench.runs
    started.open()
    await finish.opened
    return reply.code(answer(run)).send({ run })
  })
  await app.ready()
  app.idempotency.on((event) => events.push(event))

  const bench: FaultBench = {
    backend,
    proxy,
    key,
    id: recordId({ namespace: '', scope: 'shared', key }),
    started: started.opened,
    get events() {
      return events
    },
    reports: (isSo) =>
      new Promise((resolve) => {
        const look = (): void => {
          if (!isSo(events)) return
          stop()
          resolve()
        }
        const stop = app.idempotency.on(look)
        look()
      }),
    get troubles() {
      return events.map(({ type }) => type).filter((type) => TROUBLES.has(type))
    },
    get struck() {
      return struck
    },
    get longestWaitMs() {
      return longestWaitMs
    },
    runs: 0,
    strike(step) {
      events = []
      struck = proxy.arm({ ...options.fault, match: backend.wire[step] })
      return struck
    },
    finish: finish.open,
    async send() {
      const sentAt = performance.now()
      const answered = await send(app, '/', { key })
      longestWaitMs = Math.max(longestWaitMs, performance.now() - sentAt)
      return answered
    },
    async close() {
      await app.close()
      // First: a client that says goodbye on a half-open connection waits for an answer that never comes.
      await proxy.stop()
      await connection.end()
    },
  }
  return bench
}

/** An answer in a few words: `201 replayed`, `503 STORE_UNAVAILABLE`. */
export function said({ status, isReplay, code }: Answered): string {
  const words = [String(status), isReplay ? 'replayed' : '', code?.replace('IDEMPOTENCY_', '') ?? '']
  return words.filter((word) => word !== '').join(' ')
}
