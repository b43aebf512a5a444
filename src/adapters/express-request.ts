import type { OutgoingHttpHeaders } from 'node:http'
import { isPromise, type MaybePromise } from '../contract/maybe-promise.js'
import type { ExecuteStatement } from '../contract/store.js'
import type { Guard } from '../http/admission.js'
import type { EventLogger } from '../http/event-log.js'
import type { CapturedAnswer, Exchange } from '../http/exchange.js'
import type { GivenAnswer } from '../http/given-answer.js'
import { type HeldResponse, type HoldOptions, holdResponse } from '../http/held-response.js'
import type { HeaderFilter } from '../http/kept-headers.js'
import {
  createRequestView,
  type RequestIdempotency,
  type RequestProgress,
  type RequestSteps,
} from '../http/request-idempotency.js'
import type { PlainResponse } from '../http/response-outcome.js'
import type { Idempotency } from '../index.js'
import { capturedResponse, runTransaction } from './express-transaction.js'
import type { ExpressRequest, ExpressResponse } from './express-types.js'

/** Where an operator reads what needs attention: pino, or anything with `warn` and `error`. */
export interface ExpressLog extends EventLogger {
  error(details: object, message: string): void
}

/** What one middleware protects its routes with. */
export interface ExpressGuard extends Guard<ExpressRequest> {
  readonly engine: Idempotency
  readonly log: ExpressLog
}

const STATE: unique symbol = Symbol('oncekey.request')

type StatefulRequest = ExpressRequest & { [STATE]?: ExpressState }

/** What is known about a request, where a middleware of ours has seen it. */
export function stateOf(request: ExpressRequest): ExpressState | undefined {
  return (request as StatefulRequest)[STATE]
}

/** Starts what is known about a request, and puts `request.idempotency` there. */
export function createState(
  request: ExpressRequest,
  response: ExpressResponse,
  guard: ExpressGuard,
): ExpressState {
  const state = new ExpressState(request, response, guard)
  shareClass(request, 'res')
  shareClass(response, 'req')
  const marked = request as unknown as { [STATE]: ExpressState; idempotency: RequestIdempotency }
  marked[STATE] = state
  marked.idempotency = createRequestView(state, state)
  return state
}

/** What the adapter knows about a request, and does about its response. One object for all of it, since each request makes one. */
export class ExpressState implements RequestProgress, RequestSteps, HoldOptions {
  readonly request: ExpressRequest
  readonly response: ExpressResponse
  guard: ExpressGuard
  /** Whether the guard's middleware protects requests of this method. */
  isProtected = false
  exchange: Exchange | undefined
  given: GivenAnswer | undefined
  held: HeldResponse | undefined
  earlierHeaders: OutgoingHttpHeaders | undefined

  constructor(request: ExpressRequest, response: ExpressResponse, guard: ExpressGuard) {
    this.request = request
    this.response = response
    this.guard = guard
  }

  get maxBodyBytes(): number {
    return this.guard.settings.maxBodyBytes
  }

  get keptHeaders(): HeaderFilter {
    return this.guard.settings.keptHeaders
  }

  /** The handler runs, and its answer is that of the exchange. */
  start(exchange: Exchange): void {
    this.exchange = exchange
    this.earlierHeaders = this.response.getHeaders()
    this.hold()
  }

  /** Holds the response back: as the answer of an exchange, or without one as that of a plain transaction. */
  hold(): HeldResponse {
    this.held ??= holdResponse(this.response, this)
    return this.held
  }

  end(captured: CapturedAnswer): MaybePromise<GivenAnswer | undefined> {
    const { exchange } = this
    if (exchange === undefined) return undefined
    // What `connect-timeout` says in the place of a handler that still runs is not that nothing was done.
    if (this.request.timedout === true) return exchange.endUnanswered(captured.status).then(() => undefined)
    const given = exchange.end(captured)
    return isPromise(given) ? given.then((found) => this.#give(found)) : this.#give(given)
  }

  #give(given: GivenAnswer | undefined): GivenAnswer | undefined {
    this.given = given
    return given
  }

  async broken(status: number): Promise<void> {
    await this.exchange?.endUnanswered(status)
  }

  ignored(): void {
    this.guard.log.warn(
      {},
      'oncekey: what a handler sent after its transaction() differs from what the transaction answered, and went to nobody',
    )
  }

  transaction<T>(work: (client: unknown) => Promise<T>): Promise<T> {
    return runTransaction(this, work)
  }

  async saveIn(execute: ExecuteStatement, saved: PlainResponse): Promise<void> {
    await this.exchange?.saveIn(execute, capturedResponse(this.response, saved, this.maxBodyBytes))
  }
}

const CLASSES_ARE_SHARED = Number.parseInt(process.versions.v8, 10) >= 13

/**
 * Express changes the prototype of every request and response. Until Node 24, each property that is then added makes a
 * hidden class of its own for this one object, which takes microseconds, and whatever reads it later meets a class that it
 * has never seen. Once a property was deleted it is a table, and all tables of a kind are of one class.
 */
function shareClass(object: object, name: 'req' | 'res'): void {
  if (CLASSES_ARE_SHARED || !Object.hasOwn(object, name)) return
  const named = object as Record<typeof name, unknown>
  const value = named[name]
  if (Reflect.deleteProperty(named, name)) named[name] = value
}
