import { Registry } from 'prom-client'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { createEngine } from '../../src/core/engine.js'
import { createEvents, type IdempotencyEvent } from '../../src/core/events.js'
import { DEFAULT_POLICY } from '../../src/core/policy.js'
import { createIdempotency } from '../../src/index.js'
import { createInbox } from '../../src/messages/inbox.js'
import { memoryStore } from '../../src/stores/memory.js'
import { collectMetrics, type MessageEvent, type PrometheusOptions } from '../../src/telemetry/prometheus.js'
import { aKey, anExpress, closeExpressApps } from '../support/express-app.js'
import { EXPRESS_VERSIONS } from '../support/express-versions.js'
import { gate } from '../support/gate.js'
import { aTelemetryWorld, type TelemetryWorld } from '../support/telemetry-world.js'

const PATIENT = { timeout: 20_000 }

/** All values of a metric but counters that are at 0, by their labels: `route=POST /payments,outcome=run`. */
async function values(register: Registry, name: string): Promise<Record<string, number>> {
  const metric = (await register.getMetricsAsJSON()).find((one) => one.name === name)
  if (metric === undefined) throw new Error(`There is no metric ${name}`)
  return Object.fromEntries(
    metric.values.flatMap((value) => {
      const full = (value as { metricName?: string }).metricName ?? name
      // Of a histogram, how many values it has.
      if (full !== name && full !== `${name}_count`) return []
      if (name.endsWith('_total') && value.value === 0) return []
      const labels = Object.entries(value.labels).map(([label, said]) => `${label}=${said}`)
      return [[labels.join(','), value.value] as const]
    }),
  )
}

function total(found: Record<string, number>): number {
  return Object.values(found).reduce((sum, value) => sum + value, 0)
}

