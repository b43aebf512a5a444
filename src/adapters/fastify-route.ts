import { createHash } from 'node:crypto'
import { Transform } from 'node:stream'
import type {
  FastifyReply,
  FastifyRequest,
  onErrorHookHandler,
  onSendHookHandler,
  preHandlerHookHandler,
  preParsingHookHandler,
  RequestPayload,
  RouteHandlerMethod,
  RouteOptions,
} from 'fastify'
import { asBuffer } from '../contract/as-buffer.js'
import { OptionsError, saysNothingHappened, TransactionMisuseError } from '../contract/errors.js'
import { isPromise } from '../contract/maybe-promise.js'
import { type Admission, admit, keyOf } from '../http/admission.js'
import { type CapturedAnswer, type Exchange, endUnrun } from '../http/exchange.js'
import { type GivenAnswer, refusalOf, textOf } from '../http/given-answer.js'
import { holdResponse } from '../http/held-response.js'
import { type HttpSettings, parseRouteOptions } from '../http/http-options.js'
import type { Idempotency } from '../index.js'
import { type CapturedPayload, capturePayload } from './fastify-payload.js'
import { ensureState, type RequestState, type RouteGuard, stateOf } from './fastify-request.js'

/** The hooks of a route look their guard up here, so that a registration in an inner context can take its place. */
interface Slot {
  /** What the route is called, by method: `POST /payments/:id`. */
  readonly names: ReadonlyMap<string, string>
  guard: RouteGuard | undefined
  hashesBytes: boolean
}

const slots = new WeakMap<RouteOptions, Slot>()

/** Makes the `onRoute` hook of one registration: it puts hooks on protected routes, and leaves the others alone. */
export function createRouteProtection(registration: {
  readonly engine: Idempotency
  readonly settings: HttpSettings<FastifyRequest>
  readonly isGlobal: boolean
  readonly where: string
}): (route: RouteOptions) => void {
  return (route) => {
    const settings = settingsOf(route, registration)
    const guard = settings && { engine: registration.engine, settings }
    let slot = slots.get(route)
    if (slot !== undefined) slot.guard = guard
    else if (guard !== undefined) {
      const names = new Map([route.method].flat().map((method) => [method, `${method} ${route.url}`]))
      slot = { names, guard, hashesBytes: false }
      slots.set(route, slot)
      protect(route, slot)
    }
    if (slot !== undefined && guard?.settings.fingerprint === 'raw') hashBytes(route, slot)
  }
}

/** The guard of a route, once it was added: `undefined` where it is not protected. */
export function guardOf(route: RouteOptions): RouteGuard | undefined {
  return slots.get(route)?.guard
}

function settingsOf(
  route: RouteOptions,
  registration: Parameters<typeof createRouteProtection>[0],
): HttpSettings<FastifyRequest> | undefined {
  const { isGlobal, where } = registration
  const said: unknown = route.config?.idempotency
  if (said === false || (said === undefined && !isGlobal)) return undefined
  const name = `${where}: route ${[route.method].flat().join(',')} ${route.url}`
  const settings =
    said === undefined || said === true
      ? registration.settings
      : parseRouteOptions(said, registration.settings, name)
  registration.engine.assertSupports(settings.policy, name)
  const methods = [route.method].flat()
  if (methods.some((method) => settings.methods.includes(method))) return settings
  // Fastify makes a HEAD route beside every GET, with the same config.
  if (said === undefined || methods.every((method) => method === 'HEAD')) return undefined
  throw new OptionsError(
    `${name}: option "methods" protects ${settings.methods.join(', ')} only. Name this route's method there, or take config.idempotency away`,
  )
}

function protect(route: RouteOptions, slot: Slot): void {
  // Last before the handler: what authentication or validation refuses never becomes an outcome.
  route.preHandler = [...listOf(route.preHandler), createPreHandler(slot)]
  // First of the route's: a body is kept as the handler made it, and compressed afterwards.
  route.onSend = [onSend, ...listOf(route.onSend)]
  route.onError = [onError, ...listOf(route.onError)]
  route.handler = watched(route.handler)
}

function listOf<Hook>(hooks: Hook | Hook[] | undefined): Hook[] {
  return hooks === undefined ? [] : ([hooks].flat() as Hook[])
}

