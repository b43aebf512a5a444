import { OptionsError, saysNothingHappened } from '../contract/errors.js'
import { type Admission, admit, type Guard, keyOf } from '../http/admission.js'
import { digestOf } from '../http/compared-body.js'
import { logEvents } from '../http/event-log.js'
import type { CapturedAnswer, Exchange } from '../http/exchange.js'
import { type GivenAnswer, refusalOf } from '../http/given-answer.js'
import type { HeaderLines } from '../http/key-header.js'
import type { Idempotency } from '../index.js'
import { comparedBody, presentBody, type RequestBody, readRequestBody } from './web-body.js'
import {
  createWebEngine,
  type OfCall,
  parseHandlerOptions,
  type WebCall,
  type WebLog,
  type WebOptions,
  type WebPolicyOptions,
  type WebSettings,
} from './web-options.js'
import { createState, stateOf, type WebState } from './web-request.js'
import { type CapturedResponse, captureResponse, discard, isResponse, responseOf } from './web-response.js'

export type { FinishedResponse } from '../http/http-options.js'
export type { HeaderRules } from '../http/kept-headers.js'
export type { Problem, ProblemReply } from '../http/problems.js'
export type { PlainResponse } from '../http/response-outcome.js'
export type { OfCall, WebLog, WebOptions, WebPolicyOptions } from './web-options.js'
export { idempotencyOf, type WebIdempotency } from './web-request.js'

/** Wraps handlers. */
export interface Once<TRequest extends Request = Request> {
  /**
   * Makes a handler safe to retry. The wrapped one takes what the handler takes, and hands all of it on as it is.
   *
   * @throws {OptionsError} naming the option that is wrong, its value and what would be right.
   */
  <TOwn extends TRequest, TRest extends readonly unknown[]>(
    handler: (request: TOwn, ...rest: TRest) => Response | Promise<Response>,
    options?: WebPolicyOptions<TOwn>,
  ): (request: TOwn, ...rest: TRest) => Promise<Response>
  /** The engine: its events, its check, and `run` for plain functions. */
  readonly engine: Idempotency
}

const WHERE = 'oncekey/web'

/**
 * Makes handlers of the form `(request) => Response` safe to retry, as they are in Hono, Next.js, Bun and Deno: a request
 * with an `Idempotency-Key` has one effect and one answer. The handler finds its operation with `idempotencyOf(request)`.
 *
 * @throws {OptionsError} naming the option that is wrong, its value and what would be right.
 */
export function idempotency<TRequest extends Request = Request>(
  options: WebOptions<TRequest>,
): Once<TRequest> {
  const { engine, settings, log } = createWebEngine(options, WHERE)
  logEvents(engine, log)
  if (options.store === undefined)
    log.warn({}, 'oncekey: no store was given, so keys are known to this process only, and until it ends')

  function once<TOwn extends TRequest, TRest extends readonly unknown[]>(
    handler: (request: TOwn, ...rest: TRest) => Response | Promise<Response>,
    own?: WebPolicyOptions<TOwn>,
  ): (request: TOwn, ...rest: TRest) => Promise<Response> {
    const name = typeof own?.route === 'string' ? own.route : handler.name
    const where = `${WHERE}: the handler ${name || 'without a name'}`
    const route: Route = {
      engine,
      log,
      settings: own === undefined ? settings : parseHandlerOptions(own, settings, where),
    }
    engine.assertSupports(route.settings.http.policy, where)
    return (request, ...rest) =>
      serve(route, handler as OfCall<Request, Promise<Response>>, { request, rest })
  }
  return Object.assign(once, { engine })
}

/** A handler's engine, log and settings. */
interface Route {
  readonly engine: Idempotency
  readonly log: WebLog
  readonly settings: WebSettings
}

type Handler = OfCall<Request, Response | Promise<Response>>

