import { randomUUID } from 'node:crypto'
import { Pool } from 'pg'
import { Registry } from 'prom-client'
import type { ExecuteStatement } from '../../src/contract/store.js'
import { createIdempotency } from '../../src/index.js'
import { createInbox } from '../../src/messages/inbox.js'
import { memoryStore } from '../../src/stores/memory.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { collectMetrics } from '../../src/telemetry/prometheus.js'
import { disturbed } from './disturbed-store.js'
import { aKey, anApp, send } from './fastify-app.js'
import { type Gate, gate } from './gate.js'
import {
  type MeasuredService,
  noteCompletion,
  noteRequest,
  noting,
  type RequestOutcome,
} from './measured-service.js'
import { createSent, type Sent } from './sent.js'

/**
 * A service with everything that can go wrong: a second process that dies in the middle of operations, a store that fails,
 * handlers that hang, transactions that are rolled back, and messages that fail, die and come again.
 */
export async function aMeasuredShop(postgresUrl: string): Promise<MeasuredService> {
  const sent = createSent(() => ({ instance: target }))
  let target = ''
  const register = new Registry()
  const operations = await measuredOperations(sent, register)
  const transactions = await measuredTransactions(sent, register, postgresUrl)
  const messages = measuredMessages(sent, register)
  const { app } = operations
  app.get('/metrics', async (_request, reply) => {
    reply.type(register.contentType)
    return register.metrics()
  })
  target = new URL(await app.listen({ port: 0, host: '127.0.0.1' })).host
  return {
    target,
    sent,
    async load(size) {
      await Promise.all([operations.load(size), transactions.load(size), messages.load(size)])
    },
    hold: operations.hold,
    async close() {
      await messages.close()
      await transactions.close()
      await operations.close()
    },
  }
}

async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await holds())) await new Promise((resolve) => setTimeout(resolve, 10))
}

