import { OptionsError } from '../contract/errors.js'
import type { EventLogger } from '../http/event-log.js'
import { createHttpEngine } from '../http/http-engine.js'
import {
  type HttpOptions,
  type HttpPolicyOptions,
  type HttpSettings,
  parseRouteOptions,
} from '../http/http-options.js'
import type { Problem, ProblemReply } from '../http/problems.js'
import type { Idempotency } from '../index.js'

/**
 * A function that is called like a handler: with the request, and whatever the framework gives beside it (Hono's
 * context, Next.js's params, the environment of a worker).
 */
// biome-ignore lint/suspicious/noExplicitAny: what a framework gives beside the request is its own affair
export type OfCall<TRequest extends Request, T> = (request: TRequest, ...rest: any[]) => T

/** How handlers are protected. All of it may be given again for a single handler. */
export interface WebPolicyOptions<TRequest extends Request = Request>
  extends Omit<HttpPolicyOptions<never>, 'key' | 'fingerprint' | 'onProblem'> {
  /**
   * Takes the key from the request instead of a header; `undefined` where it has none. It gets a request of its own,
   * whose body it may read.
   */
  readonly key?: OfCall<Request, string | undefined | Promise<string | undefined>>
  /**
   * Which part of the request a key stands for, beside method and path: `'body'`, as JSON where it says that it is JSON,
   * and byte for byte otherwise; `'raw'` for the received bytes; a function that chooses the fields that matter, which
   * gets a request of its own, whose body it may read, and the very request where somebody has read its body before; or `false` to check nothing at all.
   *
   * @default 'body'
   */
  readonly fingerprint?: 'body' | 'raw' | OfCall<Request, unknown> | false
  /**
   * The longest body that a request with a key may have, in bytes. It is held in memory to be compared, so a longer one
   * is refused with 413. Where `fingerprint` is `false` no body is read, and none is too long.
   *
   * @default 1_048_576 (1 MiB)
   */
  readonly maxRequestBytes?: number
  /**
   * Makes the answer of a handler that threw, so that it is kept as any other. `undefined` leaves it to the framework: the
   * error is thrown on, and a retry is told that the operation ended and its answer was not kept.
   */
  readonly onError?: (
    error: unknown,
    request: TRequest,
    // biome-ignore lint/suspicious/noExplicitAny: as in `OfCall`
    ...rest: any[]
  ) => Response | undefined | Promise<Response | undefined>
  /** Shapes the application's own refusals. What it returns takes the place of the problem's parts. */
  readonly onProblem?: (
    problem: Problem,
    request: TRequest,
    // biome-ignore lint/suspicious/noExplicitAny: as in `OfCall`
    ...rest: any[]
  ) => Partial<ProblemReply> | undefined
  /**
   * The route's pattern, for operators, as in `/orders/:id`; or a function that knows it. Not the path: there are as many
   * of those as there are orders.
   *
   * @default '*'
   */
  readonly route?: string | OfCall<TRequest, string>
}

/** What `idempotency` takes. */
export interface WebOptions<TRequest extends Request = Request>
  extends WebPolicyOptions<TRequest>,
    Omit<HttpOptions<never>, 'scope' | 'key' | 'fingerprint' | 'onProblem'> {
  /**
   * Who the caller is: tenant, user, account. Two scopes never see each other's keys. `'shared'` is for a service with
   * a single tenant only: there, whoever guesses a key sees the answer.
   */
  readonly scope: OfCall<TRequest, string | Promise<string>> | 'shared'
  /**
   * Where an operator reads what needs attention: pino, or anything with `warn` and `error`.
   *
   * @default the console
   */
  readonly log?: WebLog
}

/** The part of a logger that is used: pino's. */
export interface WebLog extends EventLogger {
  error(details: object, message: string): void
}

/** One call of a wrapped handler, as the shared parts see it. */
export interface WebCall {
  readonly request: Request
  readonly rest: readonly unknown[]
  /** What the functions `key` and `fingerprint` came to: they may be asynchronous, and are asked beforehand. */
  key?: () => unknown
  fingerprint?: () => unknown
}

/** The settings of one handler, checked and complete. */
export interface WebSettings {
  readonly http: HttpSettings<WebCall>
  readonly key: OfCall<Request, unknown> | undefined
  readonly fingerprint: OfCall<Request, unknown> | undefined
  readonly maxRequestBytes: number
  readonly onError: NonNullable<WebPolicyOptions['onError']> | undefined
  readonly route: string | OfCall<Request, string>
}

