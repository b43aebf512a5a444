import type { Answer, Execution } from '../core/execution.js'
import { type GivenAnswer, replayOf } from './given-answer.js'
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
  /** Nothing happened: the handler's answer is not kept, and a retry runs it again. */
  forget(): void
  /**
   * Tells how the handler ended, once, before the client is told. Later calls change nothing.
   *
   * @returns what the client gets instead of the handler's answer: what another run of the operation kept, or a
   *   refusal, where the claim was lost; `undefined` to let the handler's own answer go.
   */
  end(captured: CapturedAnswer): Promise<GivenAnswer | undefined>
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
  readonly execution: Execution
  readonly settings: HttpSettings<TRequest>
  /** Makes an answer of a refusal. */
  readonly refusal: (error: unknown) => GivenAnswer
}

/** Starts the exchange of a request whose claim was granted. */
export function createExchange<TRequest>(parts: ExchangeParts<TRequest>): Exchange {
  return new HeldExchange(parts)
}

// A class, since every protected request makes one: a literal with getters would have a shape of its own each time, and
// no code that meets it could be optimised.
class HeldExchange<TRequest> implements Exchange {
  readonly key: string
  readonly fence: number
  readonly #parts: ExchangeParts<TRequest>
  #isForgotten = false
  #isOpen = true

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

  forget(): void {
    this.#isForgotten = true
  }

  async end(captured: CapturedAnswer): Promise<GivenAnswer | undefined> {
    if (!this.#isOpen) return undefined
    this.#isOpen = false
    const { execution, key, refusal } = this.#parts
    if (this.#isForgotten || !this.#isKept(captured)) {
      await execution.release()
      return undefined
    }
    try {
      const answer = await this.#keep(captured)
      return answer.whose === 'own' ? undefined : replayOf(answer.outcome, key)
    } catch (error) {
      return refusal(error)
    }
  }

  async endUnanswered(status: number): Promise<void> {
    if (!this.#isOpen) return
    this.#isOpen = false
    if (this.#isForgotten) return this.#parts.execution.release()
    try {
      await this.#keep({ status, headers: {}, body: 'too-long', isText: false })
    } catch {
      // Only a lost claim rejects, the engine has reported it, and the client has its answer.
    }
  }

  #isKept({ status, headers, body }: CapturedAnswer): boolean {
    if (RELEASING_STATUSES.has(status)) return false
    const { keep } = this.#parts.settings
    if (keep === undefined) return true
    try {
      return keep({ status, headers, body: body === 'too-long' ? undefined : body })
    } catch (error) {
      // The operation has run. Keeping too much is harmless where running it again is not.
      process.emitWarning(error instanceof Error ? error : String(error), 'OncekeyKeepWarning')
      return true
    }
  }

  #keep({ status, headers, body, isText }: CapturedAnswer): Promise<Answer> {
    const { execution, settings } = this.#parts
    const kept = body === 'too-long' ? 'not-kept' : body
    return execution.complete(
      outcomeOf({ status, headers: settings.keptHeaders(headers), body: kept, isText }),
    )
  }
}
