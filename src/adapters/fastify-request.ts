import type { Hash } from 'node:crypto'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Guard } from '../http/admission.js'
import type { Exchange } from '../http/exchange.js'
import type { GivenAnswer } from '../http/given-answer.js'
import { createRequestView, type RequestIdempotency } from '../http/request-idempotency.js'
import type { Idempotency } from '../index.js'
import { capturedResponse, runTransaction } from './fastify-transaction.js'

/** A protected route, as the hooks of this adapter see it. */
export interface RouteGuard extends Guard<FastifyRequest> {
  readonly engine: Idempotency
}

/** What the adapter knows about a request with a key. */
export interface RequestState {
  guard: RouteGuard | undefined
  reply: FastifyReply | undefined
  exchange: Exchange | undefined
  given: GivenAnswer | undefined
  maxBodyBytes: number
  /** Whether Fastify has begun to send the handler's answer. */
  isSending: boolean
  /** Ends when that answer leaves, as long as the store has not kept it. */
  keeping: Promise<void> | undefined
  /** Whether Fastify answered in the place of a handler that took too long, and still runs. */
  hasTimedOut: boolean
  /** Whether the handler's promise has settled. */
  hasHandlerEnded: boolean
  /** Whether the handler is in the middle of a transaction. */
  isInTransaction: boolean
  /** What a transaction has committed, and Fastify is to send. */
  committed: { readonly status: number; readonly payload: unknown } | undefined
  rawHash: Hash | undefined
  facade: RequestIdempotency | undefined
}

/** Where a request carries its state. `null` as long as nothing is known. */
export const REQUEST_STATE: unique symbol = Symbol('oncekey.request')

type StatefulRequest = FastifyRequest & { [REQUEST_STATE]: RequestState | null }

/** The state of a request, where it has one. */
export function stateOf(request: FastifyRequest): RequestState | null {
  return (request as StatefulRequest)[REQUEST_STATE]
}

/** The state of a request, from now on. */
export function ensureState(request: FastifyRequest): RequestState {
  const stateful = request as StatefulRequest
  stateful[REQUEST_STATE] ??= {
    guard: undefined,
    reply: undefined,
    exchange: undefined,
    given: undefined,
    maxBodyBytes: 0,
    isSending: false,
    keeping: undefined,
    hasTimedOut: false,
    hasHandlerEnded: false,
    isInTransaction: false,
    committed: undefined,
    rawHash: undefined,
    facade: undefined,
  }
  return stateful[REQUEST_STATE]
}

/** What `request.idempotency` gives. */
export function requestIdempotency(request: FastifyRequest): RequestIdempotency {
  const state = ensureState(request)
  state.facade ??= createRequestView(state, {
    transaction: (work) => runTransaction(request, state, work),
    async saveIn(execute, response) {
      const { exchange, reply, maxBodyBytes } = state
      if (exchange === undefined || reply === undefined) return
      await exchange.saveIn(execute, capturedResponse(reply, response, maxBodyBytes))
    },
  })
  return state.facade
}
