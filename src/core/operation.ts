import { z } from 'zod'
import {
  ClaimLostError,
  CommitUndecidedError,
  OperationFailedError,
  ResponseNotKeptError,
  saysNothingHappened,
  TransactionMissingError,
} from '../contract/errors.js'
import type { ExecuteStatement, Outcome } from '../contract/store.js'
import type { Engine } from './engine.js'
import type { Execution } from './execution.js'
import { fingerprintOf } from './fingerprint.js'
import { parseOptions } from './parse-options.js'
import { type OnUnknown, type Policy, type PolicyOptions, policyShape, resolvePolicy } from './policy.js'

/** A function call that is to happen once. */
export interface RunOptions<T> extends PolicyOptions<T> {
  /** The caller, or whatever owns the key: two scopes never see each other's keys. */
  readonly scope: string
  /** Names one operation of that scope: 1 to 255 characters. */
  readonly key: string
  /**
   * What the operation works on. The same key with another input is refused. JSON, text or bytes.
   *
   * @default undefined, which checks nothing but the name
   */
  readonly input?: unknown
  /**
   * What kind of operation it is, for operators and events. The same key under another name is refused.
   *
   * @default 'run'
   */
  readonly name?: string
}

/** What the work is told about its run. */
export interface RunExecution {
  readonly key: string
  /** How many times this operation was claimed: 1, 2, ... Hand it to systems that can compare it. */
  readonly fence: number
  /** Aborts when the claim is lost, when it may be, or when `maxRun` has passed. */
  readonly signal: AbortSignal
  /** Nothing happened: whatever the work returns or throws now is not kept, and a retry runs it again. */
  forget(): void

  /**
   * A key for a downstream call: the same in every run of this operation, another for every label, unguessable from
   * outside. 43 characters of base64url. Needs the option `secret`.
   */
  deriveKey(label: string): string

  /**
   * Runs `work` in a transaction of the store, and commits its statements together with the value that it returns: that
   * is the value of the operation, whatever happens afterwards. What `work` throws rolls everything back; then an error
   * with a `statusCode` from 400 to 499 is kept as the failure that it is, and any other releases the key.
   *
   * `tx` is what the store's client gives: for a `pg` Pool a client with `query`. `work` is run again, whole, after a
   * serialization failure or a deadlock: let it do nothing but statements.
   *
   * @throws what `work` throws, and what `Execution.transaction` throws.
   */
  transaction<T, TClient = TransactionClient>(work: (tx: TClient) => Promise<T>): Promise<T>

  /**
   * Keeps `value` as a part of a transaction that you have begun yourself: call it last, before you commit, and let what
   * it throws roll back. `execute` runs one SQL statement with `$1`, `$2`, ... in that transaction and gives its rows.
   *
   * @throws {ClaimLostError} when the claim went to somebody else: roll back.
   */
  saveIn(execute: ExecuteStatement, value: unknown): Promise<void>
}

/** What a transaction gives by default to send statements through: the part that `pg` and PGlite have in common. */
export interface TransactionClient {
  // biome-ignore lint/suspicious/noExplicitAny: rows are what the caller's statement makes them
  query<Row = any>(text: string, values?: unknown[]): Promise<{ readonly rows: Row[] }>
}

/**
 * Runs `work` once for its scope and key. Every caller gets the value of the first run, as JSON gives it back: the
 * first one too, so that nobody depends on what a retry cannot see.
 *
 * What `work` throws is kept as well, since its effect may exist: the first caller gets the error itself, retries get
 * an `OperationFailedError`. A value that JSON cannot express is handed to the first caller only.
 *
 * @throws what `work` throws, the refusals of `Engine.begin`, and
 * @throws {OptionsError} when an option is missing or wrong.
 * @throws {FingerprintError} when `input` has no canonical form.
 * @throws {OperationFailedError} when the first run threw.
 * @throws {ResponseNotKeptError} when the first run ended and its value could not be kept.
 */
