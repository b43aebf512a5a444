import { z } from 'zod'
import type { EventSubject, IdempotencyEvent } from '../core/events.js'
import { fn, wholeNumber } from '../core/parse-options.js'
import type { MessageEvent } from '../messages/inbox-events.js'
import type { ObservedEvent } from './event-source.js'
import type { Recorder } from './instruments.js'
import { beginSeries, beginStoreSeries } from './known-series.js'
import { limited } from './label-limit.js'
import { measureMessages } from './measure-messages.js'

/** How far labels are told apart. */
export interface LabelOptions {
  /**
   * What the label `route` says in place of an event's route. For routers of Express that are mounted under a parameter:
   * there the route holds what the client sent, `POST /tenants/17/orders`.
   */
  readonly route?: (route: string) => string
  /**
   * Routes that are there from the start, with 0 of everything, under the names that the label `route` gives them.
   * Others are there from their first event on, and how much they rise by at that one, `rate()` does not see.
   */
  readonly routes?: readonly string[]
  /**
   * How many routes are told apart. Those that come later are `other`.
   *
   * @default 200
   */
  readonly maxRoutes?: number
  /**
   * How many topics or queues, and how many consumers, are told apart. Those that come later are `other`.
   *
   * @default 100
   */
  readonly maxSources?: number
  /** Topics or queues of an inbox that are there from the start, as `routes` are. */
  readonly sources?: readonly string[]
}

/** What `LabelOptions` must be. */
export const labelShape = {
  route: fn<(route: string) => string>('a function of a route').optional(),
  routes: z.array(z.string('must be the name of a route')).optional(),
  maxRoutes: wholeNumber(0).optional(),
  maxSources: wholeNumber(0).optional(),
  sources: z.array(z.string('must be the name of a topic or queue')).optional(),
}

/** What has a method of that name. */
export function having(method: string, described: string): z.ZodType<unknown, unknown> {
  return z.custom(
    (value) => typeof (value as Record<string, unknown> | null)?.[method] === 'function',
    described,
  )
}

/** A listener that measures, and what takes back the gauges once it listens no more. */
export interface Measurement {
  readonly listener: (event: ObservedEvent) => void
  /** Claims that still run are no longer counted. */
  end(): void
}

/**
 * Turns what an engine or an inbox reports into measurements. Prometheus and OpenTelemetry differ in the recorder only.
 *
 * @param consumer that of the inbox, where it is one.
 */
export function measure(recorder: Recorder, options: LabelOptions = {}, consumer?: string): Measurement {
  const { route: named = (route: string) => route, routes = [], maxRoutes = 200 } = options
  const { maxSources = 100, sources = [] } = options
  const known = limited(maxRoutes, (route) => beginSeries(recorder, { route }))
  const live = claimGauge(recorder, 'liveClaims')
  const stuck = claimGauge(recorder, 'stuckClaims')
  const messages = measureMessages(recorder, { maxSources, consumer, sources })
  // An event is told at each look of a waiting request, with the time since its first.
  const waits = new WeakMap<EventSubject, number>()
  beginStoreSeries(recorder)
  for (const route of routes) known(route)

  function ended(subject: EventSubject, route: string, outcome: string): void {
    recorder.add('requests', { route, outcome })
    const waitedMs = waits.get(subject)
    if (waitedMs !== undefined) recorder.observe('waitDuration', { route }, waitedMs / 1000)
  }

  function aboutOperation(event: Extract<IdempotencyEvent, { operation: EventSubject }>): void {
    const { operation } = event
    const route = known(named(operation.route))
    switch (event.type) {
      case 'claimed':
        ended(operation, route, 'run')
        recorder.add(event.fence === 1 ? 'claims' : 'takeOvers', { route })
        live.add(operation, route)
        return
      case 'replayed':
        ended(operation, route, 'replay')
        recorder.add('replays', {
          route,
          source: event.from,
          body: event.tombstone ? 'not-kept' : 'kept',
        })
        recorder.observe('replayAge', { route }, event.ageMs / 1000)
        return
      case 'in-progress':
      case 'mismatch':
      case 'unknown':
      case 'unprotected':
      case 'refused':
        ended(operation, route, event.type)
        return
      case 'waited':
        waits.set(operation, event.waitedMs)
        return
      case 'completed':
        recorder.add('completions', {
          route,
          result: event.result,
          status: statusClass(event.facts().status),
        })
        // A late one has waited for the store, and nobody knows how long its handler took.
        if (!event.late) recorder.observe('handlerDuration', { route }, event.runMs / 1000)
        return
      case 'released':
        recorder.add('releases', { route })
        recorder.observe('handlerDuration', { route }, event.runMs / 1000)
        return
      case 'max-run':
        stuck.add(operation, route)
        recorder.add('troubles', { route, kind: event.type })
        return
      case 'claim-ended':
        live.remove(operation)
        stuck.remove(operation)
        return
      case 'reconciled':
        recorder.add('reconciliations', { route, answer: event.answer })
        return
      case 'reconcile-failed':
        recorder.add('reconciliations', { route, answer: 'failed' })
        return
      case 'rolled-back':
        recorder.add('rollbacks', { route, why: event.why })
        return
      case 'transaction-repeated':
        recorder.add('repeats', { route })
        return
      default:
        recorder.add('troubles', { route, kind: event.type })
    }
  }

  return {
    listener(event) {
      if ('operation' in event) return aboutOperation(event)
      if ('message' in event && typeof event.message === 'object') return messages(event as MessageEvent)
      switch (event.type) {
        case 'store-call':
          recorder.observe('storeDuration', { step: event.step }, event.durationMs / 1000)
          if (event.error !== undefined) recorder.add('storeErrors', { step: event.step })
          return
        case 'store-warning':
          recorder.add('storeWarnings', {})
          return
        case 'swept':
          recorder.add('swept', {}, event.removed)
          return
      }
    },
    end() {
      live.clear()
      stuck.clear()
    },
  }
}

/** The class of an HTTP status; `none` for what has no status, as a function's value. */
function statusClass(status: number | undefined): string {
  return status === undefined ? 'none' : `${Math.trunc(status / 100)}xx`
}

interface ClaimGauge {
  add(subject: EventSubject, route: string): void
  remove(subject: EventSubject): void
  clear(): void
}

/** Counts claims by themselves, and not by their events: one that began before anybody listened is not taken off. */
function claimGauge(recorder: Recorder, name: 'liveClaims' | 'stuckClaims'): ClaimGauge {
  const routes = new Map<EventSubject, string>()
  function remove(subject: EventSubject): void {
    const route = routes.get(subject)
    if (route === undefined) return
    routes.delete(subject)
    recorder.add(name, { route }, -1)
  }
  return {
    add(subject, route) {
      if (routes.has(subject)) return
      routes.set(subject, route)
      recorder.add(name, { route })
    },
    remove,
    clear() {
      for (const subject of [...routes.keys()]) remove(subject)
    },
  }
}