async function measuredOperations(sent: Sent, register: Registry) {
  const store = memoryStore()
  const line = disturbed(store)
  let held: Gate = gate()
  const waits = async (): Promise<{ paid: boolean }> => {
    await held.opened
    return { paid: true }
  }
  const never = (): Promise<never> => new Promise(() => {})
  const { app } = await anApp(
    (app) => {
      collectMetrics(app.idempotency, { register })
      const pay = { paid: true }
      app.post('/payments', (_request, reply) => reply.code(201).send(pay))
      app.post('/broken', (_request, reply) => reply.code(502).send(pay))
      app.post('/busy', (_request, reply) => reply.code(503).send(pay))
      app.post('/large', { config: { idempotency: { maxBodyBytes: 4 } } }, () => pay)
      app.post('/patient', { config: { idempotency: { whenBusy: { wait: '50ms' } } } }, waits)
      app.post('/unprotected', { config: { idempotency: { onStoreOutage: 'run' } } }, () => pay)
      app.post('/rerun', { config: { idempotency: { onUnknown: 'rerun' } } }, () => pay)
      app.post('/asked', { config: { idempotency: { onUnknown: () => 'rerun' as const } } }, () => pay)
      const fails = () => Promise.reject(new Error('The provider is away'))
      app.post('/asked-in-vain', { config: { idempotency: { onUnknown: fails } } }, () => pay)
      app.post('/renewed', { config: { idempotency: { lease: '1500ms' } } }, waits)
      app.post('/brief', { config: { idempotency: { lease: '100ms', maxRun: '500ms' } } }, () => pay)
      app.post('/hangs', { config: { idempotency: { lease: '100ms', maxRun: '100ms' } } }, waits)
    },
    { store: noting(line.store, sent), storeTimeout: '1s' },
  )
  // Another process, which nobody measures. It dies in the middle of most operations.
  const other = await anApp(
    (app) => {
      for (const path of ['/payments', '/rerun', '/asked', '/asked-in-vain']) app.post(path, never)
      app.post('/hangs', { config: { idempotency: { onUnknown: 'rerun' } } }, () => ({ paid: true }))
    },
    { store, lease: '100ms', maxRun: '100ms' },
  )

  const eventsOf = (types: readonly string[], count: number): Promise<void> => {
    let seen = 0
    return new Promise((resolve) => {
      const end = app.idempotency.on((event) => {
        if (types.includes(event.type)) seen += 1
        if (seen < count) return
        end()
        resolve()
      })
    })
  }

  async function post(
    path: string,
    key: string,
    expected: { readonly status: number; readonly outcome: RequestOutcome; readonly takesOver?: boolean },
    amount = 5,
  ): Promise<void> {
    const { status, outcome, takesOver = false } = expected
    const answered = await send(app, path, { key, payload: { amount } })
    if (answered.status !== status)
      throw new Error(`${path} was answered with ${answered.status} ${answered.bytes}`)
    noteRequest(sent, { route: `POST ${path}`, outcome, takesOver })
  }

  const trouble = (path: string, kind: string, by?: number): void =>
    sent.add('oncekey_troubles_total', { route: `POST ${path}`, kind }, by)

  /** A first request, which ends with an outcome that is kept. */
  async function pay(path: string, key = aKey(), status = 200): Promise<string> {
    await post(path, key, { status, outcome: 'run' })
    noteCompletion(sent, `POST ${path}`, status)
    return key
  }

  async function retry(
    path: string,
    key: string,
    given: Readonly<Record<'source' | 'body', string>>,
    status = 200,
  ) {
    await post(path, key, { status, outcome: 'replay' })
    sent.add('oncekey_replays_total', { route: `POST ${path}`, ...given })
  }

  /** Leaves an operation behind whose process has died in the middle. */
  async function orphan(path: string): Promise<string> {
    const key = aKey()
    const claimed = new Promise<string>((resolve) => {
      const end = other.app.idempotency.on((event) => {
        if (event.type !== 'claimed' || event.operation.key !== key) return
        end()
        resolve(event.operation.id)
      })
    })
    send(other.app, path, { key }).catch(() => {})
    const id = await claimed
    await until(async () => (await store.find(id))?.status === 'unknown')
    return key
  }

  async function meetUnknown(): Promise<void> {
    await post('/payments', await orphan('/payments'), { status: 409, outcome: 'unknown' })
    await post('/rerun', await orphan('/rerun'), { status: 200, outcome: 'run', takesOver: true })
    noteCompletion(sent, 'POST /rerun', 200)
    await post('/asked', await orphan('/asked'), { status: 200, outcome: 'run', takesOver: true })
    noteCompletion(sent, 'POST /asked', 200)
    sent.add('oncekey_reconciliations_total', { route: 'POST /asked', answer: 'rerun' })
    await post('/asked-in-vain', await orphan('/asked-in-vain'), { status: 409, outcome: 'unknown' })
    sent.add('oncekey_reconciliations_total', { route: 'POST /asked-in-vain', answer: 'failed' })
  }

  /** The store is away at each step in turn. */
  async function loseStore(): Promise<void> {
    const releases = line.calls.release
    line.disturb('claim', 'fails')
    await post('/payments', aKey(), { status: 503, outcome: 'refused' })
    trouble('/payments', 'claim-abandoned')
    await post('/unprotected', aKey(), { status: 200, outcome: 'unprotected' })
    trouble('/unprotected', 'claim-abandoned')
    line.heal()
    // Claims without an answer are given back in the background, twice each.
    await until(() => line.calls.release === releases + 4)

    line.disturb('complete', 'fails')
    const late = eventsOf(['completed'], 1)
    await post('/payments', aKey(), { status: 201, outcome: 'run' })
    trouble('/payments', 'save-failed')
    line.heal()
    await late
    // It is kept late, and nobody knows how long its handler took.
    sent.add('oncekey_completions_total', { route: 'POST /payments', result: 'succeeded', status: '2xx' })

    line.disturb('complete', 'fails')
    const abandoned = eventsOf(['save-abandoned'], 1)
    const end = app.idempotency.on((event) => {
      // It may come to its maxRun before it is given up.
      if (event.type === 'max-run') trouble('/brief', 'max-run')
    })
    const lost = aKey()
    await post('/brief', lost, { status: 200, outcome: 'run' })
    trouble('/brief', 'save-failed')
    await abandoned
    end()
    trouble('/brief', 'save-abandoned')
    line.heal()
    await until(async () => {
      const answered = await send(app, '/brief', { key: lost })
      const outcome = answered.code === 'IDEMPOTENCY_OUTCOME_UNKNOWN' ? 'unknown' : 'in-progress'
      noteRequest(sent, { route: 'POST /brief', outcome })
      return outcome === 'unknown'
    })

    line.disturb('release', 'fails')
    const released = eventsOf(['released'], 1)
    await post('/busy', aKey(), { status: 503, outcome: 'run' })
    trouble('/busy', 'release-failed')
    line.heal()
    await released
    sent.add('oncekey_releases_total', { route: 'POST /busy' })
    sent.add('oncekey_handler_duration_seconds_count', { route: 'POST /busy' })

    held = gate()
    line.disturb('renew', 'fails')
    const before = line.calls.renew
    const failed = eventsOf(['renewal-failed'], 2)
    const key = aKey()
    const renewed = pay('/renewed', key)
    await failed
    line.heal()
    trouble('/renewed', 'renewal-failed', line.calls.renew - before)
    held.open()
    await renewed
  }

  return {
    app,

    async load(size: number) {
      for (let one = 0; one < size; one += 1) {
        const key = await pay('/payments', aKey(), 201)
        await retry('/payments', key, { source: 'store', body: 'kept' }, 201)
        await retry('/payments', key, { source: 'cache', body: 'kept' }, 201)
        await post('/payments', key, { status: 422, outcome: 'mismatch' }, 7)
        await pay('/broken', aKey(), 502)
        await retry('/large', await pay('/large'), { source: 'store', body: 'not-kept' }, 409)
      }
      await post('/busy', aKey(), { status: 503, outcome: 'run' })
      sent.add('oncekey_releases_total', { route: 'POST /busy' })
      sent.add('oncekey_handler_duration_seconds_count', { route: 'POST /busy' })

      held = gate()
      const key = aKey()
      const first = pay('/patient', key)
      // It waits for the first, and gives up.
      await post('/patient', key, { status: 409, outcome: 'in-progress' })
      sent.add('oncekey_wait_duration_seconds_count', { route: 'POST /patient' })
      held.open()
      await first

      await meetUnknown()
      await loseStore()
    },

    /** A handler that hangs past maxRun, and whose claim somebody else takes over at last. */
    async hold() {
      held = gate()
      const key = aKey()
      const tooLong = eventsOf(['max-run'], 1)
      const hanging = post('/hangs', key, { status: 200, outcome: 'run' })
      await tooLong
      trouble('/hangs', 'max-run')
      return {
        live: { 'POST /hangs': 1 },
        stuck: { 'POST /hangs': 1 },
        async letGo() {
          await until(async () => (await send(other.app, '/hangs', { key })).status === 200)
          held.open()
          await hanging
          trouble('/hangs', 'claim-lost')
          trouble('/hangs', 'outcome-lost')
        },
      }
    },

    async close() {
      held.open()
      await Promise.all([app.close(), other.app.close()])
    },
  }
}

