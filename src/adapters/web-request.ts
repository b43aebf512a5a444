import { OptionsError, TransactionMisuseError } from '../contract/errors.js'
import type { ExecuteStatement } from '../contract/store.js'
import type { TransactionClient } from '../core/operation.js'
import type { Guard } from '../http/admission.js'
import type { Exchange } from '../http/exchange.js'
import type { GivenAnswer } from '../http/given-answer.js'
import {
  createRequestView,
  type RequestIdempotency,
  type RequestProgress,
} from '../http/request-idempotency.js'
import type { PlainResponse } from '../http/response-outcome.js'
import type { WebCall } from './web-options.js'
import { type CapturedResponse, capturePlain, captureResponse, discard, isResponse } from './web-response.js'

/** This request's operation, as a handler sees it. Without a key it is inert. */
export interface WebIdempotency extends Omit<RequestIdempotency, 'transaction' | 'saveIn'> {
  /**
   * Runs `work` in a transaction of the store, and commits its statements together with the response that it returns.
   * That is the answer of the request, whatever the handler does afterwards. What `work` throws, and a status of 400
   * and more, roll everything back; then a response below 500 is kept as the answer that it is, and a thrown error, or a
   * response of 500 and more, releases the key.
   *
   * `tx` is what the store's client gives: for a `pg` Pool a client with `query`. `work` is run again, whole, after a
   * serialization failure or a deadlock: let it do nothing but statements. Without a key it is a plain transaction.
   *
   * @returns the response, for the handler to return.
   * @throws what `work` throws.
   * @throws {ClaimLostError} when another run took this one's place: nothing of this one happened.
   * @throws {StoreUnavailableError} when the store could not begin, or did not commit: nothing happened.
   * @throws {CommitUndecidedError} when the answer to the commit was lost, and nobody can say now.
   * @throws {TransactionUnsupportedError} when the store has no transactions.
   */
  transaction<TClient = TransactionClient>(work: (tx: TClient) => Promise<Response>): Promise<Response>

  /**
   * Keeps `response` as a part of a transaction that you have begun yourself, as with an ORM: await it last, before you
   * commit, and let what it throws roll back. `execute` runs one SQL statement in that transaction and gives its rows;
   * `docs/transactions.md` has the line for each ORM. The response is the answer of the request. Without a key it does
   * nothing.
   *
   * @throws {ClaimLostError} when another run took this one's place: roll back.
   * @throws {TransactionMisuseError} when `execute` does not run in a transaction, or the response is a failure.
   */
  saveIn(execute: ExecuteStatement, response: Response | PlainResponse): Promise<void>
}

/** What the adapter knows about a request. */
export interface WebState extends RequestProgress {
  readonly guard: Guard<WebCall>
  exchange: Exchange | undefined
  given: GivenAnswer | undefined
  view: WebIdempotency | undefined
  /** What the last transaction came to, whether it was committed or not. */
  transacted: CapturedResponse | undefined
}

const states = new WeakMap<Request, WebState>()

/** What is known about a request, where a wrapped handler was called with it. */
export function stateOf(request: Request): WebState | undefined {
  return states.get(request)
}

/** Starts what is known about a request. */
export function createState(request: Request, guard: Guard<WebCall>): WebState {
  const state: WebState = {
    guard,
    exchange: undefined,
    given: undefined,
    view: undefined,
    transacted: undefined,
  }
  states.set(request, state)
  return state
}

/**
 * The operation of a request: of the very object that a wrapped handler was called with, not of a copy.
 *
 * @throws {OptionsError} when no wrapped handler was called with it.
 */
export function idempotencyOf(request: Request): WebIdempotency {
  const state = states.get(request)
  if (state === undefined)
    throw new OptionsError(
      'idempotencyOf: no handler of oncekey/web was called with this request. Wrap the handler, and hand on the request that it got, not a copy',
    )
  state.view ??= createRequestView(state, {
    transaction: (work) => runTransaction(state, async (client) => asAnswer(await work(client))) as never,
    saveIn: (execute, response) => saveIn(state, execute, response),
  }) as WebIdempotency
  return state.view
}

async function saveIn(
  { exchange, guard }: WebState,
  execute: ExecuteStatement,
  response: Response | PlainResponse,
): Promise<void> {
  if (exchange === undefined) return
  const { maxBodyBytes } = guard.settings
  if (!isResponse(response)) return exchange.saveIn(execute, capturePlain(response, maxBodyBytes))
  // A copy, since the handler is about to return the response itself.
  const copy = await captureResponse(response.clone(), maxBodyBytes)
  discard(copy.response)
  await exchange.saveIn(execute, copy.answer)
}

async function runTransaction(
  state: WebState,
  work: (client: unknown) => Promise<Response>,
): Promise<Response> {
  const { exchange, guard } = state
  if (exchange === undefined) {
    const ended = await guard.engine.transaction<Response>(guard.settings.policy, async (client) => {
      const response = await work(client)
      return { value: response, outcome: response.status >= 400 ? 'roll-back' : undefined }
    })
    return ended.value
  }
  let captured: CapturedResponse | undefined
  const returned = await exchange.transaction(work, async (response) => {
    captured = await captureResponse(response, guard.settings.maxBodyBytes)
    return captured.answer
  })
  state.transacted = captured
  return captured?.response ?? returned
}

function asAnswer(value: unknown): Response {
  if (isResponse(value)) return value
  throw new TransactionMisuseError(
    'transaction() must return a Response: what it returns is the answer that is committed with its effects',
  )
}