/** Only the fingerprint of the received bytes needs to see them: other routes do without this hook. */
function hashBytes(route: RouteOptions, slot: Slot): void {
  if (slot.hashesBytes) return
  slot.hashesBytes = true
  route.preParsing = [...listOf(route.preParsing), preParsing]
}

const preParsing: preParsingHookHandler = (request, _reply, payload, done) => {
  const hash = createHash('sha256')
  ensureState(request).rawHash = hash
  const tee: Transform & { receivedEncodedLength?: number } = new Transform({
    transform(chunk: Buffer, _encoding, next) {
      hash.update(chunk)
      // Fastify compares this with Content-Length.
      tee.receivedEncodedLength = (tee.receivedEncodedLength ?? 0) + chunk.byteLength
      next(null, chunk)
    },
  })
  payload.on('error', (error) => tee.destroy(error))
  done(null, payload.pipe(tee) as RequestPayload)
}

function createPreHandler(slot: Slot): preHandlerHookHandler {
  return (request, reply, done) => {
    const { guard } = slot
    if (guard === undefined || !guard.settings.methods.includes(request.method)) return done()
    let key: string | undefined
    try {
      key = keyOf(guard, { request, raw: request.raw })
    } catch (error) {
      give(request, reply, refusalOf(error, guard.settings, request))
      return
    }
    if (key === undefined) {
      // For a plain transaction, which rolls back when the reply says that it failed.
      Object.assign(ensureState(request), { guard, reply })
      return done()
    }
    const { method, originalUrl: url, body } = request
    const route = slot.names.get(method) ?? `${method} ${request.routeOptions.url}`
    const rawDigest = stateOf(request)?.rawHash?.digest()
    const admission = admit(guard, key, { request, raw: request.raw, method, url, route, body, rawDigest })
    if (!isPromise(admission)) return proceed(guard, admission, { request, reply, done })
    admission.then((found) => proceed(guard, found, { request, reply, done }), done)
  }
}

/** Lets the handler run, or answers in its place. */
function proceed(
  guard: RouteGuard,
  admission: Admission,
  { request, reply, done }: RequestAndReply & { readonly done: (error?: Error) => void },
): void {
  // While the store was asked, a timeout of Fastify, or whoever else, may have answered.
  if (reply.sent) {
    if (admission.kind === 'run')
      endUnrun(admission.exchange).catch((error: unknown) => logUnkept(request, error))
    return
  }
  if (admission.kind === 'run') {
    start(request, reply, admission.exchange, guard)
    done()
    return
  }
  try {
    give(request, reply, admission.answer)
  } catch (error) {
    // A refusal that the application shaped into something that cannot be sent: after a wait, Fastify catches nothing.
    done(error as Error)
  }
}

interface RequestAndReply {
  readonly request: FastifyRequest
  readonly reply: FastifyReply
}

function give(request: FastifyRequest, reply: FastifyReply, answer: GivenAnswer): void {
  ensureState(request).given = answer
  if (answer.error?.statusCode === 500)
    request.log.error({ err: answer.error }, 'oncekey: the request cannot be protected')
  put(reply, answer)
  reply.send(payloadOf(answer) ?? undefined)
}

function put(reply: FastifyReply, answer: GivenAnswer): void {
  reply.code(answer.status)
  let hasType = false
  for (const [name, value] of answer.headers) {
    // A list of its own: a hook of the application may add to it, and it is put here again afterwards.
    reply.header(name, typeof value === 'string' ? value : [...value])
    hasType ||= name === 'content-type'
  }
  if (!hasType) reply.removeHeader('content-type')
}

function start(request: FastifyRequest, reply: FastifyReply, exchange: Exchange, guard: RouteGuard): void {
  const state = ensureState(request)
  state.guard = guard
  state.reply = reply
  state.exchange = exchange
  state.maxBodyBytes = guard.settings.maxBodyBytes
  // Fastify sends these without its own hooks, so they are captured where they are written.
  reply.hijack = hijackCaptured
  reply.callNotFound = callNotFoundCaptured
  watchRaw(request, reply)
}

function hijackCaptured(this: FastifyReply): FastifyReply {
  captureReply(this)
  return prototypeOf(this).hijack.call(this)
}

