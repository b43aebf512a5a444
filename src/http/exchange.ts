import {
  ClaimLostError,
  CommitUndecidedError,
  isIdempotencyError,
  TransactionMissingError,
  TransactionMisuseError,
} from '../contract/errors.js'
import { isPromise, type MaybePromise } from '../contract/maybe-promise.js'
import type { ExecuteStatement, Outcome } from '../contract/store.js'
import type { Answer, Execution } from '../core/execution.js'
import { type GivenAnswer, keptOf, refusalOf, replayOf } from './given-answer.js'
import { outcomeOf } from './http-answer.js'
import type { HttpSettings } from './http-options.js'
import type { AnswerHeaders } from './kept-headers.js'

/** An answer of the handler, as an adapter captured it. */
export interface CapturedAnswer {
  readonly status: number
  readonly headers: AnswerHeaders
  /** The body; `undefined` where there is none, `'too-long'` where it is more than is kept, or cannot be captured. */
  readonly body: Uint8Array | undefined | 'too-long'
  readonly isText: boolean
}

/** A request whose handler runs under a claim. */
export interface Exchange {
  readonly key: string
  readonly fence: number
  readonly signal: AbortSignal
  /** Whether nobody has told yet how the handler ended. */
  readonly isOpen: boolean
  /** What a transaction has committed: the answer of this request, whatever its handler does afterwards. */
  readonly committed: GivenAnswer | 'too-long' | undefined
  /** The handler did not wait for its transaction, which was rolled back: whatever it answers, `error` is the answer. */
  misuse(error: TransactionMisuseError): void
  /** Nothing happened: the handler's answer is not kept, and a retry runs it again. */
  forget(): void
  /** Makes a key for a downstream call: the same in every run of this operation. */
  deriveKey(label: string): string
  /**
   * Runs `work` in a transaction and commits it with the answer that `capture` makes of its value, unless that is a
   * failure (a status of 400 and more): then everything is rolled back, and `end` decides about the answer as ever.
   *
   * @throws what `work` and `capture` throw, and what `Execution.transaction` throws.
   */
  transaction<T>(
    work: (client: unknown) => Promise<T>,
    capture: (value: T) => CapturedAnswer | Promise<CapturedAnswer>,
  ): Promise<T>
  /**
   * Keeps an answer as a part of a transaction that the handler has begun by itself.
   *
   * @throws {ClaimLostError} when the claim went to somebody else: the handler must roll back.
   * @throws {TransactionMisuseError} when the answer is a failure, which no effect goes with, or `execute` does not run in
   *   a transaction.
   */
  saveIn(execute: ExecuteStatement, captured: CapturedAnswer): Promise<void>
  /**
   * Tells how the handler ended, once, before the client is told. Later calls change nothing. There is a promise only where
   * there is something to wait for.
   *
   * @returns what the client gets instead of the handler's answer: what this operation, or another run of it, has kept,
   *   or a refusal; `undefined` to let the handler's own answer go.
   */
  end(captured: CapturedAnswer): MaybePromise<GivenAnswer | undefined>
  /**
   * Tells that the handler ended after the client was told something else, as when the framework's own timeout
   * answered in its place. It may have had its effect, so a tombstone is kept whatever `status` was sent.
   */
  endUnanswered(status: number): Promise<void>
}

/** Answers that say that nothing was done: they release the key. */
const RELEASING_STATUSES = new Set([401, 403, 407, 408, 425, 429, 503])

/** What an exchange is made of. */
export interface ExchangeParts<TRequest> {
  readonly key: string
  /** Method and route pattern, for messages. */
  readonly route: string
  readonly execution: Execution
  readonly settings: HttpSettings<TRequest>
  /** The framework's request, which whoever shapes refusals may look at. */
  readonly request: TRequest
}

/** Starts the exchange of a request whose claim was granted. */
export function createExchange<TRequest>(parts: ExchangeParts<TRequest>): Exchange {
  return new HeldExchange(parts)
}

/**
 * Ends an exchange whose handler never ran, and need not: somebody has answered its request meanwhile, as a timeout does.
 */
export async function endUnrun(exchange: Exchange): Promise<void> {
  exchange.forget()
  await exchange.end({ status: 503, headers: {}, body: undefined, isText: false })
}

// A class, since every protected request makes one: a literal with getters would have a shape of its own each time, and
// no code that meets it could be optimised.
class HeldExchange<TRequest> implements Exchange {
  readonly key: string
  readonly fence: number
  readonly #parts: ExchangeParts<TRequest>
  committed: GivenAnswer | 'too-long' | undefined
  #isForgotten = false
  #isOpen = true
  /** The last transaction that was begun, whether anybody waits for it or not. It does not reject. */
  #transaction: Promise<void> | undefined
  #hasRolledBack = false
  #misuse: TransactionMisuseError | undefined
  /** Why the last transaction failed, where that was not the work's own doing. */
  #failure: unknown
  /** What the handler has saved in a transaction of its own. */
  #saved: { readonly outcome: Outcome; readonly captured: CapturedAnswer } | undefined

