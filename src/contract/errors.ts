const BRAND = Symbol.for('oncekey.error')

/** The base of every error of this library. `code` is stable and for programs; `message` is for people. */
export abstract class IdempotencyError extends Error {
  /** The HTTP status that an adapter answers with. */
  abstract readonly statusCode: number
  /** Whether the same request, sent again later, may succeed. */
  readonly retryable: boolean = false
  /** @internal */
  readonly [BRAND] = true

  protected constructor(
    readonly code: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options)
  }
}

/** Whether `error` came from this library, from whichever copy of it is installed. */
export function isIdempotencyError(error: unknown): error is IdempotencyError {
  return typeof error === 'object' && error !== null && BRAND in error
}

/** A key was required and none was sent. */
export class KeyMissingError extends IdempotencyError {
  override readonly name = 'KeyMissingError'
  readonly statusCode = 400

  constructor(header: string) {
    super('IDEMPOTENCY_KEY_MISSING', `The header ${header} is required`)
  }
}

/** The key is malformed, too long, or was sent more than once. */
export class KeyInvalidError extends IdempotencyError {
  override readonly name = 'KeyInvalidError'
  readonly statusCode = 400

  constructor(reason: string, options?: ErrorOptions) {
    super('IDEMPOTENCY_KEY_INVALID', reason, options)
  }
}

/** The key is known with another fingerprint: it stands for a different request. */
export class KeyReusedError extends IdempotencyError {
  override readonly name = 'KeyReusedError'
  readonly statusCode = 422

  constructor(readonly key: string) {
    super('IDEMPOTENCY_KEY_REUSED', `Idempotency key "${key}" was used for a different request`)
  }
}

/** A request came while the first with the same key was still running. */
export class KeyInProgressError extends IdempotencyError {
  override readonly name = 'KeyInProgressError'
  readonly statusCode = 409
  override readonly retryable = true

  constructor(readonly key: string) {
    super('IDEMPOTENCY_KEY_IN_PROGRESS', `A request with idempotency key "${key}" is still running`)
  }
}

/** An earlier attempt stopped without saying how it ended. Its effect may or may not have happened. */
export class OutcomeUnknownError extends IdempotencyError {
  override readonly name = 'OutcomeUnknownError'
  readonly statusCode = 409

  constructor(
    readonly key: string,
    options?: ErrorOptions,
  ) {
    super(
      'IDEMPOTENCY_OUTCOME_UNKNOWN',
      `Nobody knows how the operation of idempotency key "${key}" ended`,
      options,
    )
  }
}

/** The operation ended before, and its answer was too large or otherwise impossible to keep. */
export class ResponseNotKeptError extends IdempotencyError {
  override readonly name = 'ResponseNotKeptError'
  readonly statusCode = 409

  constructor(
    readonly key: string,
    /** The status of the first answer, where it is known. */
    readonly originalStatus: number | undefined,
  ) {
    super(
      'IDEMPOTENCY_RESPONSE_NOT_KEPT',
      `The operation of idempotency key "${key}" has ended, and its answer was not kept`,
    )
  }
}

/** The store failed, or did not answer in time. */
export class StoreUnavailableError extends IdempotencyError {
  override readonly name = 'StoreUnavailableError'
  readonly statusCode = 503
  override readonly retryable = true

  constructor(message: string, options?: ErrorOptions) {
    super('IDEMPOTENCY_STORE_UNAVAILABLE', message, options)
  }
}

/** A kept outcome cannot be opened: its key is missing, or it is not what was kept. It is never run again for that. */
export class OutcomeUnreadableError extends IdempotencyError {
  override readonly name = 'OutcomeUnreadableError'
  readonly statusCode = 500

  constructor(message: string, options?: ErrorOptions) {
    super('IDEMPOTENCY_OUTCOME_UNREADABLE', message, options)
  }
}

/** A bounded store holds only live records, and refuses a new one rather than forget one of them. */
export class StoreFullError extends IdempotencyError {
  override readonly name = 'StoreFullError'
  readonly statusCode = 503
  override readonly retryable = true

  constructor(message: string) {
    super('IDEMPOTENCY_STORE_FULL', message)
  }
}