describe('collectMetrics, of a Fastify application', () => {
  let register: Registry
  let world: TelemetryWorld
  const end: (() => void)[] = []

  beforeEach(async () => {
    register = new Registry()
    world = await aTelemetryWorld((app) => end.push(collectMetrics(app.idempotency, { register })))
  })
  afterEach(async () => {
    for (const stop of end.splice(0)) stop()
    await world.close()
  })

  it('counts what became of every request, exactly', async () => {
    const { pay, line, held, orphan } = world
    const [paid, reserved, lost] = [aKey(), aKey(), aKey()]
    await pay(paid)
    await pay(paid)
    await pay(paid)
    await pay(paid, { amount: 7 })
    const first = pay(reserved, { path: '/held' })
    await expect
      .poll(() => values(register, 'oncekey_live_claims'), PATIENT)
      .toEqual({ 'route=POST /payments': 0, 'route=POST /held': 1 })
    expect((await pay(reserved, { path: '/held' })).status).toBe(409)
    held.open()
    await first
    await orphan(lost)
    expect((await pay(lost)).code).toBe('IDEMPOTENCY_OUTCOME_UNKNOWN')
    line.disturb('claim', 'fails')
    expect((await pay(aKey())).status).toBe(503)
    line.heal()

    expect(await values(register, 'oncekey_requests_total')).toEqual({
      'route=POST /payments,outcome=run': 1,
      'route=POST /payments,outcome=replay': 2,
      'route=POST /payments,outcome=mismatch': 1,
      'route=POST /held,outcome=run': 1,
      'route=POST /held,outcome=in-progress': 1,
      'route=POST /payments,outcome=unknown': 1,
      'route=POST /payments,outcome=refused': 1,
    })
    expect(await values(register, 'oncekey_claims_total')).toEqual({
      'route=POST /payments': 1,
      'route=POST /held': 1,
    })
    expect(await values(register, 'oncekey_replays_total')).toEqual({
      'route=POST /payments,source=store,body=kept': 1,
      'route=POST /payments,source=cache,body=kept': 1,
    })
    expect(await values(register, 'oncekey_replay_age_seconds')).toEqual({ 'route=POST /payments': 2 })
    expect(await values(register, 'oncekey_handler_duration_seconds')).toEqual({
      'route=POST /payments': 1,
      'route=POST /held': 1,
    })
    expect(await values(register, 'oncekey_troubles_total')).toEqual({
      'route=POST /payments,kind=claim-abandoned': 1,
    })
    expect(await values(register, 'oncekey_store_errors_total')).toEqual({ 'step=claim': 1 })
    expect(await values(register, 'oncekey_store_call_duration_seconds')).toMatchObject({
      // Fresh, replay, fresh, unknown, failed. The mismatch and a replay come from the cache, the duplicate from here.
      'step=claim': 5,
      'step=complete': 2,
    })
  })

  it('tells failures of the payment from successes, by result and status', async () => {
    const { pay } = world
    await pay(aKey())
    await pay(aKey(), { path: '/declined' })
    await pay(aKey(), { path: '/broken' })
    await pay(aKey(), { path: '/busy' })
    expect(await values(register, 'oncekey_completions_total')).toEqual({
      'route=POST /payments,result=succeeded,status=2xx': 1,
      'route=POST /declined,result=failed,status=4xx': 1,
      'route=POST /broken,result=failed,status=5xx': 1,
    })
    expect(await values(register, 'oncekey_releases_total')).toEqual({ 'route=POST /busy': 1 })
    expect(total(await values(register, 'oncekey_handler_duration_seconds'))).toBe(4)
  })

  it('counts an outcome that is saved late, and measures no handler by it', async () => {
    const { pay, line } = world
    line.disturb('complete', 'fails')
    expect((await pay(aKey())).status).toBe(201)
    expect(await values(register, 'oncekey_live_claims')).toEqual({ 'route=POST /payments': 1 })
    line.heal()
    await expect
      .poll(() => values(register, 'oncekey_live_claims'), PATIENT)
      .toEqual({ 'route=POST /payments': 0 })
    expect(await values(register, 'oncekey_completions_total')).toEqual({
      'route=POST /payments,result=succeeded,status=2xx': 1,
    })
    expect(total(await values(register, 'oncekey_handler_duration_seconds'))).toBe(0)
    expect(await values(register, 'oncekey_troubles_total')).toEqual({
      'route=POST /payments,kind=save-failed': 1,
    })
  })

  it('has each series of a route at 0 once the route was met, before its event comes', async () => {
    await world.pay(aKey())
    const shown = await register.metrics()
    for (const line of [
      'requests_total{route="POST /payments",outcome="unknown"} 0',
      'requests_total{route="POST /payments",outcome="refused"} 0',
      'take_overs_total{route="POST /payments"} 0',
      'replays_total{route="POST /payments",source="cache",body="not-kept"} 0',
      'completions_total{route="POST /payments",result="failed",status="5xx"} 0',
      'releases_total{route="POST /payments"} 0',
      'troubles_total{route="POST /payments",kind="save-abandoned"} 0',
      'rollbacks_total{route="POST /payments",why="lost"} 0',
      'reconciliations_total{route="POST /payments",answer="failed"} 0',
      'transaction_repeats_total{route="POST /payments"} 0',
      'stuck_claims{route="POST /payments"} 0',
      'store_errors_total{step="complete"} 0',
    ])
      expect(shown).toContain(`oncekey_${line}\n`)
    expect(shown).not.toContain('result="succeeded",status="5xx"')
  })

  it.each(['POST *', 'orders', 'other', 'send-invoice'])(
    'has what %s may end with at 0, for a name does not say whether it has a status',
    async (route) => {
      const named = new Registry()
      end.push(collectMetrics(world.app.idempotency, { register: named, routes: [route] }))
      const shown = await named.metrics()
      for (const ends of [
        'result="succeeded",status="2xx"',
        'result="failed",status="4xx"',
        'result="failed",status="5xx"',
        'result="succeeded",status="none"',
        'result="failed",status="none"',
      ])
        expect(shown).toContain(`oncekey_completions_total{route="${route}",${ends}} 0\n`)
    },
  )

  it('shows neither a key nor a scope', async () => {
    const key = aKey()
    await world.pay(key)
    await world.pay(key)
    await world.pay(key, { amount: 7 })
    const text = await register.metrics()
    expect(text).toContain('oncekey_requests_total{route="POST /payments",outcome="run"} 1')
    expect(text).not.toContain(key)
    expect(text).not.toContain('acme')
  })

  it('takes its metrics away when it ends, and counts no more', async () => {
    for (const stop of end.splice(0)) {
      stop()
      stop()
    }
    await world.pay(aKey())
    expect(await register.metrics()).toBe('\n')
  })
})

