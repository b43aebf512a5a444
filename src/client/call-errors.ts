import { IdempotencyError } from '../contract/errors.js'

/** How far a call has come. */
export interface CallProgress {
  /** What every attempt carries; `undefined` where the method needs none. */
  readonly key: string | undefined
  /** How many attempts were made. */
  readonly attempts: number
  /** What the last attempt was answered with, ready to be read; `undefined` where it was not answered. */
  readonly response: Response | undefined
  /** What the body of that answer says, where it is a JSON object: `code`, `detail`, `originalStatus`, ... */
  readonly problem: Readonly<Record<string, unknown>>
  /** Why the last attempt was not answered. */
  readonly cause: unknown
}

/**
 * The base of every error of a call that was sent. The operation may have been done: whoever wants to know sends the
 * same request with the same `key`.
 */
export abstract class CallError extends IdempotencyError {
  /** What a service answers with that lets the error pass. It does not say that nothing was done. */
  override readonly statusCode = 502
  declare readonly key: string | undefined
  declare readonly attempts: number
  declare readonly response: Response | undefined
  declare readonly problem: Readonly<Record<string, unknown>>

  constructor(code: string, message: string, progress: CallProgress) {
    super(code, `${message} (key ${progress.key})`)
    Object.assign(this, progress)
  }
}

/** The server knows the key with another request. Nothing was done for this one. */
export class CallKeyReusedError extends CallError {
  override readonly name = 'CallKeyReusedError'

  constructor(progress: CallProgress) {
    super('IDEMPOTENCY_KEY_REUSED', 'The key stands for another request', progress)
  }
}

/**
 * Nobody knows how the operation ended, and somebody must find out before it is sent under a new key. The server says
 * so, with `response`; or this client, since the key is older than its lifetime and the server may have forgotten it.
 */
export class CallOutcomeUnknownError extends CallError {
  override readonly name = 'CallOutcomeUnknownError'

  constructor(progress: CallProgress) {
    super('IDEMPOTENCY_OUTCOME_UNKNOWN', 'The outcome is unknown', progress)
  }
}

/** The operation has ended, and its answer was not kept: `problem.originalStatus` is what is left of it. */
export class CallAnswerNotKeptError extends CallError {
  override readonly name = 'CallAnswerNotKeptError'

  constructor(progress: CallProgress) {
    super('IDEMPOTENCY_RESPONSE_NOT_KEPT', 'The answer was not kept', progress)
  }
}

/** Every attempt failed. */
export class CallRetriesExhaustedError extends CallError {
  override readonly name = 'CallRetriesExhaustedError'
  override readonly retryable = true

  constructor(progress: CallProgress) {
    super('IDEMPOTENCY_RETRIES_EXHAUSTED', 'Every attempt failed', progress)
  }
}

/** The deadline passed, or comes before the next attempt may be made. */
export class CallDeadlineError extends CallError {
  override readonly name = 'CallDeadlineError'
  override readonly retryable = true

  constructor(progress: CallProgress) {
    super('IDEMPOTENCY_DEADLINE_EXCEEDED', 'The deadline passed', progress)
  }
}