async function serve(route: Route, handler: Handler, call: WebCall): Promise<Response> {
  const { request } = call
  const { http } = route.settings
  const guard: Guard<WebCall> = { engine: route.engine, settings: http }
  refuseWithinItself(request, guard)
  const state = createState(request, guard)
  if (!http.methods.includes(request.method)) return runFreely(route, handler, call)
  const admission = await begin(route, guard, call)
  if (admission === undefined) return runFreely(route, handler, call)
  if (admission.kind === 'answer') return give(route, state, admission.answer)
  const { exchange } = admission
  state.exchange = exchange
  return runOnce(route, handler, call, { state, exchange })
}

/** Within another one of the same engine, a wrapped handler would find its own key in progress, and answer so for ever. */
function refuseWithinItself(request: Request, { engine, settings }: Guard<WebCall>): void {
  const outer = stateOf(request)
  if (outer?.exchange?.isOpen !== true || outer.guard.engine !== engine) return
  if (!settings.methods.includes(request.method)) return
  outer.exchange.forget()
  throw new OptionsError(
    `${WHERE}: a wrapped handler was called within another one, with the same request. Wrap one of them`,
  )
}

/** Asks what becomes of a request. `undefined` where it has no key, and needs none. */
async function begin(
  { settings }: Route,
  guard: Guard<WebCall>,
  call: WebCall,
): Promise<Admission | undefined> {
  const { request, rest } = call
  const { fingerprint } = settings.http
  const raw = headerLines(request, settings.http.headerNames)
  let body: RequestBody
  let compared: Uint8Array | undefined
  let key: string | undefined
  try {
    if (settings.key !== undefined) body = await readRequestBody(request, settings.maxRequestBytes)
    call.key = await asked(settings.key, call, body)
    key = keyOf(guard, { request: call, raw })
    if (key === undefined) return undefined
    if (fingerprint !== false && settings.key === undefined)
      body = await readRequestBody(request, settings.maxRequestBytes)
    if (fingerprint === 'body' || fingerprint === 'raw') compared = presentBody(body)
    call.fingerprint = await asked(settings.fingerprint, call, body)
  } catch (error) {
    return { kind: 'answer', answer: refusalOf(error, settings.http, call) }
  }
  const { method, headers } = request
  const { pathname, search } = new URL(request.url)
  const pattern = typeof settings.route === 'string' ? settings.route : settings.route(request, ...rest)
  return admit(guard, key, {
    request: call,
    raw,
    method,
    url: `${pathname}${search}`,
    route: `${method} ${pattern}`,
    body: fingerprint === 'body' ? comparedBody(compared, headers.get('content-type')) : undefined,
    rawDigest: fingerprint === 'raw' && compared !== undefined ? digestOf(compared) : undefined,
  })
}

/** Lets an asynchronous function of the application answer, or fail, at the moment when the shared parts ask it. */
async function asked(
  own: OfCall<Request, unknown> | undefined,
  { request, rest }: WebCall,
  body: RequestBody,
): Promise<() => unknown> {
  if (own === undefined) return () => undefined
  try {
    const answer = await own(body === 'gone' ? request : copyOf(request, body), ...rest)
    return () => answer
  } catch (error) {
    return () => {
      throw error
    }
  }
}

function copyOf({ url, method, headers }: Request, body: Uint8Array | undefined): Request {
  return new Request(url, { method, headers, ...(body !== undefined && { body }) })
}

/** A web request joins repeated lines with a comma, so a comma is taken for the joint of two. */
function headerLines({ headers }: Request, names: readonly string[]): HeaderLines {
  const values = names.flatMap((name) => {
    const value = headers.get(name)
    return value === null ? [] : [[name.toLowerCase(), value] as const]
  })
  return {
    headers: Object.fromEntries(values),
    rawHeaders: values.flatMap(([name, value]) => value.split(',').flatMap((line) => [name, line])),
  }
}

