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

/** Starts the exchange of a request whose claim was granted. */
export function createExchange<TRequest>(options: {
  readonly key: string
  readonly execution: Execution
  readonly settings: HttpSettings<TRequest>
  readonly refusal: (error: unknown) => GivenAnswer
}): Exchange {
  const { key, execution, settings, refusal } = options
  let isForgotten = false
  let isOpen = true

  function isKept({ status, headers, body }: CapturedAnswer): boolean {
    if (RELEASING_STATUSES.has(status)) return false
    if (settings.keep === undefined) return true
    try {
      return settings.keep({ status, headers, body: body === 'too-long' ? undefined : body })
    } catch (error) {
      // The operation has run. Keeping too much is harmless where running it again is not.
      process.emitWarning(error instanceof Error ? error : String(error), 'OncekeyKeepWarning')
      return true
    }
  }

  function keep({ status, headers, body, isText }: CapturedAnswer): Promise<Answer> {
    const kept = body === 'too-long' ? 'not-kept' : body
    return execution.complete(
      outcomeOf({ status, headers: settings.keptHeaders(headers), body: kept, isText }),
    )
  }

  return {
    key,
    fence: execution.fence,
    get signal() {
      return execution.signal
    },
    get isOpen() {
      return isOpen
    },
    forget() {
      isForgotten = true
    },
    async end(captured) {
      if (!isOpen) return undefined
      isOpen = false
      if (isForgotten || !isKept(captured)) {
        await execution.release()
        return undefined
      }
      try {
        const answer = await keep(captured)
        return answer.whose === 'own' ? undefined : replayOf(answer.outcome, key)
      } catch (error) {
        return refusal(error)
      }
    },
    async endUnanswered(status) {
      if (!isOpen) return
      isOpen = false
      if (isForgotten) return execution.release()
      try {
        await keep({ status, headers: {}, body: 'too-long', isText: false })
      } catch {
        // Only a lost claim rejects, the engine has reported it, and the client has its answer.
      }
    },
  }
}
