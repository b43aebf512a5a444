import { answerTo } from './call.js'
import { type CallOptions, type ClientOptions, defaultSettings, resolveSettings } from './client-options.js'

export type { Duration } from '../contract/duration.js'
export type { CallProgress } from './call-errors.js'
export {
  CallAnswerNotKeptError,
  CallDeadlineError,
  CallError,
  CallKeyReusedError,
  CallOutcomeUnknownError,
  CallRetriesExhaustedError,
} from './call-errors.js'
export type { Attempt, CallOptions, ClientOptions, SendRequest } from './client-options.js'
export { deriveFrom, type KeyDeriver } from './derive-from.js'
export { forgetOperation, type ItemStorage, type KeyStorage, type OperationKey } from './key-storage.js'
export { type RetryDelayOptions, retryDelayMs } from './retry-delay.js'

/** The init of `fetch`, with the options of this call. */
export interface RetryingRequestInit extends RequestInit {
  /** What is different for this call. `false` sends it once and without a key, as plain `fetch` does. */
  readonly idempotency?: CallOptions | false
}

/** A `fetch` that retries, with one key for all attempts of a call. */
export type RetryingFetch = (input: string | URL | Request, init?: RetryingRequestInit) => Promise<Response>

/**
 * Makes a `fetch` that retries. Each call of `POST` or `PATCH` gets a key, which all of its attempts carry. What the
 * application answers is returned, whatever its status; see `CallError` for what is thrown.
 *
 * @throws {OptionsError} naming the option that is wrong, its value and what would be right.
 */
export function createFetch(options: ClientOptions = {}): RetryingFetch {
  // With the global fetch of now: what is made here may take its place.
  const base = resolveSettings(options, defaultSettings())

  return async (input, { idempotency, ...init } = {}) => {
    const settings = resolveSettings(idempotency || {}, { ...base, key: '', operation: '' })
    const { fetch: send } = settings
    return idempotency === false ? send(input, init) : answerTo(input, init, settings)
  }
}