/**
 * Makes the engine of a registration, from its options.
 *
 * @throws {OptionsError} naming the option, its value and what would be right.
 */
export function createWebEngine<TRequest extends Request>(
  options: WebOptions<TRequest>,
  where: string,
): {
  readonly engine: Idempotency
  readonly settings: WebSettings
  readonly log: WebLog
} {
  const { own, http } = split(options ?? {})
  const { log = consoleLog, ...given } = http as typeof http & { readonly log?: WebLog }
  if (typeof log?.warn !== 'function' || typeof log.error !== 'function')
    throw new OptionsError(`${where}: option "log" must be a logger with warn and error`)
  const made = createHttpEngine(translated(given) as unknown as HttpOptions<WebCall>, where)
  const settings = {
    http: made.settings,
    key: undefined,
    fingerprint: undefined,
    maxRequestBytes: 1024 * 1024,
    onError: undefined,
    route: '*',
  }
  return { engine: made.idempotency, settings: merged(settings, made.settings, own, where), log }
}

/**
 * Checks the options of one handler, and completes them from those of the registration.
 *
 * @throws {OptionsError} naming the option, its value and what would be right.
 */
export function parseHandlerOptions<TRequest extends Request>(
  options: WebPolicyOptions<TRequest>,
  defaults: WebSettings,
  where: string,
): WebSettings {
  const { own, http } = split(options)
  return merged(defaults, parseRouteOptions(translated(http), defaults.http, where), own, where)
}

/** What the other adapters do not have, or have otherwise. */
interface OwnOptions {
  readonly key: unknown
  readonly fingerprint: unknown
  readonly maxRequestBytes: unknown
  readonly onError: unknown
  readonly route: unknown
}

function split(options: object): {
  readonly own: OwnOptions
  readonly http: Readonly<Record<string, unknown>>
} {
  const { maxRequestBytes, onError, route, ...http } = options as Readonly<Record<string, unknown>>
  return { own: { key: http.key, fingerprint: http.fingerprint, maxRequestBytes, onError, route }, http }
}

type Callable = (...given: unknown[]) => unknown

/** The application's functions as functions of a call. What is no function is left for the check to refuse. */
function translated(http: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const ofCall: Readonly<Record<string, (own: Callable) => unknown>> = {
    scope: (own) => (call: WebCall) => own(call.request, ...call.rest),
    key: () => (call: WebCall) => call.key?.(),
    fingerprint: () => (call: WebCall) => call.fingerprint?.(),
    onProblem: (own) => (problem: Problem, call: WebCall) => own(problem, call.request, ...call.rest),
  }
  const entries = Object.entries(http).map(([name, value]) => {
    const translate = ofCall[name]
    return [name, translate && typeof value === 'function' ? translate(value as Callable) : value] as const
  })
  return Object.fromEntries(entries)
}

function merged(base: WebSettings, http: HttpSettings<WebCall>, own: OwnOptions, where: string): WebSettings {
  const { key, fingerprint, maxRequestBytes, onError, route } = own
  if (
    maxRequestBytes !== undefined &&
    !(Number.isSafeInteger(maxRequestBytes) && Number(maxRequestBytes) >= 0)
  )
    throw new OptionsError(`${where}: option "maxRequestBytes" must be a whole number of at least 0`)
  if (onError !== undefined && typeof onError !== 'function')
    throw new OptionsError(`${where}: option "onError" must be a function of the error and the request`)
  if (route !== undefined && typeof route !== 'string' && typeof route !== 'function')
    throw new OptionsError(`${where}: option "route" must be a pattern such as '/orders/:id', or a function`)
  return {
    http,
    key: (key ?? base.key) as WebSettings['key'],
    fingerprint:
      fingerprint === undefined
        ? base.fingerprint
        : typeof fingerprint === 'function'
          ? (fingerprint as WebSettings['fingerprint'])
          : undefined,
    maxRequestBytes: (maxRequestBytes ?? base.maxRequestBytes) as number,
    onError: (onError ?? base.onError) as WebSettings['onError'],
    route: (route ?? base.route) as WebSettings['route'],
  }
}

const consoleLog: WebLog = {
  warn: (details, message) => console.warn(message, details),
  error: (details, message) => console.error(message, details),
}