/** The store's backend is set up in a way that would lose records. Thrown at start. */
export class StoreUnfitError extends IdempotencyError {
  override readonly name = 'StoreUnfitError'
  readonly statusCode = 500

  constructor(message: string, options?: ErrorOptions) {
    super('IDEMPOTENCY_STORE_UNFIT', message, options)
  }
}

/** An option is missing or wrong. Thrown at start. */
export class OptionsError extends IdempotencyError {
  override readonly name = 'OptionsError'
  readonly statusCode = 500

  constructor(message: string) {
    super('IDEMPOTENCY_OPTIONS_INVALID', message)
  }
}

/** The scope function named no caller, and a key without a scope could answer one caller with another's reply. */
export class ScopeMissingError extends IdempotencyError {
  override readonly name = 'ScopeMissingError'
  readonly statusCode = 500

  constructor(options?: ErrorOptions) {
    super(
      'IDEMPOTENCY_SCOPE_MISSING',
      'The scope function must return a well-formed, non-empty string for every request that has a key',
      options,
    )
  }
}

/** The request cannot be told from others: its input is cyclic or a BigInt, nests too deep, or a function failed. */
export class FingerprintError extends IdempotencyError {
  override readonly name = 'FingerprintError'

  constructor(
    message: string,
    /** 400 where the client sent what cannot be compared, 500 where the application made it. */
    readonly statusCode: 400 | 500,
    options?: ErrorOptions,
  ) {
    super('IDEMPOTENCY_FINGERPRINT_FAILED', message, options)
  }
}

/** The request's body is longer than is compared with that of its retries. Nothing was done. */
export class RequestTooLargeError extends IdempotencyError {
  override readonly name = 'RequestTooLargeError'
  readonly statusCode = 413

  constructor(maxBytes: number) {
    super('IDEMPOTENCY_REQUEST_TOO_LARGE', `The request's body is longer than ${maxBytes} bytes`)
  }
}

/**
 * The claim went to somebody else, or may have: the reason of an aborted `signal`, and of a transaction that was rolled
 * back.
 */
export class ClaimLostError extends IdempotencyError {
  override readonly name = 'ClaimLostError'
  readonly statusCode = 409
  override readonly retryable = true

  constructor(key: string) {
    super('IDEMPOTENCY_CLAIM_LOST', `The claim of idempotency key "${key}" is no longer held`)
  }
}

/** The operation ran for longer than `maxRun`: the reason of an aborted `signal`. */
export class MaxRunExceededError extends IdempotencyError {
  override readonly name = 'MaxRunExceededError'
  readonly statusCode = 503

  constructor(key: string) {
    super(
      'IDEMPOTENCY_MAX_RUN_EXCEEDED',
      `The operation of idempotency key "${key}" ran for longer than maxRun; its claim is no longer renewed`,
    )
  }
}

/** What a retry of `run()` throws when the first run threw: the kept failure, with its name and message. */
export class OperationFailedError extends IdempotencyError {
  override readonly name = 'OperationFailedError'
  readonly statusCode = 500

  constructor(
    message: string,
    /** The `name` of the error that the first run threw. */
    readonly originalName: string,
    /** The `code` of the error that the first run threw, where it had one. */
    readonly originalCode: string | undefined,
  ) {
    super('IDEMPOTENCY_OPERATION_FAILED', message)
  }
}

/**
 * Thrown by an application to say that nothing happened: the failure is not kept, and a retry runs the operation again.
 * Only for failures that are known to have come before any effect.
 */
export class NothingHappenedError extends IdempotencyError {
  override readonly name = 'NothingHappenedError'
  /** What an HTTP client is answered with. */
  readonly statusCode: number
  override readonly retryable = true

  /** @param options `statusCode` is 503 by default. `cause` says why, for the log. */
  constructor(message: string, options: ErrorOptions & { readonly statusCode?: number } = {}) {
    super('IDEMPOTENCY_NOTHING_HAPPENED', message, options)
    this.statusCode = options.statusCode ?? 503
  }
}

/** Whether an application has thrown a `NothingHappenedError`, of whichever copy of this library. */
export function saysNothingHappened(error: unknown): boolean {
  return isIdempotencyError(error) && error.code === 'IDEMPOTENCY_NOTHING_HAPPENED'
}

