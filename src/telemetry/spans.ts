import { type Attributes, isSpanContextValid, type Span, type SpanContext } from '@opentelemetry/api'
import type { ObservedEvent } from './event-source.js'

/** Writes on a span what became of its request or message. Steps in the background belong to no span, and are left out. */
export function describeOnSpan(event: ObservedEvent, span: () => Span | undefined): void {
  const attributes = attributesOf(event)
  if (attributes === undefined) return
  const current = span()
  if (current === undefined) return
  current.setAttributes(attributes)
  if (event.type !== 'replayed') return
  const first = spanContextOf(event.facts().traceparent)
  if (first !== undefined) current.addLink({ context: first, attributes: { 'oncekey.link': 'first-run' } })
}

function attributesOf(event: ObservedEvent): Attributes | undefined {
  switch (event.type) {
    case 'claimed':
      return { 'oncekey.outcome': 'run', 'oncekey.fence': event.fence }
    case 'replayed':
      return {
        'oncekey.outcome': 'replay',
        'oncekey.replay.age_ms': Math.round(event.ageMs),
        'oncekey.replay.source': event.from,
        'oncekey.replay.body_kept': !event.tombstone,
      }
    case 'unknown':
      return { 'oncekey.outcome': 'unknown', 'oncekey.fence': event.fence }
    case 'in-progress':
    case 'mismatch':
    case 'unprotected':
    case 'refused':
      return { 'oncekey.outcome': event.type }
    case 'waited':
      return { 'oncekey.waited_ms': Math.round(event.waitedMs) }
    case 'message':
      return {
        'oncekey.message.result': event.result,
        'oncekey.message.attempt': event.attempt,
        'oncekey.message.redelivered': event.redelivered,
      }
    case 'message-failed':
      return { 'oncekey.message.result': 'failed', 'oncekey.message.attempt': event.attempt }
    default:
      return undefined
  }
}

/** The context of a span as W3C Trace Context writes it. */
export function traceparentOf(span: Span | undefined): string | undefined {
  const context = span?.spanContext()
  if (context === undefined || !isSpanContextValid(context)) return undefined
  const flags = (context.traceFlags & 0xff).toString(16).padStart(2, '0')
  return `00-${context.traceId}-${context.spanId}-${flags}`
}

function spanContextOf(traceparent: string | undefined): SpanContext | undefined {
  const [, traceId, spanId, flags] =
    traceparent?.match(/^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/) ?? []
  if (traceId === undefined || spanId === undefined || flags === undefined) return undefined
  const context = { traceId, spanId, traceFlags: Number.parseInt(flags, 16), isRemote: true }
  return isSpanContextValid(context) ? context : undefined
}
