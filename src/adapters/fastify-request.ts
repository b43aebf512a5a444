import type { Hash } from 'node:crypto'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { ExecuteStatement } from '../contract/store.js'
import { createLooseKeys, type DeriveKey } from '../core/derived-keys.js'
import type { TransactionClient } from '../core/operation.js'
import type { Guard } from '../http/admission.js'
import type { Exchange } from '../http/exchange.js'
import type { GivenAnswer } from '../http/given-answer.js'
import type { PlainResponse } from '../http/response-outcome.js'
import type { Idempotency } from '../index.js'
import { capturedResponse, runTransaction } from './fastify-transaction.js'

/** A protected route, as the hooks of this adapter see it. */
export interface RouteGuard extends Guard<FastifyRequest> {
  readonly engine: Idempotency
}

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

  /**
   * A key for a downstream call: the same in every run of this operation, another for every label, unguessable from
   * outside. 43 characters of base64url: an `Idempotency-Key`, a client token, a message id. Needs the option `secret`.
   * Without a key of its own, a request gets keys that hold for this request only.
   */
  deriveKey(label: string): string

  /**
   * Runs `work` in a transaction of the store, and commits its statements together with the answer: what `work` returns
   * or sends, with the status and headers that the reply has then. That is the answer of the request, whatever the
   * handler does afterwards. What `work` throws, and a status of 400 and more, roll everything back; then a failure below
   * 500 is kept as the answer that it is, and one of 500 and more releases the key.
   *
   * `tx` is what the store's client gives: for a `pg` Pool a client with `query`. `work` is run again, whole, after a
   * serialization failure or a deadlock: let it do nothing but statements. Without a key it is a plain transaction.
   *
   * @throws what `work` throws.
   * @throws {ClaimLostError} when another run took this one's place: nothing of this one happened.
   * @throws {StoreUnavailableError} when the store could not begin, or did not commit: nothing happened.
   * @throws {CommitUndecidedError} when the answer to the commit was lost, and nobody can say now.
   * @throws {TransactionUnsupportedError} when the store has no transactions.
   */
  transaction<T, TClient = TransactionClient>(work: (tx: TClient) => Promise<T>): Promise<T>

  /**
   * Keeps `response` as a part of a transaction that you have begun yourself, as with an ORM: await it last, before you
   * commit, and let what it throws roll back. `execute` runs one SQL statement in that transaction and gives its rows;
   * `docs/transactions.md` has the line for each ORM. The response is the answer of the request, with the headers that
   * the reply has by then, and its body is what the route's response schema makes of it. Without a key it does nothing.
   *
   * @throws {ClaimLostError} when another run took this one's place: roll back.
   * @throws {TransactionMisuseError} when `execute` does not run in a transaction, or the response is a failure.
   */
  saveIn(execute: ExecuteStatement, response: PlainResponse): Promise<void>
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
  state.facade ??= new RequestView(request, state)
  return state.facade
}

class RequestView implements RequestIdempotency {
  readonly #request: FastifyRequest
  readonly #state: RequestState
  #inertSignal: AbortSignal | undefined
  #looseKeys: DeriveKey | undefined

  constructor(request: FastifyRequest, state: RequestState) {
    this.#request = request
    this.#state = state
  }

  get key(): string | undefined {
    return this.#state.exchange?.key
  }

  get replayed(): boolean {
    return this.#state.given?.replayed ?? false
  }

  get fence(): number {
    return this.#state.exchange?.fence ?? 0
  }

  get signal(): AbortSignal {
    const { exchange } = this.#state
    if (exchange !== undefined) return exchange.signal
    this.#inertSignal ??= new AbortController().signal
    return this.#inertSignal
  }

  forget(): void {
    this.#state.exchange?.forget()
  }

  deriveKey(label: string): string {
    const { exchange } = this.#state
    if (exchange !== undefined) return exchange.deriveKey(label)
    this.#looseKeys ??= createLooseKeys()
    return this.#looseKeys(label)
  }

  transaction<T, TClient = TransactionClient>(work: (tx: TClient) => Promise<T>): Promise<T> {
    return runTransaction(this.#request, this.#state, work as (client: unknown) => Promise<T>)
  }

  async saveIn(execute: ExecuteStatement, response: PlainResponse): Promise<void> {
    const { exchange, reply, maxBodyBytes } = this.#state
    if (exchange === undefined || reply === undefined) return
    await exchange.saveIn(execute, capturedResponse(reply, response, maxBodyBytes))
  }
}
