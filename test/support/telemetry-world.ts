import type { FastifyInstance } from 'fastify'
import { memoryStore } from '../../src/stores/memory.js'
import { type DisturbedStore, disturbed } from './disturbed-store.js'
import { type Answered, anApp, send } from './fastify-app.js'
import { type Gate, gate } from './gate.js'

/** A service with a payment route, and a second process that shares its store and dies at will. */
export interface TelemetryWorld {
  readonly app: FastifyInstance
  readonly line: DisturbedStore
  readonly held: Gate
  pay(key: string, given?: { readonly amount?: number; readonly path?: string }): Promise<Answered>
  /** Leaves an operation of the route behind, whose process has died in the middle. */
  orphan(key: string): Promise<void>
  close(): Promise<void>
}

/** Makes such a service. `/payments` succeeds, `/declined` is refused with 402, `/broken` fails, `/held` waits. */
export async function aTelemetryWorld(
  watch: (app: FastifyInstance) => void = () => {},
): Promise<TelemetryWorld> {
  const store = memoryStore()
  const line = disturbed(store)
  const held = gate()
  const define = (app: FastifyInstance): void => {
    watch(app)
    app.post('/payments', (_request, reply) => reply.code(201).send({ paid: true }))
    app.post('/declined', (_request, reply) => reply.code(402).send({ paid: false }))
    app.post('/broken', (_request, reply) => reply.code(500).send({ paid: 'perhaps' }))
    app.post('/busy', (_request, reply) => reply.code(503).send({ paid: false }))
    app.post('/held', async (_request, reply) => {
      await held.opened
      return reply.code(201).send({ paid: true })
    })
  }
  const { app } = await anApp(define, { store: line.store, storeTimeout: '200ms' })
  const other = await anApp(
    (otherApp) => {
      otherApp.post('/payments', () => new Promise(() => {}))
    },
    { store, lease: '100ms', maxRun: '100ms' },
  )
  return {
    app,
    line,
    held,
    pay: (key, { amount = 5, path = '/payments' } = {}) => send(app, path, { key, payload: { amount } }),
    async orphan(key) {
      const claimed = new Promise<string>((resolve) => {
        const end = other.app.idempotency.on((event) => {
          if (event.type !== 'claimed' || event.operation.key !== key) return
          end()
          resolve(event.operation.id)
        })
      })
      // Nobody will ever answer it.
      send(other.app, '/payments', { key }).catch(() => {})
      const id = await claimed
      for (;;) {
        const record = await store.find(id)
        if (record?.status === 'unknown') return
        await new Promise((resolve) => setTimeout(resolve, 20))
      }
    },
    async close() {
      held.open()
      await Promise.all([app.close(), other.app.close()])
    },
  }
}
