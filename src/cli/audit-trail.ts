import { closeSync, fsyncSync, openSync, writeSync } from 'node:fs'
import { userInfo } from 'node:os'
import type { AuditTrail } from '../operator/end-unknown.js'
import { type AuditEntry, type AuditLogger, writeAudit } from '../telemetry/audit-log.js'
import { type Output, StoreFailedError, UsageError } from './command.js'
import { reasonOf } from './opened-store.js'
import { printableJson } from './printable.js'

/** The options that say who does something, and where that is written down, as `parseArgs` takes them. */
export const CHANGE_OPTIONS = {
  yes: { type: 'boolean' },
  by: { type: 'string' },
  'audit-log': { type: 'string' },
} as const

/** What those options were given as. */
export interface ChangeFlags {
  readonly yes?: boolean | undefined
  readonly by?: string | undefined
  readonly 'audit-log'?: string | undefined
}

/** What `--help` says about them. */
export const CHANGE_HELP = `The change:
  --yes                does it unasked. Without it, and without a terminal to ask at, nothing is changed
  --by NAME            who does it, for the audit line: the user of this system unless you say otherwise
  --audit-log FILE     appends the audit line to a file as well, which must be writable before anything is changed.
                       Without it ONCEKEY_AUDIT_LOG in the environment. The line is on standard error in any case
`

/**
 * Has `work` write down what it does. What is about to be done goes to the file alone; what was done also to standard error.
 *
 * @throws {UsageError} when `--by` names nobody, or the file cannot be written before: then it must not be done.
 * @throws {StoreFailedError} when it does not take the line afterwards; that is on standard error then.
 */
export async function withAuditTrail<T>(
  flags: ChangeFlags,
  output: Output,
  work: (trail: AuditTrail) => Promise<T>,
): Promise<T> {
  const file = flags['audit-log'] ?? (process.env.ONCEKEY_AUDIT_LOG || undefined)
  if (flags.by?.trim() === '') throw new UsageError('--by is the name of whoever does it, and not empty')
  const by = flags.by ?? userOfThis()
  const descriptor = file === undefined ? undefined : openedFile(file)

  function append(entry: AuditEntry): void {
    if (descriptor === undefined) return
    writeAudit(
      jsonLines((line) => writeSync(descriptor, line)),
      { ...entry, by },
    )
    flush(descriptor)
  }

  try {
    return await work({
      announce(entry) {
        try {
          append(entry)
        } catch (cause) {
          throw new UsageError(`nothing was changed: ${file} cannot be written: ${reasonOf(cause)}`, {
            cause,
          })
        }
      },
      done(entry) {
        writeAudit(
          jsonLines((line) => output.err(line)),
          { ...entry, by },
        )
        try {
          append(entry)
        } catch (cause) {
          throw new StoreFailedError(
            `it is done, and ${file} has only the line that announced it: ${reasonOf(cause)}`,
            { cause },
          )
        }
      },
    })
  } finally {
    if (descriptor !== undefined) closeSync(descriptor)
  }
}

function openedFile(file: string): number {
  try {
    return openSync(file, 'a', 0o600)
  } catch (cause) {
    throw new UsageError(`nothing was changed: ${file} cannot be written: ${reasonOf(cause)}`, { cause })
  }
}

function flush(descriptor: number): void {
  try {
    fsyncSync(descriptor)
  } catch (error) {
    // A pipe or a terminal has no disk.
    if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error
  }
}

/** Lines as pino writes them. */
function jsonLines(write: (line: string) => unknown): AuditLogger {
  const at = (level: number) => (line: object, msg: string) =>
    void write(`${printableJson({ level, time: Date.now(), ...line, msg })}\n`)
  return { info: at(30), warn: at(40) }
}

function userOfThis(): string {
  try {
    return userInfo().username
  } catch {
    // A container may run as a number that has no name.
    return `uid ${process.getuid?.() ?? 'unknown'}`
  }
}