  constructor(parts: ExchangeParts<TRequest>) {
    this.key = parts.key
    this.fence = parts.execution.fence
    this.#parts = parts
  }

  get signal(): AbortSignal {
    return this.#parts.execution.signal
  }

  get isOpen(): boolean {
    return this.#isOpen
  }

  misuse(error: TransactionMisuseError): void {
    this.#misuse = error
  }

  forget(): void {
    this.#isForgotten = true
  }

  deriveKey(label: string): string {
    return this.#parts.execution.deriveKey(label)
  }

  transaction<T>(
    work: (client: unknown) => Promise<T>,
    capture: (value: T) => CapturedAnswer | Promise<CapturedAnswer>,
  ): Promise<T> {
    const running = this.#transact(work, capture)
    this.#transaction = running.then(ignore, ignore)
    return running
  }

  async #transact<T>(
    work: (client: unknown) => Promise<T>,
    capture: (value: T) => CapturedAnswer | Promise<CapturedAnswer>,
  ): Promise<T> {
    let thrown: unknown
    let answer: GivenAnswer | 'too-long' = 'too-long'
    let outcome: Outcome | undefined
    try {
      const ended = await this.#parts.execution.transaction<T>(async (client) => {
        const value = await work(client).catch((error: unknown) => {
          thrown = error
          throw error
        })
        const captured = await capture(value)
        if (this.#isForgotten || captured.status >= 400) return { value, outcome: 'roll-back' }
        outcome = this.#outcomeOf(captured)
        answer = this.#givenOf(captured)
        return { value, outcome }
      })
      if (ended.kind === 'committed') {
        this.#isOpen = false
        const isOwn = ended.outcome === outcome || ended.outcome === undefined
        this.committed = isOwn ? answer : (keptOf(ended.outcome) ?? 'too-long')
      } else this.#hasRolledBack = true
      return ended.value
    } catch (error) {
      this.#hasRolledBack = true
      if (error !== thrown && isIdempotencyError(error)) this.#failure = error
      throw error
    }
  }

  async saveIn(execute: ExecuteStatement, captured: CapturedAnswer): Promise<void> {
    if (captured.status >= 400)
      throw new TransactionMisuseError(
        `saveIn() got a response with status ${captured.status}: roll back instead, and answer with it`,
      )
    const outcome = this.#outcomeOf(captured)
    await this.#parts.execution.saveIn(execute, outcome)
    this.#saved = { outcome, captured }
  }

  end(captured: CapturedAnswer): MaybePromise<GivenAnswer | undefined> {
    if (!this.#isOpen) return undefined
    if (this.#transaction !== undefined || this.#saved !== undefined)
      return this.#endAfterTransaction(captured)
    this.#isOpen = false
    try {
      const given = this.#settle(captured)
      return isPromise(given) ? given.catch((error: unknown) => this.#refusal(error)) : given
    } catch (error) {
      return this.#refusal(error)
    }
  }

  async #endAfterTransaction(captured: CapturedAnswer): Promise<GivenAnswer | undefined> {
    if (this.#transaction !== undefined) {
      // A handler that did not wait for its transaction: the answer is the transaction's all the same.
      await this.#transaction
      if (!this.#isOpen) return this.committed === 'too-long' ? undefined : this.committed
    }
    this.#isOpen = false
    try {
      if (this.#saved !== undefined) {
        const saved = await this.#savedOutcome(this.#saved, captured.status)
        if (saved !== undefined) return keptOf(saved)
        if (this.#believesSaved(captured)) return await this.#endUncommitted()
      }
      const failure = this.#failureBehind(captured.status)
      if (failure !== undefined) return await this.#endFailed(failure)
      return await this.#settle(captured)
    } catch (error) {
      return this.#refusal(error)
    }
  }

  /** Keeps the answer, or gives the claim back. */
  #settle(captured: CapturedAnswer): MaybePromise<GivenAnswer | undefined> {
    if (this.#isForgotten || !this.#isKept(captured)) return this.#parts.execution.release().then(nothing)
    if (this.#lacksTransaction(captured.status)) return this.#endWithoutTransaction()
    const answer = this.#keep(this.#outcomeOf(captured))
    return isPromise(answer) ? answer.then((found) => this.#given(found)) : this.#given(answer)
  }

  #given(answer: Answer): GivenAnswer | undefined {
    return answer.whose === 'own' ? undefined : replayOf(answer.outcome, this.#parts.key)
  }

  async endUnanswered(status: number): Promise<void> {
    if (!this.#isOpen) return
    await this.#transaction
    if (!this.#isOpen) return
    this.#isOpen = false
    if (this.#isForgotten || this.#hasRolledBack) return this.#parts.execution.release()
    try {
      const { execution } = this.#parts
      if (this.#saved !== undefined && (await execution.keptOutcome(this.#saved.outcome)) !== undefined)
        return
      await this.#keep(this.#outcomeOf({ status, headers: {}, body: 'too-long', isText: false }))
    } catch {
      // Only a lost claim rejects, the engine has reported it, and the client has its answer.
    }
  }

  /** What the handler's own transaction has committed, if it has. After a failure it must not commit any more. */
  async #savedOutcome(
    { outcome }: { readonly outcome: Outcome },
    status: number,
  ): Promise<Outcome | undefined> {
    const { execution } = this.#parts
    if (status >= 400) {
      this.#hasRolledBack = true
      return execution.decide(outcome)
    }
    try {
      return await execution.keptOutcome(outcome)
    } catch {
      // The store is away, which the engine has reported. The handler says that it succeeded: as ever, that is kept.
      await this.#keep(outcome)
      return outcome
    }
  }

  /** Whether the handler answers with what it has saved, although that was not committed. */
  #believesSaved({ status, body }: CapturedAnswer): boolean {
    const saved = this.#saved?.captured
    if (saved === undefined || status >= 400) return false
    if (body === undefined) return true
    const isSameBody =
      typeof body === 'string' || typeof saved.body === 'string' || saved.body === undefined
        ? body === saved.body
        : Buffer.compare(body, saved.body) === 0
    return status === saved.status && isSameBody
  }

  /** The effects were rolled back together with the outcome, whether the client of the database said so or not. */
  async #endUncommitted(): Promise<GivenAnswer> {
    await this.#parts.execution.release()
    return this.#refusal(
      new TransactionMisuseError(
        'saveIn() kept the answer in a transaction that was not committed: await the transaction, and let its failure be one',
      ),
    )
  }

  /** The failed transaction that a failure answers for. A handler that made up for it has an answer of its own. */
  #failureBehind(status: number): unknown {
    if (this.#misuse !== undefined) return this.#misuse
    return status >= 400 || this.#failure instanceof ClaimLostError ? this.#failure : undefined
  }

  async #endFailed(failure: unknown): Promise<GivenAnswer> {
    const { execution, key } = this.#parts
    // It is still being found out, in the background.
    if (failure instanceof CommitUndecidedError) return this.#refusal(failure)
    if (failure instanceof ClaimLostError) {
      const answer = await execution.answerOfTheHolder()
      if (answer.whose === 'other') return replayOf(answer.outcome, key)
    } else await execution.release()
    return this.#refusal(failure)
  }

  #refusal(error: unknown): GivenAnswer {
    return refusalOf(error, this.#parts.settings, this.#parts.request)
  }

  #lacksTransaction(status: number): boolean {
    const { execution, settings } = this.#parts
    return settings.policy.atomic && status < 400 && execution.isProtected
  }

  async #endWithoutTransaction(): Promise<GivenAnswer> {
    const problem = this.#refusal(new TransactionMissingError(this.#parts.route))
    // Kept, since what the handler did outside of a transaction may exist, and must not be done again by a retry.
    await this.#keep(outcomeOf(problem, this.#parts.execution.traceparent))
    return problem
  }

  #isKept({ status, headers, body }: CapturedAnswer): boolean {
    if (RELEASING_STATUSES.has(status)) return false
    const { keep, policy } = this.#parts.settings
    // All effects were statements of a transaction that was rolled back, or never came to commit: a retry may well succeed.
    if ((this.#hasRolledBack || policy.atomic) && status >= 500) return false
    if (keep === undefined) return true
    try {
      return keep({ status, headers, body: body === 'too-long' ? undefined : body })
    } catch (error) {
      // The operation has run. Keeping too much is harmless where running it again is not.
      process.emitWarning(error instanceof Error ? error : String(error), 'OncekeyKeepWarning')
      return true
    }
  }

  #outcomeOf({ status, headers, body, isText }: CapturedAnswer): Outcome {
    const kept = body === 'too-long' ? 'not-kept' : body
    const { settings, execution } = this.#parts
    return outcomeOf(
      { status, headers: settings.keptHeaders(headers), body: kept, isText },
      execution.traceparent,
    )
  }

  #givenOf({ status, headers, body, isText }: CapturedAnswer): GivenAnswer | 'too-long' {
    if (body === 'too-long') return body
    return { status, headers: this.#parts.settings.keptHeaders(headers), body, isText, replayed: false }
  }

  #keep(outcome: Outcome): MaybePromise<Answer> {
    return this.#parts.execution.complete(outcome)
  }
}

function ignore(): void {}

function nothing(): undefined {}