describe.each(EXPRESS_VERSIONS)('collectMetrics, of an application of $name', (version) => {
  afterEach(closeExpressApps)

  it('counts by route, and bounds the routes that clients can make', async () => {
    const register = new Registry()
    const { send, once } = await anExpress(version, (app, protect) => {
      const tenant = version.express.Router({ mergeParams: true })
      tenant.post('/orders', protect(), (_request, response) => {
        response.status(201).json({ ordered: true })
      })
      app.use('/tenants/:tenant', tenant)
      app.post('/payments/:id', protect(), (_request, response) => {
        response.status(201).json({ paid: true })
      })
    })
    const end = collectMetrics(once.engine, { register, maxRoutes: 3 })
    for (const id of ['1', '2', '3'])
      await send(`/payments/${id}`, { headers: { 'idempotency-key': aKey() } })
    for (let tenant = 0; tenant < 20; tenant += 1)
      await send(`/tenants/${tenant}/orders`, { headers: { 'idempotency-key': aKey() } })
    expect(await values(register, 'oncekey_requests_total')).toEqual({
      'route=POST /payments/:id,outcome=run': 3,
      'route=POST /tenants/0/orders,outcome=run': 1,
      'route=POST /tenants/1/orders,outcome=run': 1,
      'route=other,outcome=run': 18,
    })
    end()
  })

  it('takes the name of a route from the application, where that says more', async () => {
    const register = new Registry()
    const { send, once } = await anExpress(version, (app, protect) => {
      const tenant = version.express.Router()
      tenant.post('/orders', protect(), (_request, response) => {
        response.status(201).json({ ordered: true })
      })
      app.use('/tenants/:tenant', tenant)
    })
    const route = (told: string): string => told.replace(/\/tenants\/[^/]+/, '/tenants/:tenant')
    const end = collectMetrics(once.engine, { register, route })
    for (const tenant of ['1', '2'])
      await send(`/tenants/${tenant}/orders`, { headers: { 'idempotency-key': aKey() } })
    expect(await values(register, 'oncekey_claims_total')).toEqual({
      'route=POST /tenants/:tenant/orders': 2,
    })
    end()
  })
})

