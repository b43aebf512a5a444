import { context, type Meter, ROOT_CONTEXT, type Span, trace } from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import {
  AggregationTemporality,
  type DataPoint,
  DataPointType,
  InMemoryMetricExporter,
  MeterProvider,
  PeriodicExportingMetricReader,
} from '@opentelemetry/sdk-metrics'
import {
  BasicTracerProvider,
  InMemorySpanExporter,
  type ReadableSpan,
  SimpleSpanProcessor,
} from '@opentelemetry/sdk-trace-base'
import type { FastifyInstance } from 'fastify'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { createIdempotency } from '../../src/index.js'
import { memoryStore } from '../../src/stores/memory.js'
import { instrument, type MessageEvent } from '../../src/telemetry/opentelemetry.js'
import { aKey, anExpress, closeExpressApps } from '../support/express-app.js'
import { EXPRESS_VERSIONS } from '../support/express-versions.js'
import { anApp, send } from '../support/fastify-app.js'
import { gate } from '../support/gate.js'
import { aTelemetryWorld, type TelemetryWorld } from '../support/telemetry-world.js'

const PATIENT = { timeout: 20_000 }

const exporter = new InMemorySpanExporter()
const tracer = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }).getTracer(
  'server',
)

beforeAll(() => {
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable())
})
afterAll(() => context.disable())
afterEach(() => exporter.reset())

/** Does what an instrumentation of HTTP does: a span around the request, active in all that comes of it. */
async function inSpan<T>(name: string, work: () => Promise<T>): Promise<T> {
  const span = tracer.startSpan(name, {}, ROOT_CONTEXT)
  try {
    return await context.with(trace.setSpan(ROOT_CONTEXT, span), work)
  } finally {
    span.end()
  }
}

function spanOf(name: string): ReadableSpan {
  const span = exporter.getFinishedSpans().find((one) => one.name === name)
  if (span === undefined) throw new Error(`There is no span ${name}`)
  return span
}

describe('instrument, of a Fastify application', () => {
  let world: TelemetryWorld
  let stop: () => void

  beforeEach(async () => {
    world = await aTelemetryWorld((app) => {
      stop = instrument(app.idempotency, { meter: false })
    })
  })
  afterEach(async () => {
    stop()
    await world.close()
  })

  it('says on the span of each request what became of it', async () => {
    const { pay, orphan, line } = world
    const [key, lost] = [aKey(), aKey()]
    await inSpan('first', () => pay(key))
    await inSpan('retry', () => pay(key))
    await inSpan('again', () => pay(key))
    await inSpan('mismatch', () => pay(key, { amount: 7 }))
    await orphan(lost)
    await inSpan('unknown', () => pay(lost))
    line.disturb('claim', 'fails')
    await inSpan('refused', () => pay(aKey()))
    line.heal()
    expect(spanOf('first').attributes).toEqual({ 'oncekey.outcome': 'run', 'oncekey.fence': 1 })
    expect(spanOf('retry').attributes).toEqual({
      'oncekey.outcome': 'replay',
      'oncekey.replay.age_ms': expect.any(Number),
      'oncekey.replay.source': 'store',
      'oncekey.replay.body_kept': true,
    })
    expect(spanOf('again').attributes).toMatchObject({ 'oncekey.replay.source': 'cache' })
    expect(spanOf('mismatch').attributes).toEqual({ 'oncekey.outcome': 'mismatch' })
    expect(spanOf('unknown').attributes).toEqual({ 'oncekey.outcome': 'unknown', 'oncekey.fence': 1 })
    expect(spanOf('refused').attributes).toEqual({ 'oncekey.outcome': 'refused' })
  })

  it('links every replay to the trace of the first run, from the store and from the cache', async () => {
    const key = aKey()
    await inSpan('first', () => world.pay(key))
    await inSpan('retry', () => world.pay(key))
    await inSpan('again', () => world.pay(key))
    const { traceId, spanId, traceFlags } = spanOf('first').spanContext()
    for (const name of ['retry', 'again']) {
      expect(spanOf(name).links).toMatchObject([
        {
          context: { traceId, spanId, traceFlags, isRemote: true },
          attributes: { 'oncekey.link': 'first-run' },
        },
      ])
      expect(spanOf(name).spanContext().traceId).not.toBe(traceId)
    }
    expect(spanOf('first').links).toEqual([])
  })

  it('tells concurrent requests apart', async () => {
    const { pay, held } = world
    const keys = Array.from({ length: 10 }, aKey)
    const paid = await Promise.all(keys.map((key, n) => inSpan(`first ${n}`, () => pay(key))))
    expect(paid.every(({ status }) => status === 201)).toBe(true)
    const slow = aKey()
    const first = inSpan('slow', () => pay(slow, { path: '/held' }))
    await expect.poll(() => pay(slow, { path: '/held' }).then(({ status }) => status), PATIENT).toBe(409)
    await inSpan('duplicate', () => pay(slow, { path: '/held' }))
    await Promise.all(keys.map((key, n) => inSpan(`retry ${n}`, () => pay(key))))
    held.open()
    await first
    for (const n of keys.keys()) {
      expect(spanOf(`first ${n}`).attributes['oncekey.outcome']).toBe('run')
      expect(spanOf(`retry ${n}`).attributes['oncekey.outcome']).toBe('replay')
      expect(spanOf(`retry ${n}`).links[0]?.context.spanId).toBe(spanOf(`first ${n}`).spanContext().spanId)
    }
    expect(spanOf('duplicate').attributes).toEqual({ 'oncekey.outcome': 'in-progress' })
    expect(spanOf('slow').attributes).toEqual({ 'oncekey.outcome': 'run', 'oncekey.fence': 1 })
  })

  it('writes on no span and keeps no trace once it has ended, or where there is none', async () => {
    const key = aKey()
    await world.pay(key)
    await inSpan('of an untraced run', () => world.pay(key))
    expect(spanOf('of an untraced run').links).toEqual([])
    stop()
    const other = aKey()
    await inSpan('first', () => world.pay(other))
    expect(spanOf('first').attributes).toEqual({})
    stop = instrument(world.app.idempotency, { meter: false })
    await inSpan('retry', () => world.pay(other))
    expect(spanOf('retry').links).toEqual([])
  })
})

