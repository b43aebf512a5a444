import { Counter, register as defaultRegister, Gauge, Histogram, type Registry } from 'prom-client'
import { z } from 'zod'
import { parseOptions } from '../core/parse-options.js'
import type { EventSource } from './event-source.js'
import { INSTRUMENTS, type Instrument, type InstrumentName, type Recorder } from './instruments.js'
import { having, type LabelOptions, labelShape, measure } from './measure.js'

export type { MessageEvent, MessageSubject } from '../messages/inbox-events.js'
export type { EventSource, ObservedEvent } from './event-source.js'
export type { LabelOptions } from './measure.js'

/** How an engine or an inbox is measured for Prometheus. */
export interface PrometheusOptions extends LabelOptions {
  /**
   * Where the metrics go.
   *
   * @default the default registry of prom-client
   */
  readonly register?: Registry
  /**
   * What the names begin with. Another one keeps two engines of one process apart.
   *
   * @default 'oncekey_'
   */
  readonly prefix?: string
  /** Bounds of histograms in seconds, in place of the usual ones, by the metric's name without the prefix. */
  readonly buckets?: Readonly<Record<string, readonly number[]>>
}

type Metrics = Readonly<Record<InstrumentName, Counter | Gauge | Histogram>>

interface Shared {
  readonly metrics: Metrics
  users: number
}

const shared = new WeakMap<Registry, Map<string, Shared>>()

const histograms = Object.values<Instrument>(INSTRUMENTS)
  .filter(({ kind }) => kind === 'histogram')
  .map(({ prometheus }) => [prometheus, z.array(z.number('must be a number of seconds')).optional()] as const)

const schema = z.strictObject({
  ...labelShape,
  register: having('registerMetric', 'must be a registry of prom-client').optional(),
  prefix: z
    .string('must be text')
    .regex(/^[a-zA-Z_:][\w:]*$/, 'must begin the name of a metric')
    .optional(),
  buckets: z
    .record(z.string(), z.unknown())
    .pipe(z.strictObject(Object.fromEntries(histograms)))
    .optional(),
})

/**
 * Measures an engine (`app.idempotency`, `once.engine`, what `createIdempotency` gives) or an inbox with prom-client.
 * Several that share a registry and a prefix are added up. `docs/metrics.md` lists the metrics.
 *
 * @returns a function that ends it, and takes the metrics out of the registry when it was the last to use them.
 * @throws {OptionsError} naming the option that is wrong.
 * @throws what prom-client says of a name that the registry has for something else.
 */
export function collectMetrics(source: EventSource, options: PrometheusOptions = {}): () => void {
  const { register = defaultRegister, prefix = 'oncekey_', buckets = {} } = options
  parseOptions(schema, options, 'collectMetrics')
  const prefixes = shared.get(register) ?? new Map<string, Shared>()
  shared.set(register, prefixes)
  let used = prefixes.get(prefix)
  if (used === undefined) {
    used = { metrics: createMetrics({ register, prefix, buckets }), users: 0 }
    prefixes.set(prefix, used)
  }
  const { metrics } = used
  used.users += 1
  const { listener, end } = measure(recorderOf(metrics), options, source.consumer)
  const unsubscribe = source.on(listener)
  let hasEnded = false
  return () => {
    if (hasEnded) return
    hasEnded = true
    unsubscribe()
    end()
    used.users -= 1
    if (used.users > 0) return
    prefixes.delete(prefix)
    for (const { prometheus } of Object.values(INSTRUMENTS)) register.removeSingleMetric(prefix + prometheus)
  }
}

function createMetrics(parts: {
  readonly register: Registry
  readonly prefix: string
  readonly buckets: Readonly<Record<string, readonly number[]>>
}): Metrics {
  const { register, prefix, buckets } = parts
  const made = Object.entries<Instrument>(INSTRUMENTS).map(([name, instrument]) => {
    const { kind, prometheus, help, labels } = instrument
    const common = { name: prefix + prometheus, help, labelNames: [...labels], registers: [register] }
    if (kind === 'counter') return [name, new Counter(common)]
    if (kind === 'gauge') return [name, new Gauge(common)]
    const bounds = buckets[prometheus] ?? instrument.buckets ?? []
    return [name, new Histogram({ ...common, buckets: [...bounds] })]
  })
  return Object.fromEntries(made) as Metrics
}

function recorderOf(metrics: Metrics): Recorder {
  return {
    add: (name, labels, by = 1) => (metrics[name] as Counter | Gauge).inc(labels, by),
    observe: (name, labels, value) => (metrics[name] as Histogram).observe(labels, value),
  }
}
