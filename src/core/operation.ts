import { z } from 'zod'
import { OperationFailedError, ResponseNotKeptError } from '../contract/errors.js'
import type { Outcome } from '../contract/store.js'
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
    const { scope, key, input, name = 'run', ...policy } = parseOptions(runSchema, options, 'run')
    const begun = await engine.begin({
      scope,
      key,
      fingerprint: fingerprintOf({ method: 'RUN', path: name, body: input }),
      route: name,
      policy: resolvePolicy(policy, defaults, valueOnUnknown(policy.onUnknown)),
    })
    if (begun.kind === 'replay') return valueIn<T>(begun.outcome, key)
    return perform(begun.execution, key, work)
  }
}

async function perform<T>(
  execution: Execution,
  key: string,
  work: (execution: RunExecution) => Promise<T> | T,
): Promise<T> {
  const run = new HeldRun(execution, key)
  let value: T
  try {
    value = await work(run)
  } catch (error) {
    if (run.isForgotten) await execution.release()
    else {
      const answer = await execution.complete(failureOutcome(error))
      if (answer.whose === 'other') return valueIn<T>(answer.outcome, key)
    }
    throw error
  }
  if (run.isForgotten) {
    await execution.release()
    return value
  }
  const outcome = valueOutcome(value)
  const answer = await execution.complete(outcome)
  if (answer.whose === 'other') return valueIn<T>(answer.outcome, key)
  return outcome.body === null ? value : valueIn<T>(outcome, key)
}

class HeldRun implements RunExecution {
  readonly key: string
  readonly fence: number
  isForgotten = false
  readonly #execution: Execution

  constructor(execution: Execution, key: string) {
    this.key = key
    this.fence = execution.fence
    this.#execution = execution
  }

  get signal(): AbortSignal {
    return this.#execution.signal
  }

  // Bound to its run: it may be taken apart, as in `({ forget }) => ...`.
  readonly forget = (): void => {
    this.isForgotten = true
  }
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

function valueOutcome(value: unknown): Outcome {
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
