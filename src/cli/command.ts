import { isIdempotencyError } from '../contract/errors.js'

/** Where a command writes: results to `out`, everything else to `err`. */
export interface Output {
  out(text: string): void
  err(text: string): void
  /** Whether nobody reads results any more, as after `| head`. */
  isClosed(): boolean
}

/** One command of the program. */
export interface Command {
  readonly name: string
  /** What it does, in one line. */
  readonly summary: string
  /** Everything about it, for `--help`. */
  readonly help: string
  /** Gives the exit code. */
  run(args: readonly string[], output: Output): Promise<number>
}

/** What exit codes say, for all commands. */
export const EXIT = {
  ok: 0,
  /** The answer is no: a check failed, there is no such record, it was not settled. */
  failed: 1,
  /** The command line is wrong, or nobody said yes. Nothing was changed. */
  usage: 2,
  /** The store cannot be reached, is not fit to be used, or failed. */
  unavailable: 3,
} as const

/** The command line is wrong, or what it names is not there. The message says what would be right. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}

/** A store cannot be reached, or failed. The message says which, without its password, and why. */
export class StoreFailedError extends Error {
  override readonly name = 'StoreFailedError'
}

/** The exit code of a command that ended with an error, and what to tell whoever called the program. */
export function endOf(error: unknown): { readonly code: number; readonly told: string } {
  if (error instanceof UsageError || isParseError(error) || isWrongOption(error))
    return { code: EXIT.usage, told: error.message }
  if (error instanceof StoreFailedError || isIdempotencyError(error))
    return { code: EXIT.unavailable, told: error.message }
  // A defect of ours shows where it is.
  return { code: EXIT.unavailable, told: String((error as Error)?.stack ?? error) }
}

function isParseError(error: unknown): error is Error {
  return error instanceof Error && String((error as NodeJS.ErrnoException).code).startsWith('ERR_PARSE_ARGS')
}

function isWrongOption(error: unknown): error is Error {
  return isIdempotencyError(error) && error.code === 'IDEMPOTENCY_OPTIONS_INVALID'
}
