import { OptionsError } from '../contract/errors.js'
import { isPromise } from '../contract/maybe-promise.js'
import { type Admission, admit, keyOf } from '../http/admission.js'
import { readableBy } from '../http/content-coding.js'
import { endUnrun } from '../http/exchange.js'
import { type GivenAnswer, refusalOf } from '../http/given-answer.js'
import { sendGiven } from '../http/held-response.js'
import { type ComparedBody, comparedBody, NOTHING } from './express-body.js'
import { createState, type ExpressGuard, type ExpressState, stateOf } from './express-request.js'
import type { ExpressHandler, ExpressRequest } from './express-types.js'

/** Makes the middleware of one route, or of all that come after it. */
export function createMiddleware(guard: ExpressGuard, where: string): ExpressHandler {
  const { methods } = guard.settings
  return (incoming, response, next) => {
    const request = incoming as ExpressRequest
    const isProtected = methods.includes(request.method ?? '')
    let state = stateOf(request)
    if (state?.isProtected === true && isProtected) {
      // The same one again, as in a router that is mounted in another.
      if (state.guard.settings === guard.settings) return next()
      state.exchange?.forget()
      return next(
        new OptionsError(
          `${where}: two middlewares with options of their own protect ${routeOf(request)}. Leave one: on the route, or in front of all`,
        ),
      )
    }
    state ??= createState(request, response, guard)
    if (!isProtected) {
      if (!protectsNothingOf(request, methods)) return next()
      return next(
        new OptionsError(
          `${where}: option "methods" protects ${methods.join(', ')} only. Name the method of ${routeOf(request)} there, or take the middleware away`,
        ),
      )
    }
    state.guard = guard
    state.isProtected = true
    serve(request, state, next)
  }
}

/** Whether the middleware is on a route with no method that it protects: it would protect nothing, without a word. */
function protectsNothingOf({ route }: ExpressRequest, methods: readonly string[]): boolean {
  if (route === undefined) return false
  const own = Object.keys((route as { readonly methods?: object }).methods ?? {})
  return !own.some((method) => method === '_all' || methods.includes(method.toUpperCase()))
}

function serve(request: ExpressRequest, state: ExpressState, next: (error?: unknown) => void): void {
  const { guard } = state
  const refuse = (error: unknown): void =>
    give(request, state, refusalOf(error, guard.settings, request), next)
  let key: string | undefined
  let compared: ComparedBody | Promise<ComparedBody | undefined> = NOTHING
  try {
    key = keyOf(guard, { request, raw: request })
    if (key !== undefined) compared = comparedBody(request, guard.settings.fingerprint)
  } catch (error) {
    refuse(error)
    return
  }
  const known = key
  if (known === undefined) next()
  else if (compared instanceof Promise)
    compared
      .then((body) => {
        // A client that left in the middle of its request waits for nothing.
        if (body !== undefined) begin(request, state, { key: known, compared: body }, next)
      }, refuse)
      .catch(next)
  else begin(request, state, { key: known, compared }, next)
}

function begin(
  request: ExpressRequest,
  state: ExpressState,
  { key, compared }: { readonly key: string; readonly compared: ComparedBody },
  next: (error?: unknown) => void,
): void {
  const incoming = {
    request,
    raw: request,
    method: request.method ?? '',
    url: request.originalUrl,
    route: routeOf(request),
    ...compared,
  }
  const admission = admit(state.guard, key, incoming)
  if (isPromise(admission)) admission.then((found) => proceed(request, state, found, next), next)
  else proceed(request, state, admission, next)
}

/** Lets the handler run, or answers in its place. */
function proceed(
  request: ExpressRequest,
  state: ExpressState,
  admission: Admission,
  next: (error?: unknown) => void,
): void {
  const isAnswered = state.response.headersSent
  if (admission.kind === 'answer') {
    if (!isAnswered) give(request, state, admission.answer, next)
  } else if (isAnswered) {
    endUnrun(admission.exchange).catch(next)
  } else {
    state.start(admission.exchange)
    next()
  }
}

/** Method and pattern: what is matched by a mounted router is known as the client sent it only. */
function routeOf({ method, baseUrl, route }: ExpressRequest): string {
  const pattern = route === undefined ? '/*' : String((route as { readonly path: unknown }).path)
  return `${method} ${baseUrl}${pattern}`
}

function give(
  request: ExpressRequest,
  state: ExpressState,
  answer: GivenAnswer,
  next: (error?: unknown) => void,
): void {
  const { response, guard } = state
  state.given = answer
  if (answer.error?.statusCode === 500)
    guard.log.error({ err: answer.error }, 'oncekey: the request cannot be protected')
  const sent = (readable: GivenAnswer): void => {
    try {
      sendGiven(response, readable)
    } catch (error) {
      // A refusal that the application shaped into something that cannot be sent.
      next(error)
    }
  }
  const readable = readableBy(answer, request.headers['accept-encoding'])
  if (readable instanceof Promise) readable.then(sent, next)
  else sent(readable)
}