export type Run = <T>(options: RunOptions<T>, work: (execution: RunExecution) => Promise<T> | T) => Promise<T>

const text = (what: string) => z.string(`must be ${what}`)

const runSchema = z.strictObject({
  scope: text('a string that names the caller'),
  key: text('a string'),
  input: z.unknown().optional(),
  name: text('a string').optional(),
  ...policyShape,
})

/** Makes `run` for an engine. */
export function createRun(engine: Engine, defaults: Policy): Run {
  return async <T>(options: RunOptions<T>, work: (execution: RunExecution) => Promise<T> | T): Promise<T> => {
    const { scope, key, input, name = 'run', ...given } = parseOptions(runSchema, options, 'run')
    const policy = resolvePolicy(given, defaults, valueOnUnknown(given.onUnknown))
    engine.assertSupports(policy, 'run')
    const fingerprint = fingerprintOf({ method: 'RUN', path: name, body: input })
    const begun = await engine.begin({ scope, key, fingerprint, route: name, policy })
    if (begun.kind === 'replay') return valueIn<T>(begun.outcome, key)
    // Here, and not in a function of its own: its promise would wait beside this one for as long as the work takes.
    const run = new HeldRun(begun.execution, key)
    let value: T
    try {
      value = await work(run)
    } catch (error) {
      return await run.failed<T>(error, policy.atomic)
    }
    return await run.succeeded(value, policy.atomic)
  }
}

class HeldRun implements RunExecution {
  readonly key: string
  readonly fence: number
  readonly #execution: Execution
  #isForgotten = false
  /** What a transaction committed: the value of the operation, whatever the work returns or throws after it. */
  #committed: Outcome | undefined
  #hasRolledBack = false
  /** What the work has saved in a transaction of its own. */
  #saved: Outcome | undefined
  /** A transaction that nobody may have waited for. */
  #transaction: Promise<unknown> | undefined

  constructor(execution: Execution, key: string) {
    this.key = key
    this.fence = execution.fence
    this.#execution = execution
  }

  get signal(): AbortSignal {
    return this.#execution.signal
  }

  // These are bound to their run: it may be taken apart, as in `({ forget }) => ...`. Most runs need none of them.

  get forget() {
    return (): void => {
      this.#isForgotten = true
    }
  }

  get deriveKey() {
    return (label: string): string => this.#execution.deriveKey(label)
  }

  get transaction() {
    return <T, TClient = TransactionClient>(work: (tx: TClient) => Promise<T>): Promise<T> => {
      const running = this.#transact(work)
      this.#transaction = running.catch(() => {})
      return running
    }
  }

  get saveIn() {
    return async (execute: ExecuteStatement, value: unknown): Promise<void> => {
      const outcome = valueOutcome(value)
      await this.#execution.saveIn(execute, outcome)
      this.#saved = outcome
    }
  }

