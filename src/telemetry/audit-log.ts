import { createHash } from 'node:crypto'
import { z } from 'zod'
import { isIdempotencyError } from '../contract/errors.js'
import type { EventSubject } from '../core/events.js'
import { fn, parseOptions } from '../core/parse-options.js'
import { auditOfMessage } from './audit-messages.js'
import type { EventSource, ObservedEvent } from './event-source.js'

export type { MessageEvent, MessageSubject } from '../messages/inbox-events.js'
export type { EventSource, ObservedEvent } from './event-source.js'

/** The part of a logger that is used: pino's, and Fastify's. */
export interface AuditLogger {
  info(line: object, message: string): void
  warn(line: object, message: string): void
}

/** What an audit line is about. */
export type AuditEvent =
  | 'replay'
  | 'in-progress'
  | 'mismatch'
  | 'unknown'
  | 'take-over'
  | 'unprotected'
  | 'reconciled'
  | 'reconcile-failed'
  | 'settling'
  | 'releasing'
  | 'settled'
  | 'released'
  | 'swept'
  | 'migrated'
  | 'message-duplicate'
  | 'message-dead'
  | 'message-redriving'
  | 'message-redriven'

/** One line of the audit log. What is not known, or left out on purpose, is absent. */
export interface AuditLine {
  readonly audit: 'oncekey'
  readonly event: AuditEvent
  /** When the line was made, in ISO 8601. Not `time`: loggers have one of their own, in a form of their own. */
  readonly at: string
  /** The record's name in the store. */
  readonly id?: string
  /** A hash of the scope. */
  readonly scope?: string
  /** `sha256:` and 16 characters of the key's hash, or the key itself where the option `key` says so. */
  readonly key?: string
  /** Method and route pattern, or the name of the operation. */
  readonly route?: string
  /** When the operation was first claimed, in ISO 8601. */
  readonly firstSeen?: string
  /** When the outcome that answered was kept, in ISO 8601. */
  readonly completed?: string
  readonly fence?: number
  /** Where a replay came from. */
  readonly source?: 'store' | 'cache'
  /** What `onUnknown` answered. */
  readonly answer?: 'outcome' | 'rerun' | 'reject'
  /** The stable code of an error, or its name. Its message is left out: it may hold anything. */
  readonly error?: string
  /** Who settled or released, where a person did. */
  readonly by?: string
  /** The HTTP status of the outcome that an operator gave. */
  readonly status?: number
  /** How many records a sweep removed. */
  readonly removed?: number
  readonly consumer?: string
  /** Topic or queue of a message. */
  readonly topic?: string
  readonly attempts?: number
}

/** What is written, and what is left out. */
export interface AuditOptions {
  /**
   * How the key is shown: as a short hash, which `printf %s KEY | sha256sum | cut -c1-16` makes of a key that you know;
   * as it is; or not at all.
   *
   * @default 'hash'
   */
  readonly key?: 'hash' | 'plain' | 'omit'
  /**
   * Sees each line last: leave out what may be personal in your application, such as a route with a customer's number,
   * or give `undefined` to write nothing.
   */
  readonly redact?: (line: AuditLine) => AuditLine | undefined
}

const MESSAGES: Readonly<Record<AuditEvent, string>> = {
  replay: 'A retry was answered with the kept outcome',
  'in-progress': 'A duplicate was refused while the first is still running',
  mismatch: 'A key came with another request, and was refused',
  unknown: 'A retry was refused, because nobody knows how an earlier attempt ended',
  'take-over': 'An unknown operation was claimed again',
  unprotected: 'An operation ran without protection, because the store is away',
  reconciled: 'The application was asked about an unknown operation',
  'reconcile-failed': 'The application could not say how an unknown operation ended',
  settling: 'An operator is about to settle an unknown operation',
  releasing: 'An operator is about to release an unknown operation',
  settled: 'An unknown operation was settled',
  released: 'An unknown operation was released',
  swept: 'Expired records were removed',
  migrated: 'The tables were made, or brought up to date',
  'message-duplicate': 'A message came again, and was not processed again',
  'message-dead': 'A message was given up',
  'message-redriving': 'An operator is about to send a dead message on its way again',
  'message-redriven': 'A dead message was sent on its way again',
}

/** What `AuditOptions` must be. */
export const auditSchema = z.strictObject({
  key: z.enum(['hash', 'plain', 'omit'], "must be 'hash', 'plain' or 'omit'").optional(),
  redact: fn<NonNullable<AuditOptions['redact']>>('a function of a line').optional(),
})

const USUAL: ReadonlySet<AuditEvent> = new Set(['replay', 'in-progress', 'message-duplicate'])

