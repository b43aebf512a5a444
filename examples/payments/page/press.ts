import type { Trouble } from '../demo-events.js'

/** What the visitor has chosen to go wrong. */
export type Network = 'good' | 'offline' | Trouble

/** One request, as the page saw it. */
export interface Attempt {
  readonly number: number
  readonly sentAt: number
  readonly path: string
  readonly key: string | null
  readonly network: Network
  ended?: {
    readonly at: number
    readonly how: 'answered' | 'lost' | 'given-up' | 'offline' | 'reloaded'
    readonly status?: number
    readonly replayed?: boolean
    readonly code?: string
  }
}

/** How a press ended, for now: what has no answer may go on. */
export type End =
  | { readonly kind: 'paid' }
  | { readonly kind: 'refused'; readonly says: string }
  | { readonly kind: 'settled'; readonly status: number }
  | { readonly kind: 'no-answer' | 'unknown' | 'reloaded' }

/** One press of Pay, and everything that became of it in this tab. */
export interface Press {
  /** Names the operation, and the transfers in the ledger that come of it. */
  readonly id: string
  readonly number: number
  /** In cents. */
  readonly amount: number
  readonly withKey: boolean
  readonly startedAt: number
  readonly attempts: Attempt[]
  /** When the page was loaded again, and went on. */
  readonly resumedAt: number[]
  end?: End | undefined
}

const STORED_AS = 'demo:press'

/** A press that nothing was sent for yet. It has the number after that of the press before. */
export function newPress(after: Press | undefined, amount: number, withKey: boolean): Press {
  const number = (after?.number ?? 0) + 1
  const chance = crypto.getRandomValues(new Uint32Array(1)).join('')
  return {
    id: `${withKey ? 'keyed' : 'keyless'}-${number}-${chance}`,
    number,
    amount,
    withKey,
    startedAt: Date.now(),
    attempts: [],
    resumedAt: [],
  }
}

/** What a press is called in the ledger says which one it was. */
export function pressOf(
  reference: string,
): { readonly number: string; readonly withKey: boolean } | undefined {
  const [, kind, number] = /^(keyed|keyless)-(\d+)-/.exec(reference) ?? []
  return number === undefined ? undefined : { number, withKey: kind === 'keyed' }
}

/** The key that the press was sent with, once it was sent with one. */
export function keyOf(press: Press): string | undefined {
  return press.attempts.find(({ key }) => key)?.key ?? undefined
}

/** Whether the same operation may go on. */
export function isOpen(press: Press): boolean {
  return press.withKey && (!press.end || press.end.kind === 'no-answer' || press.end.kind === 'unknown')
}

/** Before anything is sent: a page that is loaded again must find what it was doing. */
export function store(press: Press): void {
  sessionStorage.setItem(STORED_AS, JSON.stringify(press))
}

/** A page that is loaded again finds nothing. */
export function forget(): void {
  sessionStorage.removeItem(STORED_AS)
}

/** The last press of this tab, as it was left. */
export function stored(): Press | undefined {
  const press = JSON.parse(sessionStorage.getItem(STORED_AS) ?? 'null') as Press | null
  for (const attempt of press?.attempts ?? []) attempt.ended ??= { at: Date.now(), how: 'reloaded' }
  return press ?? undefined
}