describe('instrument', () => {
  it('replays to a process that does not trace, byte for byte, and the other way round', async () => {
    const store = memoryStore()
    const define = (app: FastifyInstance): void => {
      app.post('/payments', (_request, reply) =>
        reply.code(201).header('location', '/p/1').send({ paid: true }),
      )
    }
    const [traced, plain] = [await anApp(define, { store }), await anApp(define, { store })]
    const stop = instrument(traced.app.idempotency, { meter: false })
    for (const [first, second] of [
      [traced, plain],
      [plain, traced],
    ] as const) {
      const key = aKey()
      const one = await inSpan('first', () => first.send('/payments', { key }))
      const two = await inSpan('retry', () => second.send('/payments', { key }))
      expect(two).toMatchObject({ status: 201, isReplay: true, bytes: one.bytes })
      expect(two.headers.location).toBe('/p/1')
      expect(JSON.stringify(two.headers)).not.toContain('traceparent')
    }
    stop()
    await Promise.all([traced.app.close(), plain.app.close()])
  })

  it.each([
    [{ meter: true }, '"meter"'],
    [{ span: 'active' }, '"span"'],
    [{ tracer: {} }, '"tracer"'],
  ])('refuses %o at start', (options, name) => {
    expect(() => instrument(createIdempotency(), options as object)).toThrow(name)
  })

  it('writes on the span of the application’s choice', async () => {
    const { app } = await anApp((it) => {
      it.post('/payments', () => ({ paid: true }))
    })
    const chosen = tracer.startSpan('chosen', {}, ROOT_CONTEXT)
    const stop = instrument(app.idempotency, { meter: false, span: (): Span => chosen })
    await inSpan('active', () => send(app, '/payments', { key: aKey() }))
    chosen.end()
    stop()
    expect(spanOf('chosen').attributes).toMatchObject({ 'oncekey.outcome': 'run' })
    expect(spanOf('active').attributes).toEqual({})
    await app.close()
  })
})

describe.each(EXPRESS_VERSIONS)('instrument, of an application of $name', (version) => {
  afterEach(closeExpressApps)

  it('writes on the active span and links the replay', async () => {
    const { send: ask, once } = await anExpress(version, (app, protect) => {
      app.use((request, _response, next) => {
        inSpan(
          String(request.headers['x-span']),
          () =>
            new Promise<void>((resolve) => {
              _response.on('close', resolve)
              next()
            }),
        ).catch(next)
      })
      app.post('/payments', protect(), (_request, response) => {
        response.status(201).json({ paid: true })
      })
    })
    const stop = instrument(once.engine, { meter: false })
    const key = aKey()
    await ask('/payments', { headers: { 'idempotency-key': key, 'x-span': 'first' } })
    await ask('/payments', { headers: { 'idempotency-key': key, 'x-span': 'retry' } })
    await expect.poll(() => exporter.getFinishedSpans().length, PATIENT).toBe(2)
    expect(spanOf('first').attributes).toMatchObject({ 'oncekey.outcome': 'run' })
    expect(spanOf('retry').links[0]?.context.spanId).toBe(spanOf('first').spanContext().spanId)
    stop()
  })
})

