import { randomBytes } from 'node:crypto'
import type { FastifyRequest } from 'fastify'
import { z } from 'zod'
import { OptionsError } from '../contract/errors.js'
import type { Engine } from '../core/engine.js'
import { engineShape } from '../core/engine-options.js'
import { fn, parseOptions } from '../core/parse-options.js'
import type { Policy } from '../core/policy.js'
import { type AuditLogger, type AuditOptions, auditSchema } from '../telemetry/audit-log.js'

/** An engine that a console shows: `app.idempotency`, `once.engine` of Express, or what `createIdempotency` gives. */
export type ShownEngine = Pick<Engine, 'on' | 'store' | 'namespace'> & { readonly policy: Policy }

/** Who looks at the console. */
export interface Operator {
  /** The name that stands in audit lines. */
  readonly by: string
  /**
   * Whether this person may settle and release.
   *
   * @default false
   */
  readonly mayChange?: boolean
  /**
   * The id of the session, or anything else that ends with it: a form that was opened in one session is not accepted in
   * another one of the same person.
   */
  readonly session?: string
}

/** What `authorize` says: a person, or nobody. */
export type Authorized = Operator | false | null | undefined

/** What the console takes. */
export interface ConsoleOptions {
  /**
   * Says who asks, or `false` (or nothing) for a person who may not see this. It is asked at every request, before anything
   * else of the console and after the `onRequest` hooks of the application. The console has no sign-in of its own.
   */
  readonly authorize: (request: FastifyRequest) => Authorized | Promise<Authorized>

  /**
   * The engine whose keys are shown.
   *
   * @default app.idempotency, of the context that the console is registered in
   */
  readonly idempotency?: ShownEngine

  /**
   * Whether whoever has `mayChange` can settle and release here. Otherwise the console only shows.
   *
   * @default false
   */
  readonly actions?: boolean

  /**
   * What the proofs in forms are made with: 16 random bytes or more, as bytes or text, the same in all processes that serve
   * this console.
   *
   * @default random: a form that one process made is not accepted by another, nor after a restart
   */
  readonly secret?: string | Uint8Array

  /**
   * Where people see the console, such as `https://ops.example.com`: scheme, host, and port where it is not the usual one.
   * For proxies that pass on another host than the one that people see.
   *
   * @default undefined: the host that a request was sent to, as Fastify has it, with its `trustProxy`
   */
  readonly origin?: string

  /**
   * Where the audit lines of each change go. With `actions` it must be given where the application has no log, or one that
   * leaves warnings out.
   *
   * @default app.log
   */
  readonly logger?: AuditLogger

  /** What audit lines show of a key, and what is left out of them: the options of `auditLog`. */
  readonly audit?: AuditOptions
}

/** The options of a console, complete. */
export interface ConsoleSettings {
  readonly authorize: ConsoleOptions['authorize']
  readonly idempotency: ShownEngine
  readonly actions: boolean
  readonly secret: string | Uint8Array
  readonly origin: string | undefined
  readonly logger: AuditLogger
  readonly audit: AuditOptions | undefined
}

const WHERE = 'oncekey/console'

const schema = z.strictObject({
  authorize: fn<ConsoleOptions['authorize']>('a function of a request'),
  idempotency: having<ShownEngine>(['on', 'store'], 'an engine, such as app.idempotency').optional(),
  actions: z.boolean('must be true or false').optional(),
  secret: engineShape.secret,
  origin: z
    .custom<string>(isOrigin, 'must be an origin such as https://ops.example.com, without a path')
    .optional(),
  logger: having<AuditLogger>(['info', 'warn'], 'a logger with info and warn').optional(),
  audit: auditSchema.optional(),
})

/**
 * Checks the options of a console, and completes them from the application that it is registered in.
 *
 * @throws {OptionsError} naming the option, its value and what would be right.
 */
export function parseConsoleOptions(
  options: unknown,
  app: { readonly idempotency?: ShownEngine; readonly log: ApplicationLog },
): ConsoleSettings {
  if (
    typeof options !== 'object' ||
    options === null ||
    !('authorize' in options) ||
    options.authorize === undefined
  )
    throw new OptionsError(
      `${WHERE}: option "authorize" is required: a function of the request that says who asks, such as (request) => request.user?.isOperator && { by: request.user.name, mayChange: true }, and false for everybody else`,
    )
  // Fastify hands its own options of a registration on.
  const { prefix, logLevel, logSerializers, ...own } = options as Record<string, unknown>
  const parsed = parseOptions(schema, own, WHERE)
  const idempotency = parsed.idempotency ?? app.idempotency
  if (idempotency === undefined)
    throw new OptionsError(
      `${WHERE}: there is no app.idempotency here. Register oncekey/fastify before the console, or give the engine as option "idempotency"`,
    )
  const { actions = false } = parsed
  if (actions && parsed.logger === undefined && !writesWarnings(app.log))
    throw new OptionsError(
      `${WHERE}: with actions: true each change leaves audit lines, and app.log would drop them, since the application has no logger or one whose level is above "warn": give the option "logger", or Fastify a logger`,
    )
  return {
    authorize: parsed.authorize,
    idempotency,
    actions,
    secret: parsed.secret ?? randomBytes(32),
    origin: parsed.origin,
    logger: parsed.logger ?? app.log,
    audit: parsed.audit as AuditOptions | undefined,
  }
}

/** What Fastify calls `app.log`: a pino, a logger of the application, or nothing in the shape of one. */
interface ApplicationLog extends AuditLogger {
  readonly level?: unknown
  readonly isLevelEnabled?: (level: string) => boolean
}

/** Audit lines of changes are warnings. Without a logger Fastify has one that drops everything, and has no level. */
function writesWarnings(log: ApplicationLog): boolean {
  if (log.level === undefined || ['error', 'fatal', 'silent'].includes(String(log.level))) return false
  return log.isLevelEnabled?.('warn') ?? true
}

function having<T>(names: readonly string[], described: string): z.ZodType<T, unknown> {
  return z.custom<T>(
    (value) => typeof value === 'object' && value !== null && names.every((name) => name in value),
    `must be ${described}`,
  )
}

function isOrigin(value: unknown): boolean {
  return typeof value === 'string' && URL.canParse(value) && new URL(value).origin === value
}
