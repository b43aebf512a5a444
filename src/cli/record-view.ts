import type { StoredRecord } from '../contract/store.js'
import { type RecordState, stateOf } from '../core/record-counts.js'
import { bodyOf, type KeptOutcome, keptOutcome, type ShownBody } from './kept-outcome.js'
import { facts } from './layout.js'
import { printable, printableLines } from './printable.js'
import { isoTime, lengthText } from './times.js'

/** A record as `--json` writes it. Within a format, fields may be added; nothing else changes. */
export interface RecordView {
  readonly format: 1
  readonly id: string
  readonly state: RecordState
  readonly key: string
  readonly route: string
  readonly scopeHash: string
  /** When it was claimed first, by the clock of the process that did, in ISO 8601. */
  readonly firstSeen: string | null
  readonly ageMs: number
  readonly fence: number
  readonly fingerprint: string
  /** Of a running one. */
  readonly leaseLeftMs: number | null
  /** When it is forgotten: after that, a retry runs the operation again. */
  readonly expiresInMs: number
  readonly outcome: (KeptOutcome & { readonly ageMs: number; readonly body?: ShownBody | null }) | null
}

/** Makes the view of a record, with what is in its outcome only where that was asked for. */
export function recordView(record: StoredRecord, withBody = false): RecordView {
  const { id, meta, fence, fingerprint, expiresInMs } = record
  return {
    format: 1,
    id,
    state: stateOf(record),
    key: meta.key,
    route: meta.route,
    scopeHash: meta.scope,
    firstSeen: isoTime(meta.firstSeenAt),
    ageMs: Math.max(0, Date.now() - meta.firstSeenAt),
    fence,
    fingerprint,
    leaseLeftMs: record.status === 'running' ? Math.round(record.leaseLeftMs) : null,
    expiresInMs: Math.round(expiresInMs),
    outcome:
      record.status === 'completed'
        ? {
            ...keptOutcome(record.outcome),
            ageMs: Math.round(record.ageMs),
            ...(withBody && { body: bodyOf(record.outcome) ?? null }),
          }
        : null,
  }
}

const MEANING: Readonly<Record<RecordState, string>> = {
  running: 'a request is at work on it',
  unknown: 'whoever ran it stopped without saying how it ended; its effect may or may not exist',
  completed: 'it ended, and its answer is kept for retries',
  tombstone: 'it ended, and its answer was not kept; retries are refused with 409',
}

/** A record for people. */
export function recordText(view: RecordView): string {
  const { state, outcome } = view
  const expiry = isoTime(Date.now() + view.expiresInMs)
  return facts([
    ['key', printable(view.key)],
    ['state', `${state}: ${MEANING[state]}`],
    ['route', printable(view.route)],
    ['first seen', `${view.firstSeen ?? '?'}, ${lengthText(view.ageMs)} ago`],
    ['fence', `${view.fence}${view.fence === 1 ? '' : ': it was claimed so many times'}`],
    ['lease left', view.leaseLeftMs === null ? undefined : lengthText(view.leaseLeftMs)],
    ['outcome', outcome === null ? undefined : outcomeText(outcome)],
    ['kept', outcome === null ? undefined : keptText(outcome.ageMs)],
    ['forgotten', `${expiry ?? '?'}, in ${lengthText(view.expiresInMs)}; a retry after that runs it again`],
    ['scope', `${printable(view.scopeHash)} (a hash)`],
    ['id', printable(view.id)],
  ])
}

/** Headers and body of an outcome, for people. */
export function bodyText({ outcome }: RecordView): string {
  if (outcome === null) return '\nThere is no answer.\n'
  const { body } = outcome
  if (outcome.sealed)
    return '\nThe answer is sealed. ONCEKEY_SEALING_KEYS in the environment opens it: the keys of sealedStore, with commas between.\n'
  if (body === undefined || body === null) return '\nThe answer was not kept.\n'
  const headers = body.headers.map(
    ([name, value]) => `${printable(`${name}: ${[value].flat().join(', ')}`)}\n`,
  )
  const text =
    body.encoding === 'utf8'
      ? `${printableLines(body.text)}\n`
      : `(${outcome.bytes} bytes that are no text: --json has them in base64)\n`
  return `\n${headers.join('')}\n${text}`
}

/** What an outcome is, in few words. */
export function outcomeText({ result, status, bytes, sealed }: KeptOutcome): string {
  const size = bytes === null ? 'not kept' : `${bytes} bytes`
  return `${status ?? result}, ${size}${sealed ? ', sealed' : ''}`
}

function keptText(ageMs: number): string {
  return `${isoTime(Date.now() - ageMs) ?? '?'}, ${lengthText(ageMs)} ago`
}