async function measuredTransactions(sent: Sent, register: Registry, postgresUrl: string) {
  const pool = new Pool({ connectionString: postgresUrl, max: 5 })
  const schema = `measured_${randomUUID().slice(0, 8)}`
  await pool.query(`create schema ${schema}`)
  const store = postgresStore(pool, { schema })
  await store.migrate()
  const route = 'move'
  const steps = (...names: string[]): void => {
    for (const step of names) sent.add('oncekey_store_call_duration_seconds_count', { step })
  }

  return {
    async load(size: number) {
      let sweeps: 'fail' | 'succeed' = 'fail'
      let swept = 0
      let sweeping: Promise<number> = Promise.resolve(0)
      const measured = noting({ ...store, check, sweep: () => (sweeping = sweep()) }, sent)
      async function check(): Promise<readonly string[]> {
        const warnings = (await store.check?.()) ?? []
        sent.add('oncekey_store_warnings_total', {}, warnings.length)
        return warnings
      }
      async function sweep(): Promise<number> {
        if (sweeps === 'fail') {
          sweeps = 'succeed'
          sent.add('oncekey_store_warnings_total')
          throw new Error('may not delete')
        }
        const removed = (await store.sweep?.()) ?? 0
        sent.add('oncekey_swept_records_total', {}, removed)
        swept += removed
        return removed
      }
      const once = createIdempotency({
        store: measured,
        ttl: '300ms',
        sweep: '1s',
      })
      const end = collectMetrics(once, { register })
      const run = (work: (tx: { query: ExecuteStatement }) => Promise<unknown>): Promise<unknown> =>
        once.run({ scope: 'acme', key: aKey(), name: route }, ({ transaction }) =>
          transaction((tx) => work(tx as { query: ExecuteStatement })),
        )
      steps('check')
      for (let one = 0; one < size; one += 1) {
        await run(async () => 'moved')
        noteRequest(sent, { route, outcome: 'run' })
        noteCompletion(sent, route, undefined)
        steps('begin', 'commit')

        await run(() => Promise.reject(new Error('no such account'))).catch(() => {})
        noteRequest(sent, { route, outcome: 'run' })
        sent.add('oncekey_rollbacks_total', { route, why: 'failed' })
        sent.add('oncekey_releases_total', { route })
        sent.add('oncekey_handler_duration_seconds_count', { route })
        steps('begin', 'rollback')

        let attempts = 0
        await run(async () => {
          attempts += 1
          if (attempts === 1) throw Object.assign(new Error('conflict'), { code: '40001' })
        })
        noteRequest(sent, { route, outcome: 'run' })
        noteCompletion(sent, route, undefined)
        sent.add('oncekey_transaction_repeats_total', { route })
        steps('begin', 'rollback', 'commit')
      }
      await until(() => swept >= 2 * size)
      await once.close()
      await sweeping
      end()
    },

    async close() {
      await pool.query(`drop schema ${schema} cascade`)
      await pool.end()
    },
  }
}

