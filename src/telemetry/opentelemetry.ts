import { type Meter, metrics, type Span, trace } from '@opentelemetry/api'
import { z } from 'zod'
import { fn, parseOptions } from '../core/parse-options.js'
import type { EventSource, ObservedEvent } from './event-source.js'
import { INSTRUMENTS, type Instrument, type InstrumentName, type Recorder } from './instruments.js'
import { having, type LabelOptions, labelShape, measure } from './measure.js'
import { describeOnSpan, traceparentOf } from './spans.js'

export type { MessageEvent, MessageSubject } from '../messages/inbox-events.js'
export type { EventSource, ObservedEvent } from './event-source.js'
export type { LabelOptions } from './measure.js'

/** How an engine or an inbox is measured and traced with OpenTelemetry. */
export interface OpenTelemetryOptions extends LabelOptions {
  /**
   * What makes the instruments; `false` for spans alone.
   *
   * @default the meter `oncekey` of the global provider
   */
  readonly meter?: Meter | false
  /**
   * Which span says what became of a request, asked at the moment when that is known; `false` for instruments alone.
   *
   * @default the active span: the server's, where nothing between it and the handler opens one of its own
   */
  readonly span?: (() => Span | undefined) | false
}

const schema = z.strictObject({
  ...labelShape,
  meter: z.union([z.literal(false), having('createCounter', '')], 'must be a meter, or false').optional(),
  span: z
    .union([z.literal(false), fn<() => Span | undefined>('')], 'must be a function, or false')
    .optional(),
})

/**
 * Measures an engine or an inbox with OpenTelemetry, and writes on the active span what became of the request. A replay
 * is linked to the trace of the run that it repeats, where that was traced as well. `docs/metrics.md` lists the names.
 *
 * @returns a function that ends it. Instruments stay: OpenTelemetry has no way to take them back.
 * @throws {OptionsError} naming the option that is wrong.
 */
export function instrument(
  source: EventSource & { traceWith?(traceparent: () => string | undefined): () => void },
  options: OpenTelemetryOptions = {},
): () => void {
  parseOptions(schema, options, 'instrument')
  const { meter = metrics.getMeter('oncekey'), span = () => trace.getActiveSpan() } = options
  const ends: (() => void)[] = []
  const listen = (listener: (event: ObservedEvent) => void): void => void ends.push(source.on(listener))
  if (meter !== false) {
    const { listener, end } = measure(recorderOf(meter), options, source.consumer)
    listen(listener)
    ends.push(end)
  }
  if (span !== false) {
    listen((event) => describeOnSpan(event, span))
    const end = source.traceWith?.(() => traceparentOf(span()))
    if (end !== undefined) ends.push(end)
  }
  return () => {
    for (const end of ends.splice(0)) end()
  }
}

/** Adds to a counter, or notes a value of a histogram. */
type Measure = (labels: Readonly<Record<string, string>>, value: number) => void

function recorderOf(meter: Meter): Recorder {
  const made = Object.fromEntries(
    Object.entries<Instrument>(INSTRUMENTS).map(([name, one]) => [name, addTo(meter, one)]),
  ) as Readonly<Record<InstrumentName, Measure>>
  return {
    add: (name, labels, by = 1) => made[name](attributesOf(labels), by),
    observe: (name, labels, value) => made[name](attributesOf(labels), value),
  }
}

function addTo(meter: Meter, instrument: Instrument): Measure {
  const { kind, openTelemetry: name, help: description, unit, buckets } = instrument
  if (kind === 'histogram') {
    const advice = buckets === undefined ? {} : { advice: { explicitBucketBoundaries: [...buckets] } }
    const histogram = meter.createHistogram(name, { description, unit, ...advice })
    return (labels, value) => histogram.record(value, labels)
  }
  const counter =
    kind === 'counter'
      ? meter.createCounter(name, { description, unit })
      : meter.createUpDownCounter(name, { description, unit })
  return (labels, by) => counter.add(by, labels)
}

function attributesOf(labels: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(labels).map(([name, value]) => [`oncekey.${name}`, value]))
}
