import { createHash } from 'node:crypto'
import type { ClaimResult, Outcome, StoredRecord } from '../contract/store.js'

/** A record that has completed, as `find` reports it. */
export type CompletedRecord = Extract<StoredRecord, { status: 'completed' }>

/** A retry's answer out of a copy. */
export interface CopiedAnswer {
  readonly answer: Extract<ClaimResult, { status: 'completed' }>
  /** When the durable record ends, by the clock of the process that copied it, in epoch milliseconds. */
  readonly endsAt: number
}

/**
 * The head of a copy is the format, the age of the outcome when it was copied in ms, the end of the durable record in
 * epoch ms, and a SHA-256 over everything that makes up the answer, each before a space; then the head of the outcome.
 */
const FORMAT = '1'
const PATTERN = new RegExp(`^${FORMAT} (\\d+) (\\d+) ([\\w-]{43}) `)

/** Makes a copy of the outcome of a durable record, which ends at `endsAt` in epoch milliseconds. */
export function copyOf(record: CompletedRecord, endsAt: number): Outcome {
  const { id, fingerprint, outcome, ageMs } = record
  const times = `${Math.round(ageMs)} ${Math.floor(endsAt)}`
  return { ...outcome, head: `${FORMAT} ${times} ${digest(id, fingerprint, times, outcome)} ${outcome.head}` }
}

/** Reads a copy. `undefined` when it is not what was put there for this record: damaged, cut, or another one's. */
export function readCopy(copy: CompletedRecord): CopiedAnswer | undefined {
  const { id, fingerprint } = copy
  const [start = '', age, endsAt, written] = PATTERN.exec(copy.outcome.head) ?? []
  const outcome = { ...copy.outcome, head: copy.outcome.head.slice(start.length) }
  if (start === '' || written !== digest(id, fingerprint, `${age} ${endsAt}`, outcome)) return undefined
  const ageMs = Number(age) + copy.ageMs
  return { answer: { status: 'completed', fingerprint, outcome, ageMs }, endsAt: Number(endsAt) }
}

function digest(id: string, fingerprint: string, times: string, { result, head, body }: Outcome): string {
  // JSON says where it ends, so what comes after it is the body and nothing else.
  const text = JSON.stringify([id, fingerprint, times, result, head, body === null])
  return createHash('sha256')
    .update(text)
    .update(body ?? '')
    .digest('base64url')
}