function measuredMessages(sent: Sent, register: Registry) {
  const consumer = 'billing'
  const source = 'orders'
  const labels = { consumer, source }
  const route = `message ${consumer}`
  const store = noting(memoryStore(), sent)
  const inbox = createInbox({ store, consumer, sweep: false, attempts: { max: 3 } })
  collectMetrics(inbox, { register, sources: [source] })
  const fails = () => Promise.reject(new Error('no such account'))

  /** Delivers a message, and notes it. By leases each attempt is an operation: those before it are replayed. */
  async function deliver(
    key: string,
    about: {
      readonly delivery: number
      readonly result: 'processed' | 'duplicate' | 'in-progress' | 'dead' | 'failed'
      readonly attempts: { readonly before: number; readonly runs: boolean }
    },
    handler: () => Promise<void> | void = () => {},
  ): Promise<void> {
    const { delivery, result, attempts } = about
    const message = { source, key, deliveryCount: delivery }
    const ended = await inbox.processOnce(message, handler).catch(() => 'failed' as const)
    if (ended !== result) throw new Error(`The message is ${ended} and not ${result}`)
    if (result === 'failed') sent.add('oncekey_message_failures_total', labels)
    else sent.add('oncekey_messages_total', { ...labels, result })
    if (delivery > 1) sent.add('oncekey_messages_redelivered_total', labels)
    if (result === 'processed' || result === 'failed')
      sent.add('oncekey_message_duration_seconds_count', labels)
    if (result === 'dead' && attempts.runs) sent.add('oncekey_messages_dead_total', labels)
    for (let before = 0; before < attempts.before; before += 1) {
      noteRequest(sent, { route, outcome: 'replay' })
      sent.add('oncekey_replays_total', { route, source: 'store', body: 'kept' })
    }
    if (result === 'in-progress') noteRequest(sent, { route, outcome: 'in-progress' })
    if (!attempts.runs) return
    noteRequest(sent, { route, outcome: 'run' })
    const kept = { route, result: result === 'processed' ? 'succeeded' : 'failed', status: 'none' }
    sent.add('oncekey_completions_total', kept)
    sent.add('oncekey_handler_duration_seconds_count', { route })
  }

  return {
    async load(size: number) {
      for (let one = 0; one < size; one += 1) {
        const key = aKey()
        await deliver(key, { delivery: 1, result: 'processed', attempts: { before: 0, runs: true } })
        // The broker has not got its acknowledgement, and says so; a second topic partition does not.
        await deliver(key, { delivery: 2, result: 'duplicate', attempts: { before: 1, runs: false } })
        await deliver(key, { delivery: 1, result: 'duplicate', attempts: { before: 1, runs: false } })
      }
      const held = aKey()
      const inside = gate()
      const finish = gate()
      const first = deliver(
        held,
        { delivery: 1, result: 'processed', attempts: { before: 0, runs: true } },
        async () => {
          inside.open()
          await finish.opened
        },
      )
      await inside.opened
      await deliver(held, { delivery: 2, result: 'in-progress', attempts: { before: 0, runs: false } })
      finish.open()
      await first

      const dying = aKey()
      await deliver(dying, { delivery: 1, result: 'failed', attempts: { before: 0, runs: true } }, fails)
      await deliver(dying, { delivery: 2, result: 'failed', attempts: { before: 1, runs: true } }, fails)
      await deliver(dying, { delivery: 3, result: 'dead', attempts: { before: 2, runs: true } }, fails)
      await deliver(dying, { delivery: 4, result: 'dead', attempts: { before: 3, runs: false } }, fails)
      if (!(await inbox.redrive({ source, key: dying }))) throw new Error('The message is not dead')
      sent.add('oncekey_messages_redriven_total', labels)
      await deliver(dying, { delivery: 1, result: 'processed', attempts: { before: 0, runs: true } })
    },
    close: () => inbox.close(),
  }
}