describe('collectMetrics, of an engine', () => {
  function watched(options: Partial<PrometheusOptions> = {}) {
    const register = new Registry()
    const once = createIdempotency({ lease: '100ms', maxRun: '200ms' })
    const end = collectMetrics(once, { register, ...options })
    return { register, once, end }
  }

  it('counts a claim as stuck from maxRun until it ends', async () => {
    const { register, once } = watched()
    const { opened, open } = gate()
    const running = once.run({ scope: 'acme', key: aKey(), name: 'pay' }, () => opened)
    await expect.poll(() => values(register, 'oncekey_stuck_claims'), PATIENT).toEqual({ 'route=pay': 1 })
    expect(await values(register, 'oncekey_live_claims')).toEqual({ 'route=pay': 1 })
    open()
    await running.catch(() => {})
    expect(await values(register, 'oncekey_stuck_claims')).toEqual({ 'route=pay': 0 })
    expect(await values(register, 'oncekey_live_claims')).toEqual({ 'route=pay': 0 })
    expect(await values(register, 'oncekey_troubles_total')).toMatchObject({ 'route=pay,kind=max-run': 1 })
    await once.close()
  })

  it('does not take off what it has not put on', async () => {
    const once = createIdempotency()
    const { opened, open } = gate()
    const running = once.run({ scope: 'acme', key: aKey() }, () => opened)
    await new Promise((resolve) => setImmediate(resolve))
    const register = new Registry()
    collectMetrics(once, { register })
    open()
    await running
    expect(await values(register, 'oncekey_live_claims')).toEqual({ 'route=run': 0 })
    expect(await values(register, 'oncekey_completions_total')).toEqual({
      'route=run,result=succeeded,status=none': 1,
    })
  })

  it('takes back the claims that still run when it ends, and leaves those of others', async () => {
    const { register, once, end } = watched()
    const other = createIdempotency()
    const endOther = collectMetrics(other, { register })
    const { opened, open } = gate()
    const both = [once, other].map((one) => one.run({ scope: 'acme', key: aKey() }, () => opened))
    await expect.poll(() => values(register, 'oncekey_live_claims'), PATIENT).toEqual({ 'route=run': 2 })
    end()
    expect(await values(register, 'oncekey_live_claims')).toEqual({ 'route=run': 1 })
    open()
    await Promise.allSettled(both)
    expect(await values(register, 'oncekey_live_claims')).toEqual({ 'route=run': 0 })
    endOther()
    expect(await register.metrics()).toBe('\n')
  })

  it('measures a wait once, however often its request has looked', async () => {
    const store = memoryStore()
    const settings = {
      store,
      namespace: '',
      storeTimeoutMs: 1000,
      replayCache: false,
      sweepMs: false,
    } as const
    const [first, second] = [
      createEngine(settings),
      createEngine({ ...settings, store: withoutWatch(store) }),
    ]
    const register = new Registry()
    collectMetrics(second, { register })
    const events: string[] = []
    second.on(({ type }) => events.push(type))
    const policy = { ...DEFAULT_POLICY, whenBusy: { waitMs: 20_000, waiters: 10 } }
    const operation = { scope: 'acme', key: aKey(), fingerprint: 'one', route: 'POST /payments', policy }
    const begun = await first.begin(operation)
    if (begun.kind !== 'run') throw new Error('The operation was replayed')
    const waiting = second.begin(operation)
    await expect.poll(() => events.filter((type) => type === 'waited').length, PATIENT).toBeGreaterThan(2)
    await begun.execution.complete({ result: 'succeeded', head: '{}', body: new Uint8Array(0) })
    expect(await waiting).toMatchObject({ kind: 'replay' })
    expect(await values(register, 'oncekey_wait_duration_seconds')).toEqual({ 'route=POST /payments': 1 })
    expect(await values(register, 'oncekey_requests_total')).toEqual({
      'route=POST /payments,outcome=replay': 1,
    })
  })

  it('takes another prefix and other buckets, and refuses buckets of what it does not measure', async () => {
    const { register, once } = watched({ prefix: 'bank_', buckets: { handler_duration_seconds: [1, 2] } })
    await once.run({ scope: 'acme', key: aKey() }, () => 'done')
    const text = await register.metrics()
    expect(text.match(/^bank_handler_duration_seconds_bucket\{le="[^"]+"/gm)).toEqual([
      'bank_handler_duration_seconds_bucket{le="1"',
      'bank_handler_duration_seconds_bucket{le="2"',
      'bank_handler_duration_seconds_bucket{le="+Inf"',
    ])
    expect(() => watched({ buckets: { requests_total: [1] } })).toThrow('"requests_total"')
    await once.close()
  })

  it('has the routes that it is told of at 0 from the start, and the errors of the store', async () => {
    const { register, end } = watched({ routes: ['pay', 'POST /payments'] })
    const shown = await register.metrics()
    for (const line of [
      'requests_total{route="pay",outcome="run"} 0',
      'requests_total{route="POST /payments",outcome="unknown"} 0',
      'completions_total{route="pay",result="failed",status="none"} 0',
      'completions_total{route="POST /payments",result="failed",status="4xx"} 0',
      'live_claims{route="pay"} 0',
      'store_errors_total{step="claim"} 0',
      'swept_records_total 0',
    ])
      expect(shown).toContain(`oncekey_${line}\n`)
    end()
  })

  it('counts routes past the limit from 0 as well', async () => {
    const { register, once, end } = watched({ maxRoutes: 1 })
    for (const name of ['pay', 'order', 'refund'])
      await once.run({ scope: 'acme', key: aKey(), name }, () => 1)
    const shown = await register.metrics()
    expect(shown).toContain('oncekey_claims_total{route="other"} 2\n')
    expect(shown).toContain('oncekey_requests_total{route="other",outcome="unknown"} 0\n')
    end()
    await once.close()
  })

  it.each([
    [{ routes: 'POST /payments' }, '"routes"'],
    [{ sources: [1] }, '"sources.0"'],
    [{ maxRoutes: Number.NaN }, '"maxRoutes"'],
    [{ maxSources: -1 }, '"maxSources"'],
    [{ prefix: 'my bank ' }, '"prefix"'],
    [{ register: {} }, '"register"'],
    [{ bucket: {} }, '"bucket"'],
    [{ route: 'POST /payments' }, '"route"'],
  ])('refuses %o at start', (options, name) => {
    expect(() => watched(options as Partial<PrometheusOptions>)).toThrow(name)
  })
})

