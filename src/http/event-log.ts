import type { Engine } from '../core/engine.js'
import type { IdempotencyEvent } from '../core/events.js'

/** The part of a logger that is used: pino's, and Fastify's. */
export interface EventLogger {
  warn(details: object, message: string): void
}

/** What an operator wants to read about without having asked. Everything else is for metrics. */
const MESSAGES: Partial<Record<IdempotencyEvent['type'], string>> = {
  unprotected: 'A handler ran without protection, because the idempotency store is away',
  'body-not-kept': 'An answer was too large for the idempotency store, a tombstone was kept in its place',
  'claim-lost': 'A claim is no longer held by the handler that runs under it',
  'renewal-failed': 'A claim could not be renewed, it is tried again',
  'max-run': 'A handler ran for longer than maxRun, its claim is no longer renewed',
  'save-failed': 'An outcome could not be saved, it is tried again in the background',
  'save-abandoned': 'An outcome could not be saved until maxRun, the operation becomes unknown',
  'outcome-lost': 'A handler ended after its claim was lost, its outcome was not kept',
  'claim-abandoned': 'A claim got no answer, it is given back in the background',
  'release-failed': 'A claim could not be given back, it is tried again in the background',
  'reconcile-failed': 'The onUnknown function failed',
  'store-warning': 'The idempotency store needs attention',
}

/** Writes what an operator should know to a log, from now on: the record's id and route, never the key. */
export function logEvents(engine: Pick<Engine, 'on'>, log: EventLogger): void {
  engine.on((event) => logEvent(log, event), Object.keys(MESSAGES) as IdempotencyEvent['type'][])
}

function logEvent(log: EventLogger, event: IdempotencyEvent): void {
  const details = {
    event: event.type,
    ...('operation' in event && { id: event.operation.id, route: event.operation.route }),
    ...('error' in event && { err: event.error }),
    ...('message' in event && { warning: event.message }),
    ...('reason' in event && { reason: event.reason }),
  }
  log.warn(details, MESSAGES[event.type] ?? event.type)
}
