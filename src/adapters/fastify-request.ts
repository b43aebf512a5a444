import type { Hash } from 'node:crypto'
import type { FastifyRequest } from 'fastify'
import type { Exchange } from '../http/exchange.js'
import type { GivenAnswer } from '../http/given-answer.js'

/** This request's operation, as a handler sees it. */
export interface RequestIdempotency {
  /** The key that the client sent, without quotes; `undefined` where there is none. */
  readonly key: string | undefined
  /** Whether the answer is an earlier one: for hooks that run with it. A handler never sees `true`. */
  readonly replayed: boolean
  /**
   * How many times this operation was claimed: 1, 2, ... Hand it to systems that can compare it. `0` without a key,
   * and when the handler runs unprotected.
   */
  readonly fence: number
  /** Aborts when the claim is lost, when it may be, or when `maxRun` has passed. */
  readonly signal: AbortSignal
  /** Nothing happened: the answer is not kept, and a retry runs the handler again. */
  forget(): void
}

/** What the adapter knows about a request with a key. */
export interface RequestState {
  exchange: Exchange | undefined
  given: GivenAnswer | undefined
  maxBodyBytes: number
  /** Whether Fastify has begun to send the handler's answer. */
  isSending: boolean
  /** Whether Fastify answered in the place of a handler that took too long, and still runs. */
  hasTimedOut: boolean
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
    exchange: undefined,
    given: undefined,
    maxBodyBytes: 0,
    isSending: false,
    hasTimedOut: false,
    rawHash: undefined,
    facade: undefined,
  }
  return stateful[REQUEST_STATE]
}

/** What `request.idempotency` gives. */
export function requestIdempotency(request: FastifyRequest): RequestIdempotency {
  const state = stateOf(request)
  if (state === null) return new RequestView(null)
  state.facade ??= new RequestView(state)
  return state.facade
}

class RequestView implements RequestIdempotency {
  readonly #state: RequestState | null
  #inertSignal: AbortSignal | undefined

  constructor(state: RequestState | null) {
    this.#state = state
  }

  get key(): string | undefined {
    return this.#state?.exchange?.key
  }

  get replayed(): boolean {
    return this.#state?.given?.replayed ?? false
  }

  get fence(): number {
    return this.#state?.exchange?.fence ?? 0
  }

  get signal(): AbortSignal {
    const exchange = this.#state?.exchange
    if (exchange !== undefined) return exchange.signal
    this.#inertSignal ??= new AbortController().signal
    return this.#inertSignal
  }

  forget(): void {
    this.#state?.exchange?.forget()
  }
}