function callNotFoundCaptured(this: FastifyReply) {
  captureReply(this)
  return prototypeOf(this).callNotFound.call(this)
}

function prototypeOf(reply: FastifyReply): FastifyReply {
  return Object.getPrototypeOf(reply) as FastifyReply
}

function captureReply(reply: FastifyReply): void {
  const state = stateOf(reply.request)
  if (state?.exchange === undefined || state.guard === undefined) return
  const { exchange, guard, maxBodyBytes } = state
  if (state.isInTransaction)
    throw new TransactionMisuseError(
      'transaction(): a reply that leaves by itself cannot commit with its effects',
    )
  holdResponse(reply.raw, {
    maxBodyBytes,
    keptHeaders: guard.settings.keptHeaders,
    end: async (captured) => exchange.end(captured),
    broken: (status) => exchange.endUnanswered(status),
  })
}

const REQUEST: unique symbol = Symbol('oncekey.request-of')
type RawResponse = FastifyReply['raw'] & { [REQUEST]?: FastifyRequest }

/** Somebody may write to the raw response, past Fastify: then the answer is gone, that the operation ended is not. */
function watchRaw(request: FastifyRequest, reply: FastifyReply): void {
  const raw = reply.raw as RawResponse
  raw[REQUEST] = request
  raw.on('finish', onFinish)
}

// One function for all responses, since each protected request is watched.
function onFinish(this: RawResponse): void {
  const request = this[REQUEST]
  const state = request && stateOf(request)
  if (request === undefined || state?.exchange?.isOpen !== true || state.hasTimedOut) return
  endWithoutBody(state.exchange, this).catch((error: unknown) => logUnkept(request, error))
}

async function endWithoutBody(exchange: Exchange, raw: RawResponse): Promise<void> {
  await exchange.end({ status: raw.statusCode, headers: raw.getHeaders(), body: 'too-long', isText: false })
}

function logUnkept(request: FastifyRequest, error: unknown): void {
  request.log.error({ err: error }, 'oncekey: an outcome could not be kept')
}

const onSend: onSendHookHandler = (request, reply, payload, done) => {
  const state = stateOf(request)
  if (state === null) return done(null, payload)
  if (state.given?.replayed === true) {
    // Hooks of the application have seen it again. The client gets it as it was kept.
    put(reply, state.given)
    return done(null, payloadOf(state.given))
  }
  const { exchange, committed } = state
  if (exchange === undefined || state.hasTimedOut) return done(null, payload)
  if (committed !== undefined) return done(null, putCommitted(state, reply))
  if (!exchange.isOpen) return done(null, payload)
  state.isSending = true
  const captured = capturePayload(reply, payload, state.maxBodyBytes)
  const kept =
    captured instanceof Promise
      ? captured.then((read) => keep(state, exchange, reply, read))
      : keep(state, exchange, reply, captured)
  if (kept instanceof Promise) keepLater(state, reply, kept, done)
  else done(null, kept)
}

/**
 * Lets the answer go once it is kept. Until then it counts as sent, or Fastify would send whatever the handler says next in
 * its place; and it leaves in the very turn in which it does not count so any more.
 */
function keepLater(state: RequestState, reply: FastifyReply, kept: Promise<unknown>, done: SendDone): void {
  Object.defineProperty(reply, 'sent', COUNTS_AS_SENT)
  const proceedWith = (proceed: () => void): void => {
    state.keeping = undefined
    Reflect.deleteProperty(reply, 'sent')
    proceed()
  }
  state.keeping = kept.then(
    (payload) =>
      proceedWith(() => {
        try {
          done(null, payload)
        } catch (error) {
          // Of what comes after this hook: Fastify catches it after hooks that return a promise, and not out here.
          done(error as Error)
        }
      }),
    (error: Error) => proceedWith(() => done(error)),
  )
}

type SendDone = (error: Error | null, payload?: unknown) => void
const COUNTS_AS_SENT: PropertyDescriptor = { value: true, configurable: true }

/** The answer that a transaction has committed takes the place of what the handler, or its failure, came to afterwards. */
function putCommitted(state: RequestState, reply: FastifyReply): unknown {
  const { exchange, committed } = state
  const kept = exchange?.committed
  if (kept === undefined || kept === 'too-long') reply.code(committed?.status ?? reply.statusCode)
  else put(reply, kept)
  return committed?.payload
}

