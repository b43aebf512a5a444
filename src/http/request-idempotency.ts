import type { ExecuteStatement } from '../contract/store.js'
import { createLooseKeys, type DeriveKey } from '../core/derived-keys.js'
import type { TransactionClient } from '../core/operation.js'
import type { Exchange } from './exchange.js'
import type { GivenAnswer } from './given-answer.js'
import type { PlainResponse } from './response-outcome.js'

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

/** What a request has come to so far. An adapter changes it, a handler sees it through its view. */
export interface RequestProgress {
  readonly exchange: Exchange | undefined
  readonly given: GivenAnswer | undefined
}

/** What an adapter does its own way. */
export interface RequestSteps {
  transaction<T>(work: (client: unknown) => Promise<T>): Promise<T>
  saveIn(execute: ExecuteStatement, response: PlainResponse): Promise<void>
}

/** Makes what a handler sees of a request. Without an exchange it is inert. */
export function createRequestView(progress: RequestProgress, steps: RequestSteps): RequestIdempotency {
  return new RequestView(progress, steps)
}

// A class, since requests make one each: a literal with getters would have a shape of its own each time.
class RequestView implements RequestIdempotency {
  readonly #progress: RequestProgress
  readonly #steps: RequestSteps
  #inertSignal: AbortSignal | undefined
  #looseKeys: DeriveKey | undefined

  constructor(progress: RequestProgress, steps: RequestSteps) {
    this.#progress = progress
    this.#steps = steps
  }

  get key(): string | undefined {
    return this.#progress.exchange?.key
  }

  get replayed(): boolean {
    return this.#progress.given?.replayed ?? false
  }

  get fence(): number {
    return this.#progress.exchange?.fence ?? 0
  }

  get signal(): AbortSignal {
    const { exchange } = this.#progress
    if (exchange !== undefined) return exchange.signal
    this.#inertSignal ??= new AbortController().signal
    return this.#inertSignal
  }

  forget(): void {
    this.#progress.exchange?.forget()
  }

  deriveKey(label: string): string {
    const { exchange } = this.#progress
    if (exchange !== undefined) return exchange.deriveKey(label)
    this.#looseKeys ??= createLooseKeys()
    return this.#looseKeys(label)
  }

  transaction<T, TClient = TransactionClient>(work: (tx: TClient) => Promise<T>): Promise<T> {
    return this.#steps.transaction(work as (client: unknown) => Promise<T>)
  }

  saveIn(execute: ExecuteStatement, response: PlainResponse): Promise<void> {
    return this.#steps.saveIn(execute, response)
  }
}
