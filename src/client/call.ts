import { OptionsError } from '../contract/errors.js'
import { type Answered, meaningOf, readAnswer, settles } from './answers.js'
import {
  CallDeadlineError,
  CallOutcomeUnknownError,
  type CallProgress,
  CallRetriesExhaustedError,
} from './call-errors.js'
import type { CallSettings } from './client-options.js'
import { forgetOperation, type OperationKey, storedKey } from './key-storage.js'
import { newKey } from './operation-key.js'
import { retryAfterMs } from './retry-after.js'
import { retryDelayMs } from './retry-delay.js'
import { pause, within } from './within.js'

/**
 * Sends a request until it is answered for good.
 *
 * @throws {CallError} when no answer came, or one after which a new key could do the operation twice.
 * @throws what the caller's signal was aborted with, and what the hook or the storage of keys throws.
 */
export async function answerTo(
  input: string | URL | Request,
  init: RequestInit,
  settings: CallSettings,
): Promise<Response> {
  const { operation, storage, deadline, fetch: send } = settings
  const request: Partial<Request> = input as Request
  const method = (init.method ?? request.method ?? 'GET').toUpperCase()
  const isKeyed = !!(settings.key || operation) || settings.methods.includes(method)
  if (!isKeyed && !settings.keylessMethods.includes(method)) return send(input, init)

  const deadlineAt = Date.now() + deadline
  let held: OperationKey | undefined
  let attempts = 0
  let response: Response | undefined
  let problem: CallProgress['problem'] = {}
  let cause: unknown
  const progress = (): CallProgress => ({ key: held?.key, attempts, response, problem, cause })
  const late = (): CallDeadlineError => new CallDeadlineError(progress())

  const answer = await within(deadline, late, init.signal ?? request.signal, finalAnswer)
  const key = held
  if (storage && operation && settles(answer))
    // The answer counts, whatever becomes of this. A key that stays stored can only bring it back.
    await within(settings.timeout, late, null, () => forgetOperation(storage, operation, key)).catch(() => {})
  return answer

  async function finalAnswer(signal: AbortSignal): Promise<Response> {
    const prepared = await preparedInit(input, init, signal)
    if (isKeyed) await holdKey(prepared.headers)
    let delayMs = 0
    for (let failures = 0; failures <= settings.retries; ) {
      signal.throwIfAborted()
      const sentAt = Date.now() + delayMs
      // One from the future was made by a clock that was wrong, and may be of any age.
      if (held && Math.abs(sentAt - held.createdAt) >= settings.keyLifetime)
        throw new CallOutcomeUnknownError(progress())
      if (sentAt >= deadlineAt) throw late()
      await settings.onAttempt({ ...progress(), delayMs })
      if (delayMs > 0) await pause(delayMs, signal)

      attempts += 1
      response = cause = undefined
      problem = {}
      try {
        ;({ response, problem } = await within(settings.timeout, timeoutError, signal, attempt))
      } catch (error) {
        // A reason to stop, too: then nobody waits for this any more.
        cause = error
      }

      const meaning = meaningOf(progress())
      if (response && meaning === 'final') return response
      if (meaning === 'failed') failures += 1
      // Not before the time that was asked for, and not everybody at that time.
      delayMs =
        Math.min(retryAfterMs(response?.headers), settings.maxRetryAfter) +
        retryDelayMs(attempts, settings.backoff)
    }
    throw new CallRetriesExhaustedError(progress())

    async function attempt(attemptSignal: AbortSignal): Promise<Answered> {
      const response = await send(input, { ...prepared, signal: attemptSignal })
      return { response, problem: await readAnswer(response, isKeyed && settings.bufferAnswer) }
    }
  }

  async function holdKey(headers: Headers): Promise<void> {
    const { header, quoteKey } = settings
    const own = headers.get(header)
    held =
      storage && operation
        ? await storedKey(storage, operation)
        : { key: settings.key || own || newKey(), createdAt: Date.now() }
    // A header of the caller's own is sent as it is.
    if (held.key !== own) headers.set(header, quoteKey ? JSON.stringify(held.key) : held.key)
    // Where only simple requests are allowed, headers do not take it.
    if (!headers.has(header)) throw new OptionsError('oncekey/client: "no-cors" cannot carry a key')
  }
}

/**
 * What every attempt sends alike: the body is read to its end once, a form gets one boundary, and bytes that the caller
 * changes meanwhile are not sent.
 *
 * @param signal stops the reading of a stream, and cancels it.
 * @throws {TypeError} for what cannot be sent, as `fetch` does.
 */
async function preparedInit(
  input: string | URL | Request,
  init: RequestInit,
  signal: AbortSignal,
): Promise<RequestInit & { readonly headers: Headers }> {
  const { body } = init
  const whole = new Request(
    input,
    body instanceof ReadableStream
      ? { ...init, body: body.pipeThrough(new TransformStream(), { signal }) }
      : init,
  )
  const { headers } = whole
  // A request that is made of another one and of options forgets what that one said of its referrer (fetch standard, 5.4).
  const { referrer, referrerPolicy } = input instanceof Request ? input : whole
  const blob = body instanceof Blob ? body : await whole.blob()
  // An empty body is one, too: without it, a request as the input would be taken for one that was used before.
  return { referrer, referrerPolicy, ...init, headers, body: blob === body || whole.bodyUsed ? blob : null }
}

function timeoutError(): DOMException {
  return new DOMException('No answer in time', 'TimeoutError')
}