/** Runs a handler that nothing is kept of. */
async function runFreely(route: Route, handler: Handler, { request, rest }: WebCall): Promise<Response> {
  try {
    return await handler(request, ...rest)
  } catch (error) {
    const made = await answerTo(error, route, { request, rest })
    if (made === undefined) throw error
    return made
  }
}

/** Runs a handler under a claim, and lets its answer go when it is kept, or known to be unkeepable. */
async function runOnce(route: Route, handler: Handler, call: WebCall, held: Held): Promise<Response> {
  const ended = await attempt(route, held, () => handler(call.request, ...call.rest))
  if ('response' in ended) return finish(route, held, ended)
  const { failure } = ended
  if (saysNothingHappened(failure)) held.exchange.forget()
  const made = await attempt(route, held, async () => {
    const answer = await answerTo(failure, route, call)
    if (answer === undefined) throw failure
    return answer
  })
  return 'response' in made ? finish(route, held, made) : fail(route, held, made.failure)
}

/** A request whose handler runs. */
interface Held {
  readonly state: WebState
  readonly exchange: Exchange
}

async function attempt(
  { settings }: Route,
  { exchange }: Held,
  work: () => Response | Promise<Response>,
): Promise<CapturedResponse | { readonly failure: unknown }> {
  try {
    const response: unknown = await work()
    if (!isResponse(response)) throw new TypeError('oncekey/web: the handler did not return a Response')
    // What a transaction has committed is the answer already, and may be the very stream that the client reads.
    const maxBodyBytes = exchange.committed === undefined ? settings.http.maxBodyBytes : undefined
    return await captureResponse(response, maxBodyBytes)
  } catch (failure) {
    return { failure }
  }
}

/** The answer that the application makes of an error, if it makes one. */
async function answerTo(failure: unknown, { settings }: Route, call: WebCall): Promise<Response | undefined> {
  const made = await settings.onError?.(failure, call.request, ...call.rest)
  if (made !== undefined || !saysNothingHappened(failure)) return made
  return responseOf(refusalOf(failure, settings.http, call))
}

async function finish(route: Route, held: Held, { answer, response }: CapturedResponse): Promise<Response> {
  const { state, exchange } = held
  const given = await exchange.end(answer)
  if (exchange.committed !== undefined) {
    if (response !== state.transacted?.response) {
      route.log.warn(
        {},
        'oncekey: the answer was committed by transaction(), and is not what the handler returned',
      )
      discard(response)
    }
    return committed(held)
  }
  if (given === undefined) return response
  discard(response)
  return give(route, state, given, answer)
}

/** The handler threw, and nobody has made an answer of it. What its framework makes of it is not seen here. */
async function fail(route: Route, held: Held, failure: unknown): Promise<Response> {
  const { state, exchange } = held
  // Nobody promised anything by the error: it is as much a 500 as any that nobody expected.
  const given = await exchange.end({ status: 500, headers: {}, body: 'too-long', isText: false })
  if (given === undefined && exchange.committed === undefined) throw failure
  route.log.error({ err: failure }, 'oncekey: a handler failed, and its client gets another answer')
  return given === undefined ? committed(held) : give(route, state, given)
}

/** The answer that a transaction has committed, with what its response says beside what is kept. */
function committed({ state: { transacted }, exchange }: Held): Response {
  const answer = exchange.committed
  if (answer !== undefined && answer !== 'too-long') return responseOf(answer, transacted?.answer.headers)
  return transacted?.response ?? new Response(null)
}

/** Answers in the place of the handler, or with what it has saved itself: then with the other headers of its response. */
function give(route: Route, state: WebState, given: GivenAnswer, own?: CapturedAnswer): Response {
  const { error, replayed } = given
  state.given = given
  if (error?.statusCode === 500) route.log.error({ err: error }, 'oncekey: the request cannot be protected')
  return responseOf(given, error === undefined && !replayed ? own?.headers : {})
}