  async #transact<T, TClient>(work: (tx: TClient) => Promise<T>): Promise<T> {
    try {
      const ended = await this.#execution.transaction<T>(async (client) => {
        const value = await work(client as TClient)
        return { value, outcome: this.#isForgotten ? 'roll-back' : valueOutcome(value) }
      })
      if (ended.kind === 'committed') this.#committed = ended.outcome
      else this.#hasRolledBack = true
      return ended.value
    } catch (error) {
      this.#hasRolledBack = true
      throw error
    }
  }

  /** The work returned: what the caller of the operation gets. */
  async succeeded<T>(value: T, isAtomic: boolean): Promise<T> {
    await this.#transaction
    const kept = this.#committed ?? (this.#saved && (await this.#execution.keptOutcome(this.#saved)))
    if (kept !== undefined) return kept.body === null ? value : valueIn<T>(kept, this.key)
    if (this.#isForgotten) {
      await this.#execution.release()
      return value
    }
    if (isAtomic && this.#execution.isProtected) {
      // What the work did outside of a transaction may exist: it must not be done again.
      const error = new TransactionMissingError('An operation')
      await this.#execution.complete(failureOutcome(error))
      throw error
    }
    const outcome = valueOutcome(value)
    const answer = await this.#execution.complete(outcome)
    if (answer.whose === 'other') return valueIn<T>(answer.outcome, this.key)
    return outcome.body === null ? value : valueIn<T>(outcome, this.key)
  }

  /** The work threw: what the caller of the operation gets. */
  async failed<T>(error: unknown, isAtomic: boolean): Promise<T> {
    await this.#transaction
    const kept = this.#committed ?? (this.#saved && (await this.#execution.decide(this.#saved)))
    if (kept !== undefined) {
      // The operation has succeeded, and its retries will hear so. That the rest failed must not be silent.
      process.emitWarning(error instanceof Error ? error : String(error), 'OncekeyAfterCommitWarning')
      return kept.body === null ? (undefined as T) : valueIn<T>(kept, this.key)
    }
    if (error instanceof CommitUndecidedError) throw error
    if (this.#isForgotten || saysNothingHappened(error) || !this.#isFinal(error, isAtomic)) {
      await this.#execution.release()
      throw error
    }
    const answer = await (error instanceof ClaimLostError
      ? this.#execution.answerOfTheHolder()
      : this.#execution.complete(failureOutcome(error)))
    if (answer.whose === 'other') return valueIn<T>(answer.outcome, this.key)
    throw error
  }

  /** Whether a failure answers retries: its effect may exist, or the application refused and will refuse again. */
  #isFinal(error: unknown, isAtomic: boolean): boolean {
    const hasNoEffect = this.#hasRolledBack || this.#saved !== undefined || isAtomic
    return !hasNoEffect || error instanceof ClaimLostError || isRefusal(error)
  }
}

/** Whether an error says that the application refused, for good, and did nothing. */
function isRefusal(error: unknown): boolean {
  const { statusCode } = (error ?? {}) as { readonly statusCode?: unknown }
  return typeof statusCode === 'number' && statusCode >= 400 && statusCode < 500
}

/** Lets an application's `onUnknown` speak of values, where the engine speaks of outcomes. */
export function valueOnUnknown(onUnknown: OnUnknown<never> | undefined): OnUnknown<Outcome> | undefined {
  if (typeof onUnknown !== 'function') return onUnknown
  return async (operation) => {
    const answer = await onUnknown(operation)
    return typeof answer === 'string' ? answer : { outcome: valueOutcome(answer.outcome) }
  }
}

const NO_VALUE = 'undefined'
const JSON_VALUE = 'json'

/** A value of `run()` as a store keeps it. */
export function valueOutcome(value: unknown): Outcome {
  if (value === undefined) return { result: 'succeeded', head: NO_VALUE, body: new Uint8Array(0) }
  let json: string | undefined
  try {
    json = JSON.stringify(value)
  } catch {
    // Cyclic, or a BigInt: that the operation ended is kept all the same, and a retry is told so.
  }
  return {
    result: 'succeeded',
    head: JSON_VALUE,
    body: json === undefined ? null : Buffer.from(json),
  }
}

function failureOutcome(error: unknown): Outcome {
  const { name, message, code } = error instanceof Error ? (error as NodeJS.ErrnoException) : asError(error)
  const head = JSON.stringify({ name, message, code: typeof code === 'string' ? code : undefined })
  return { result: 'failed', head, body: new Uint8Array(0) }
}

function asError(thrown: unknown): {
  readonly name: string
  readonly message: string
  readonly code?: undefined
} {
  return { name: 'Error', message: String(thrown) }
}

function valueIn<T>(outcome: Outcome, key: string): T {
  if (outcome.result === 'failed') {
    const failure = JSON.parse(outcome.head) as { name: string; message: string; code?: string }
    throw new OperationFailedError(failure.message, failure.name, failure.code)
  }
  if (outcome.body === null) throw new ResponseNotKeptError(key, undefined)
  if (outcome.head === NO_VALUE) return undefined as T
  return JSON.parse(Buffer.from(outcome.body).toString()) as T
}