describe('collectMetrics, of an inbox', () => {
  it('counts deliveries, redeliveries, failures and the dead', async () => {
    const listeners = new Set<(event: MessageEvent) => void>()
    const inbox = {
      on(listener: (event: MessageEvent) => void) {
        listeners.add(listener)
        return () => void listeners.delete(listener)
      },
    }
    const register = new Registry()
    const end = collectMetrics(inbox, { register, maxSources: 2 })
    const tell = (event: MessageEvent): void => {
      for (const listener of listeners) listener(event)
    }
    const about = (source: string) =>
      ({ consumer: 'billing', source, key: 'order-17', keyKind: 'custom' }) as const
    const message = { type: 'message', attempt: 1, durationMs: 20 } as const
    tell({ ...message, message: about('orders'), result: 'processed', redelivered: false })
    tell({ ...message, message: about('orders'), result: 'duplicate', redelivered: true })
    tell({ ...message, message: about('orders'), result: 'in-progress', redelivered: true })
    tell({
      type: 'message-failed',
      message: about('refunds'),
      attempt: 1,
      redelivered: true,
      error: new Error('no'),
      durationMs: 5,
    })
    tell({ type: 'message-dead', message: about('refunds'), attempts: 3, error: new Error('no') })
    tell({ type: 'message-redriven', message: about('refunds') })
    for (let one = 0; one < 10; one += 1)
      tell({ ...message, message: about(`reply-${one}`), result: 'processed', redelivered: false })

    const labels = (source: string): string => `consumer=billing,source=${source}`
    expect(await values(register, 'oncekey_messages_total')).toEqual({
      [`${labels('orders')},result=processed`]: 1,
      [`${labels('orders')},result=duplicate`]: 1,
      [`${labels('orders')},result=in-progress`]: 1,
      [`${labels('other')},result=processed`]: 10,
    })
    expect(await values(register, 'oncekey_messages_redelivered_total')).toEqual({
      [labels('orders')]: 2,
      [labels('refunds')]: 1,
    })
    expect(await values(register, 'oncekey_message_failures_total')).toEqual({ [labels('refunds')]: 1 })
    expect(await values(register, 'oncekey_messages_dead_total')).toEqual({ [labels('refunds')]: 1 })
    expect(await values(register, 'oncekey_messages_redriven_total')).toEqual({ [labels('refunds')]: 1 })
    expect(await values(register, 'oncekey_message_duration_seconds')).toEqual({
      [labels('orders')]: 1,
      [labels('refunds')]: 1,
      [labels('other')]: 10,
    })
    expect(await register.metrics()).not.toContain('order-17')
    end()
    expect(listeners.size).toBe(0)
  })
})

describe('collectMetrics, of a real inbox', () => {
  it('has the topics that it is told of at 0, and counts a redelivery that fails as one', async () => {
    const inbox = createInbox({ store: memoryStore(), consumer: 'billing', sweep: false })
    const register = new Registry()
    const end = collectMetrics(inbox, { register, sources: ['orders'] })
    const labels = 'consumer="billing",source="orders"'
    const shown = await register.metrics()
    for (const line of [
      `messages_total{${labels},result="dead"} 0`,
      `messages_redelivered_total{${labels}} 0`,
      `message_failures_total{${labels}} 0`,
      `messages_dead_total{${labels}} 0`,
      `messages_redriven_total{${labels}} 0`,
    ])
      expect(shown).toContain(`oncekey_${line}\n`)
    const message = { source: 'orders', key: aKey() }
    const fails = () => Promise.reject(new Error('no such account'))
    await expect(inbox.processOnce(message, fails)).rejects.toThrow('no such account')
    await expect(inbox.processOnce({ ...message, deliveryCount: 2 }, fails)).rejects.toThrow()
    expect(await inbox.processOnce({ ...message, deliveryCount: 3 }, () => {})).toBe('processed')
    const of = 'consumer=billing,source=orders'
    expect(await values(register, 'oncekey_message_failures_total')).toEqual({ [of]: 2 })
    expect(await values(register, 'oncekey_messages_redelivered_total')).toEqual({ [of]: 2 })
    end()
    await inbox.close()
  })
})

describe('the events of the core', () => {
  it('are all measured or left out on purpose: none falls through as an error', () => {
    const events = createEvents()
    const register = new Registry()
    const warnings: unknown[] = []
    const noted = (warning: unknown) => void warnings.push(warning)
    process.on('warning', noted)
    const end = collectMetrics(events, { register })
    const operation = { id: 'id', key: 'key', scope: 'scope', route: 'POST /payments' }
    const some: IdempotencyEvent[] = [
      { type: 'rolled-back', operation, fence: 1, why: 'asked' },
      { type: 'transaction-repeated', operation, attempt: 2 },
      { type: 'reconciled', operation, answer: 'rerun', fence: 1, firstSeenAt: 0 },
      { type: 'store-warning', message: 'Redis may evict records' },
      { type: 'swept', removed: 12 },
    ]
    for (const event of some) events.emit(event)
    process.off('warning', noted)
    end()
    expect(warnings).toEqual([])
  })
})

function withoutWatch(store: ReturnType<typeof memoryStore>): ReturnType<typeof memoryStore> {
  const { watch: _watch, ...rest } = store
  return rest
}