/** The store has no transactions. */
export class TransactionUnsupportedError extends IdempotencyError {
  override readonly name = 'TransactionUnsupportedError'
  readonly statusCode = 500

  constructor(what = 'transaction()') {
    super(
      'IDEMPOTENCY_TRANSACTION_UNSUPPORTED',
      `The store cannot do ${what}: effect and outcome can only commit together in a store such as postgresStore(pool)`,
    )
  }
}

/** `transaction()` or `saveIn()` was called in a way that could commit an effect beside its outcome, or twice. */
export class TransactionMisuseError extends IdempotencyError {
  override readonly name = 'TransactionMisuseError'
  readonly statusCode = 500

  constructor(message: string, options?: ErrorOptions) {
    super('IDEMPOTENCY_TRANSACTION_MISUSED', message, options)
  }
}

/** An operation declared `atomic` succeeded without a transaction: its effect and its outcome were not one commit. */
export class TransactionMissingError extends IdempotencyError {
  override readonly name = 'TransactionMissingError'
  readonly statusCode = 500

  constructor(what: string) {
    super(
      'IDEMPOTENCY_TRANSACTION_MISSING',
      `${what} is declared atomic and succeeded outside of transaction() or saveIn(): put its effects into one, or take "atomic" away`,
    )
  }
}

/** A commit was asked for and nobody has said yet whether it happened. The same request, sent again, finds out. */
export class CommitUndecidedError extends IdempotencyError {
  override readonly name = 'CommitUndecidedError'
  readonly statusCode = 503
  override readonly retryable = true

  constructor(options?: ErrorOptions) {
    super('IDEMPOTENCY_COMMIT_UNDECIDED', 'The answer to a commit was lost', options)
  }
}

/** Thrown by a message handler to say that no attempt will succeed: the message is given up at once. */
export class MessageRejectedError extends IdempotencyError {
  override readonly name = 'MessageRejectedError'
  readonly statusCode = 422

  constructor(message: string, options?: ErrorOptions) {
    super('IDEMPOTENCY_MESSAGE_REJECTED', message, options)
  }
}

/** Whether an application has thrown a `MessageRejectedError`, of whichever copy of this library. */
export function saysRejected(error: unknown): boolean {
  return isIdempotencyError(error) && error.code === 'IDEMPOTENCY_MESSAGE_REJECTED'
}

/** A message was given up, and the order of its log forbids to go on without it. */
export class MessageDeadError extends IdempotencyError {
  override readonly name = 'MessageDeadError'
  readonly statusCode = 409
  override readonly retryable = true

  constructor(
    readonly source: string,
    readonly key: string,
  ) {
    super(
      'IDEMPOTENCY_MESSAGE_DEAD',
      `The message "${key}" of "${source}" is dead, and blocks those behind it`,
    )
  }
}

/**
 * A message is not of the log that the high watermark is of: its topic was made again, or reading began before the first
 * message that was ever seen. Nothing was done, and nothing can be until somebody decides.
 */
export class LogReplacedError extends IdempotencyError {
  override readonly name = 'LogReplacedError'
  readonly statusCode = 409

  constructor(
    readonly topic: string,
    readonly partition: number,
    readonly offset: bigint,
  ) {
    super(
      'IDEMPOTENCY_LOG_REPLACED',
      `Offset ${offset} of ${topic}/${partition} is not of the log that its high watermark is of. Was the topic made again, or the group reset to before its first message? Then reset the source "${topic}" of this inbox`,
    )
  }
}

/** A batch of messages was not done to its end: those before `results.length` may be acknowledged, and no others. */
export class BatchInterruptedError<Result = unknown> extends IdempotencyError {
  override readonly name = 'BatchInterruptedError'
  readonly statusCode = 503
  override readonly retryable = true

  constructor(
    /** What became of the first messages of the batch, in their order. */
    readonly results: readonly Result[],
    options: ErrorOptions,
  ) {
    super(
      'IDEMPOTENCY_BATCH_INTERRUPTED',
      `The batch was interrupted after ${results.length} messages`,
      options,
    )
  }
}
