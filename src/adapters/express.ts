import { IncomingMessage } from 'node:http'
import { OptionsError } from '../contract/errors.js'
import { logEvents } from '../http/event-log.js'
import { createHttpEngine } from '../http/http-engine.js'
import { type HttpOptions, type HttpPolicyOptions, parseRouteOptions } from '../http/http-options.js'
import type { Idempotency } from '../index.js'
import { createMiddleware } from './express-middleware.js'
import type { ExpressGuard, ExpressLog } from './express-request.js'
import type { ExpressHandler, ExpressRequest } from './express-types.js'

export type { FinishedResponse } from '../http/http-options.js'
export type { HeaderRules } from '../http/kept-headers.js'
export type { Problem, ProblemReply } from '../http/problems.js'
export type { RequestIdempotency } from '../http/request-idempotency.js'
export type { PlainResponse } from '../http/response-outcome.js'
export { noteReceivedBytes } from './express-body.js'
export type { ExpressLog } from './express-request.js'
export type { ExpressHandler, ExpressRequest, ExpressResponse } from './express-types.js'

/** What a single route may say. */
export type ExpressRouteOptions<TRequest extends ExpressRequest = ExpressRequest> =
  HttpPolicyOptions<TRequest>

/** What `idempotency` takes. */
export interface ExpressOptions<TRequest extends ExpressRequest = ExpressRequest>
  extends HttpOptions<TRequest> {
  /**
   * Where an operator reads what needs attention: pino, or anything with `warn` and `error`.
   *
   * @default the console
   */
  readonly log?: ExpressLog
}

/** Makes middleware that protects routes. */
export interface Once<TRequest extends ExpressRequest = ExpressRequest> {
  /**
   * Makes the middleware of a route, or of a router. It comes after authentication and body parsers, and before the handler.
   *
   * @throws {OptionsError} naming the option that is wrong, its value and what would be right.
   */
  (options?: ExpressRouteOptions<TRequest>): ExpressHandler
  /** The engine: its events, its check, and `run` for plain functions. */
  readonly engine: Idempotency
}

const WHERE = 'oncekey/express'

/**
 * Makes the routes of an Express application safe to retry: a request with an `Idempotency-Key` has one effect and one
 * answer. For Express 4 and 5.
 *
 * @throws {OptionsError} naming the option that is wrong, its value and what would be right.
 */
export function idempotency<TRequest extends ExpressRequest = ExpressRequest>(
  options: ExpressOptions<TRequest>,
): Once<TRequest> {
  const { log = consoleLog, ...httpOptions } = options ?? {}
  if (typeof log?.warn !== 'function' || typeof log.error !== 'function')
    throw new OptionsError(`${WHERE}: option "log" must be a logger with warn and error`)
  const { idempotency: engine, settings } = createHttpEngine(
    httpOptions as unknown as HttpOptions<ExpressRequest>,
    WHERE,
  )
  logEvents(engine, log)
  if (httpOptions.store === undefined)
    log.warn({}, 'oncekey: no store was given, so keys are known to this process only, and until it ends')
  const usual: ExpressGuard = { engine, settings, log }

  function once(own?: ExpressRouteOptions<TRequest>): ExpressHandler {
    if (own instanceof IncomingMessage)
      throw new OptionsError(
        `${WHERE}: call it to get the middleware: app.post('/orders', once(), handler), and not once alone`,
      )
    if (own === undefined) return createMiddleware(usual, WHERE)
    const guard = { ...usual, settings: parseRouteOptions(own, settings, WHERE) }
    engine.assertSupports(guard.settings.policy, WHERE)
    return createMiddleware(guard, WHERE)
  }
  return Object.assign(once, { engine })
}

const consoleLog: ExpressLog = {
  warn: (details, message) => console.warn(message, details),
  error: (details, message) => console.error(message, details),
}
