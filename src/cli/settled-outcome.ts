import { readFileSync } from 'node:fs'
import type { Outcome } from '../contract/store.js'
import { valueOutcome } from '../core/operation.js'
import { outcomeOf } from '../http/http-answer.js'
import { createHeaderFilter } from '../http/kept-headers.js'
import { outcomeOfResponse } from '../http/response-outcome.js'
import { allowsBody, settledStatus } from '../operator/settled-status.js'
import { UsageError } from './command.js'

/** The options that say what an operation was answered with, as `parseArgs` takes them. */
export const OUTCOME_OPTIONS = {
  status: { type: 'string' },
  header: { type: 'string', multiple: true },
  body: { type: 'string' },
  value: { type: 'string' },
  tombstone: { type: 'boolean' },
} as const

/** What those options were given as. */
export interface OutcomeFlags {
  readonly status?: string | undefined
  readonly header?: readonly string[] | undefined
  readonly body?: string | undefined
  readonly value?: string | undefined
  readonly tombstone?: boolean | undefined
}

/** What `--help` says about them. */
export const OUTCOME_HELP = `The answer that retries get:
  --status STATUS      of an HTTP request: its status, such as 201
  --header 'N: value'  a header of it, such as Location; may be repeated
  --body JSON | @FILE  its body, byte for byte. JSON, unless a header Content-Type says what else it is; empty without it
  --value JSON         of a function that run() ran: the value that it gave. "undefined" for none
  --tombstone          it happened, and nobody can say any more what the answer was: retries are refused with 409
                       IDEMPOTENCY_RESPONSE_NOT_KEPT, and never run it. With --status where it was an HTTP request
`

/** An outcome that an operator gives, and which kind of operation can have it. */
export interface SettledOutcome {
  readonly outcome: Outcome
  readonly kind: 'http' | 'value'
  readonly status?: number
}

/**
 * The outcome that the options describe.
 *
 * @throws {UsageError} when they describe none, or two.
 */
export function settledOutcome(flags: OutcomeFlags): SettledOutcome {
  const { status, header, body, value, tombstone = false } = flags
  if (status === undefined) {
    if (header !== undefined || body !== undefined)
      throw new UsageError('say the status of the answer too: --status=201')
    if (tombstone && value === undefined)
      return { kind: 'value', outcome: { ...valueOutcome(null), body: null } }
    if (value === undefined || tombstone)
      throw new UsageError(
        'say what it was answered with: --status=201 --body=JSON for an HTTP request, --value=JSON for a function, or --tombstone. If it did not happen: oncekey release',
      )
    return { kind: 'value', outcome: valueOutcome(valueIn(value)) }
  }
  if (value !== undefined) throw new UsageError('--value is of a function, and --status of an HTTP request')
  const code = statusIn(status)
  if (!tombstone) return { kind: 'http', status: code, outcome: answerOutcome(code, header ?? [], body) }
  if (header !== undefined || body !== undefined)
    throw new UsageError('--tombstone keeps no answer: leave out --header and --body')
  const outcome = outcomeOf({ status: code, headers: [], body: 'not-kept', isText: false })
  return { kind: 'http', status: code, outcome }
}

function answerOutcome(status: number, lines: readonly string[], body: string | undefined): Outcome {
  const headers = headersIn(lines)
  if (body === undefined) return outcomeOfResponse({ status, headers })
  if (!allowsBody(status)) throw new UsageError(`an answer with ${status} has no body`)
  const bytes = bytesIn(body)
  const text = bytes.toString()
  // What is text stays text: the application sees a replay as it saw its own answer.
  const isText = Buffer.from(text).equals(bytes)
  if (headers['content-type'] === undefined) {
    if (!isText || !isJson(text))
      throw new UsageError(
        "the body is no JSON. If it is something else, say so: --header='Content-Type: ...'",
      )
    headers['content-type'] = 'application/json; charset=utf-8'
  }
  return outcomeOfResponse({ status, headers, body: isText ? text : bytes })
}

function statusIn(text: string): number {
  const status = settledStatus(text)
  if (status !== undefined) return status
  throw new UsageError(`--status is a final status of HTTP, from 200 to 599; got "${text}"`)
}

const keptHeaders = createHeaderFilter()

function headersIn(lines: readonly string[]): Record<string, string | string[]> {
  // Without a prototype: `constructor` is a name like any other here.
  const headers: Record<string, string | string[]> = Object.create(null)
  for (const line of lines) {
    const [, name, given] = /^([!#$%&'*+.^_`|~\w-]+):([\t\x20-\x7e]*)$/.exec(line) ?? []
    if (name === undefined || given === undefined)
      throw new UsageError(`a header is given as 'Name: value', in ASCII; got "${line}"`)
    const lower = name.toLowerCase()
    const value = given.trim()
    if (keptHeaders({ [lower]: value }).length === 0)
      throw new UsageError(
        `the header ${name} is not kept: it belongs to one exchange, and each replay has its own`,
      )
    const before = headers[lower]
    headers[lower] = before === undefined ? value : [before, value].flat()
  }
  return headers
}

function bytesIn(given: string): Buffer {
  if (!given.startsWith('@')) return Buffer.from(given)
  const file = given.slice(1)
  try {
    return readFileSync(file)
  } catch (cause) {
    throw new UsageError(`${file} cannot be read: ${(cause as Error).message}`, { cause })
  }
}

function valueIn(text: string): unknown {
  if (text === 'undefined') return undefined
  if (isJson(text)) return JSON.parse(text)
  throw new UsageError(`--value is JSON, or undefined; got ${text}`)
}

function isJson(text: string): boolean {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}
