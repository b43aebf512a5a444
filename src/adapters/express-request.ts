import type { Guard } from '../http/admission.js'
import type { EventLogger } from '../http/event-log.js'
import type { Exchange } from '../http/exchange.js'
import type { GivenAnswer } from '../http/given-answer.js'
import type { HeldResponse } from '../http/held-response.js'
import { createRequestView } from '../http/request-idempotency.js'
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

/** What the adapter knows about a request. */
export interface ExpressState {
  readonly response: ExpressResponse
  guard: ExpressGuard
  /** Whether the guard's middleware protects requests of this method. */
  isProtected: boolean
  exchange: Exchange | undefined
  given: GivenAnswer | undefined
  held: HeldResponse | undefined
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
  const state: ExpressState = {
    response,
    guard,
    isProtected: false,
    exchange: undefined,
    given: undefined,
    held: undefined,
  }
  const idempotency = createRequestView(state, {
    transaction: (work) => runTransaction(state, work),
    async saveIn(execute, saved) {
      const { exchange } = state
      if (exchange === undefined) return
      const { maxBodyBytes } = state.guard.settings
      await exchange.saveIn(execute, capturedResponse(response, saved, maxBodyBytes))
    },
  })
  shareClass(request, 'res')
  shareClass(response, 'req')
  Object.assign(request, { [STATE]: state, idempotency })
  return state
}

const CLASSES_ARE_SHARED = Number.parseInt(process.versions.v8, 10) >= 13

/**
 * Express changes the prototype of every request and response. Until Node 24, each property that is then added makes a
 * hidden class of its own for this one object, which takes microseconds, and whatever reads it later meets a class that it
 * has never seen. Once a property was deleted it is a table, and all tables of a kind are of one class.
 */
function shareClass<T extends object>(object: T, name: keyof T): void {
  if (CLASSES_ARE_SHARED) return
  const value = object[name]
  if (Reflect.deleteProperty(object, name)) object[name] = value
}
