import { isIdempotencyError } from '../contract/errors.js'

/** Where a command writes: results to `out`, everything else to `err`. */
export interface Output {
  out(text: string): void
  err(text: string): void
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
export const EXIT = { ok: 0, failed: 1, usage: 2 } as const

/** The command line is wrong, or what it names is not there. The message says what would be right. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}

/** Whether an error is one that its message explains to whoever called the program. */
export function isExplained(error: unknown): error is Error {
  if (error instanceof UsageError || isIdempotencyError(error)) return true
  return error instanceof Error && String((error as NodeJS.ErrnoException).code).startsWith('ERR_PARSE_ARGS')
}
