import { isUtf8 } from 'node:buffer'
import type { Outcome } from '../contract/store.js'
import { isSealed } from '../stores/seal.js'

/** What of a kept outcome may be shown to anybody who operates the service: nothing of its body. */
export interface KeptOutcome {
  readonly result: Outcome['result']
  /** The HTTP status; `null` for what was no HTTP answer, and for what is sealed. */
  readonly status: number | null
  /** How long the body is, sealed or not; `null` for a tombstone. */
  readonly bytes: number | null
  readonly sealed: boolean
}

/** A body, for those who asked for it. */
export interface ShownBody {
  readonly headers: readonly (readonly [name: string, value: string | readonly string[]])[]
  readonly encoding: 'utf8' | 'base64'
  readonly text: string
}

interface Head {
  readonly status?: unknown
  readonly headers?: unknown
}

/** What an outcome says of itself. */
export function keptOutcome(outcome: Outcome): KeptOutcome {
  const { status } = headOf(outcome)
  return {
    result: outcome.result,
    status: typeof status === 'number' ? status : null,
    bytes: outcome.body?.byteLength ?? null,
    sealed: isSealed(outcome),
  }
}

/** Headers and body of an outcome; `undefined` where there is nothing to read: a tombstone, or a sealed one. */
export function bodyOf(outcome: Outcome): ShownBody | undefined {
  if (outcome.body === null || isSealed(outcome)) return undefined
  const { headers } = headOf(outcome)
  const bytes = Buffer.from(outcome.body)
  const encoding = isUtf8(bytes) ? 'utf8' : 'base64'
  return {
    headers: Array.isArray(headers) ? headers : [],
    encoding,
    text: bytes.toString(encoding),
  }
}

/** The head of an HTTP answer is JSON; that of a function's value, and a sealed one, has nothing for people. */
function headOf({ head }: Outcome): Head {
  try {
    const parsed: unknown = JSON.parse(head)
    return typeof parsed === 'object' && parsed !== null ? parsed : {}
  } catch {
    return {}
  }
}