describe('the instruments', () => {
  let metricExporter: InMemoryMetricExporter
  let provider: MeterProvider
  let meter: Meter

  beforeEach(() => {
    metricExporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE)
    provider = new MeterProvider({
      readers: [
        new PeriodicExportingMetricReader({ exporter: metricExporter, exportIntervalMillis: 3_600_000 }),
      ],
    })
    meter = provider.getMeter('test')
  })
  afterEach(() => provider.shutdown())

  /** All values of an instrument but counters that are at 0, by their attributes; of a histogram, how many it has. */
  async function values(name: string): Promise<Record<string, number>> {
    metricExporter.reset()
    await provider.forceFlush()
    const all = metricExporter
      .getMetrics()
      .flatMap((one) => one.scopeMetrics.flatMap(({ metrics }) => metrics))
    const found = all.find(({ descriptor }) => descriptor.name === name)
    const isCounter = found?.dataPointType === DataPointType.SUM && found.isMonotonic
    const points = (found?.dataPoints ?? []) as DataPoint<number | { readonly count: number }>[]
    const counted = points.filter(({ value }) => !isCounter || value !== 0)
    return Object.fromEntries(
      counted.map(({ attributes, value }) => [
        Object.entries(attributes)
          .map(([label, said]) => `${label}=${said}`)
          .join(','),
        typeof value === 'number' ? value : value.count,
      ]),
    )
  }

  it('count the same as those of Prometheus, under their own names', async () => {
    const world = await aTelemetryWorld((app) => instrument(app.idempotency, { meter, span: false }))
    const key = aKey()
    await world.pay(key)
    await world.pay(key)
    await world.pay(key, { amount: 7 })
    await world.pay(aKey(), { path: '/declined' })
    const route = 'oncekey.route=POST /payments'
    expect(await values('oncekey.requests')).toEqual({
      [`${route},oncekey.outcome=run`]: 1,
      [`${route},oncekey.outcome=replay`]: 1,
      [`${route},oncekey.outcome=mismatch`]: 1,
      'oncekey.route=POST /declined,oncekey.outcome=run': 1,
    })
    expect(await values('oncekey.completions')).toEqual({
      [`${route},oncekey.result=succeeded,oncekey.status=2xx`]: 1,
      'oncekey.route=POST /declined,oncekey.result=failed,oncekey.status=4xx': 1,
    })
    expect(await values('oncekey.handler.duration')).toEqual({
      [route]: 1,
      'oncekey.route=POST /declined': 1,
    })
    expect(await values('oncekey.claims.live')).toEqual({ [route]: 0, 'oncekey.route=POST /declined': 0 })
    await world.close()
  })

  it('show a claim while it runs', async () => {
    const once = createIdempotency()
    const stop = instrument(once, { meter, span: false })
    const { opened, open } = gate()
    const running = once.run({ scope: 'acme', key: aKey(), name: 'pay' }, () => opened)
    await expect.poll(() => values('oncekey.claims.live'), PATIENT).toEqual({ 'oncekey.route=pay': 1 })
    open()
    await running
    expect(await values('oncekey.claims.live')).toEqual({ 'oncekey.route=pay': 0 })
    stop()
  })

  it('measure an inbox, and write on the span of a message', async () => {
    const listeners = new Set<(event: MessageEvent) => void>()
    const stop = instrument(
      {
        on(listener: (event: MessageEvent) => void) {
          listeners.add(listener)
          return () => void listeners.delete(listener)
        },
      },
      { meter },
    )
    const message = { consumer: 'billing', source: 'orders', key: 'order-17', keyKind: 'custom' } as const
    const event = {
      type: 'message',
      message,
      result: 'duplicate',
      attempt: 2,
      redelivered: true,
      durationMs: 3,
    } as const
    await inSpan('message', async () => {
      for (const listener of listeners) listener(event)
    })
    expect(spanOf('message').attributes).toEqual({
      'oncekey.message.result': 'duplicate',
      'oncekey.message.attempt': 2,
      'oncekey.message.redelivered': true,
    })
    expect(await values('oncekey.messages')).toEqual({
      'oncekey.consumer=billing,oncekey.source=orders,oncekey.result=duplicate': 1,
    })
    stop()
    expect(listeners.size).toBe(0)
  })
})