/** Tells how the handler has answered. @returns what the client gets: that, or what was given in its place. */
function keep(
  state: RequestState,
  exchange: Exchange,
  reply: FastifyReply,
  captured: CapturedPayload,
): unknown {
  const { body, isText, payload } = captured
  if (body === 'not-ours') return payload
  const answer = { status: reply.statusCode, headers: reply.getHeaders(), body, isText }
  const given = exchange.end(answer)
  if (!isPromise(given)) return given === undefined ? payload : putGiven(state, reply, given)
  return given.then((found) => {
    if (found !== undefined) return putGiven(state, reply, found)
    putBack(reply, answer)
    return payload
  })
}

function putGiven(state: RequestState, reply: FastifyReply, given: GivenAnswer): unknown {
  state.given = given
  put(reply, given)
  return payloadOf(given)
}

/** The handler may have gone on to set a status and headers. They are not of the answer that was kept. */
function putBack(reply: FastifyReply, { status, headers }: Pick<CapturedAnswer, 'status' | 'headers'>): void {
  if (reply.statusCode !== status) reply.code(status)
  const now = reply.getHeaders()
  for (const name in now) if (!(name in headers)) reply.removeHeader(name)
  for (const name in headers) {
    const value = headers[name]
    if (now[name] === value) continue
    // Fastify would put a cookie beside those that are there.
    reply.removeHeader(name)
    reply.header(name, value)
  }
}

/** The body as Fastify sends it fastest: text in one piece with its headers. */
function payloadOf({ body, isText, text }: GivenAnswer): string | Buffer | null {
  if (text !== undefined) return text
  if (body === undefined) return null
  return isText ? textOf(body) : asBuffer(body)
}

const onError: onErrorHookHandler = (request, _reply, error, done) => {
  const state = stateOf(request)
  if (state !== null && error.code === 'FST_ERR_HANDLER_TIMEOUT') state.hasTimedOut = true
  if (saysNothingHappened(error)) state?.exchange?.forget()
  done()
}

/** A handler whose end is noticed even when Fastify has no use for it any more. */
function watched(handler: RouteHandlerMethod): RouteHandlerMethod {
  return function (request, reply) {
    const state = stateOf(request)
    const exchange = state?.exchange
    if (state === null || exchange === undefined) return handler.call(this, request, reply)
    let returned: unknown
    try {
      returned = handler.call(this, request, reply)
    } catch (error) {
      forgetIfNothingHappened(exchange, error)
      throw error
    }
    // A reply can be awaited, for which it listens to half a dozen events. One that is being sent needs nobody to wait.
    if (returned === reply && state.isSending) return undefined
    if (returned === reply || !isPromise(returned)) return returned
    // Fastify waits for what this comes to, and not for the handler's own promise: one of another library may begin its work
    // each time that somebody asks for it.
    return Promise.resolve(returned).then(
      (value) => {
        state.hasHandlerEnded = true
        afterHandler(request, reply, exchange, value === undefined)
        // A handler that has sent its answer has nothing more to say, and Fastify would take that for another answer.
        return value === undefined ? state.keeping : value
      },
      (error: unknown) => {
        state.hasHandlerEnded = true
        // Here as well, since an error handler of the application may answer before `onError` is asked.
        forgetIfNothingHappened(exchange, error)
        afterHandler(request, reply, exchange, false)
        throw error
      },
    )
  }
}

function forgetIfNothingHappened(exchange: Exchange, error: unknown): void {
  if (saysNothingHappened(error)) exchange.forget()
}

function afterHandler(
  request: FastifyRequest,
  reply: FastifyReply,
  exchange: Exchange,
  isEmpty: boolean,
): void {
  const state = stateOf(request)
  if (state === null || !exchange.isOpen || state.isSending) return
  if (state.hasTimedOut) {
    exchange.endUnanswered(reply.statusCode).catch((error: unknown) => logUnkept(request, error))
    return
  }
  // Fastify does not send an empty answer to a client that has gone. The retry wants it all the same.
  const { socket } = request
  const isGone = request.raw.aborted || !socket || socket.destroyed
  if (isEmpty && isGone && !reply.sent) reply.send()
}