/**
 * Writes one line for each duplicate, mismatch, unknown, take-over and reconciliation of an engine or an inbox, and
 * nothing for what went as usual. Duplicates are `info`, the rest is `warn`. By default no line has a key, a scope, or a
 * word of a request or an answer.
 *
 * @returns a function that ends it.
 * @throws {OptionsError} naming the option that is wrong.
 */
export function auditLog(source: EventSource, logger: AuditLogger, options: AuditOptions = {}): () => void {
  parseOptions(auditSchema, options, 'auditLog')
  return source.on((event: ObservedEvent) => {
    const entry = entryOf(event)
    if (entry !== undefined) writeAudit(logger, entry, options)
  })
}

/** What a line is made of: the key as it is, and times in epoch milliseconds. */
export interface AuditEntry extends Omit<AuditLine, 'audit' | 'at' | 'error' | 'firstSeen' | 'completed'> {
  readonly firstSeenAt?: number
  readonly completedAt?: number
  readonly error?: unknown
}

/**
 * Writes one line: for what no engine reports, as when an operator settles an unknown operation at the store.
 *
 * @returns the line, or `undefined` when `redact` kept it back.
 */
export function writeAudit(
  logger: AuditLogger,
  entry: AuditEntry,
  options: AuditOptions = {},
): AuditLine | undefined {
  const line = auditLine(entry, options)
  if (line === undefined) return undefined
  logger[USUAL.has(line.event) ? 'info' : 'warn'](line, MESSAGES[line.event])
  return line
}

/** Makes one line, redacted as `options` say; `undefined` when `redact` keeps it back. */
export function auditLine(entry: AuditEntry, options: AuditOptions = {}): AuditLine | undefined {
  const { event, key, firstSeenAt, completedAt, error, ...rest } = entry
  const shown = key === undefined ? undefined : shownKey(key, options.key)
  const [firstSeen, completed] = [isoTime(firstSeenAt), isoTime(completedAt)]
  const line: AuditLine = {
    audit: 'oncekey',
    event,
    at: new Date().toISOString(),
    ...rest,
    ...(shown !== undefined && { key: shown }),
    ...(firstSeen !== undefined && { firstSeen }),
    ...(completed !== undefined && { completed }),
    ...(error !== undefined && { error: shownError(error) }),
  }
  return options.redact === undefined ? line : options.redact(line)
}

function entryOf(event: ObservedEvent): AuditEntry | undefined {
  switch (event.type) {
    case 'replayed':
      return {
        event: 'replay',
        ...subjectOf(event.operation),
        completedAt: Date.now() - event.ageMs,
        source: event.from,
      }
    case 'claimed':
      if (event.fence === 1) return undefined
      return { event: 'take-over', ...subjectOf(event.operation), fence: event.fence }
    case 'in-progress':
    case 'mismatch':
      return { event: event.type, ...subjectOf(event.operation) }
    case 'unknown': {
      const { operation, fence, firstSeenAt } = event
      return { event: 'unknown', ...subjectOf(operation), fence, firstSeenAt }
    }
    case 'unprotected':
      return { event: 'unprotected', ...subjectOf(event.operation), error: event.error }
    case 'reconciled': {
      const { operation, fence, firstSeenAt, answer } = event
      return { event: 'reconciled', ...subjectOf(operation), fence, firstSeenAt, answer }
    }
    case 'reconcile-failed': {
      const { operation, fence, firstSeenAt, error } = event
      return { event: 'reconcile-failed', ...subjectOf(operation), fence, firstSeenAt, error }
    }
    case 'message':
    case 'message-dead':
    case 'message-redriven':
      return auditOfMessage(event)
    default:
      return undefined
  }
}

function subjectOf({
  id,
  scope,
  key,
  route,
}: EventSubject): Pick<AuditEntry, 'id' | 'scope' | 'key' | 'route'> {
  return { id, scope, key, route }
}

/** `undefined` for what is no time: what a store holds must not keep a line from being written. */
function isoTime(epochMs: number | undefined): string | undefined {
  const time = new Date(epochMs ?? Number.NaN)
  return Number.isNaN(time.getTime()) ? undefined : time.toISOString()
}

function shownKey(key: string, how: AuditOptions['key'] = 'hash'): string | undefined {
  if (how === 'omit') return undefined
  if (how === 'plain') return key
  return `sha256:${createHash('sha256').update(key).digest('hex').slice(0, 16)}`
}

function shownError(error: unknown): string {
  if (isIdempotencyError(error)) return error.code
  return error instanceof Error ? error.name : typeof error
}
