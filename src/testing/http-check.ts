import type { Trial } from './http-trial.js'

/** Which promise a check is about: of the IETF draft, or of what careful servers do besides. */
export type HttpConformanceTier = 'draft' | 'careful'

/** One promise of a server, and how to see whether it is kept. */
export interface HttpCheck {
  /** Stable, for programs. */
  readonly id: string
  readonly tier: HttpConformanceTier
  /** What the server does, as the end of a sentence about it. */
  readonly title: string
  /** Where that is written. */
  readonly source: string
  /** What a server that keeps the promise is seen to do. */
  readonly expected: string
  /** How much it asks of the server: requests, and the effects that they have on one that keeps its promises. */
  readonly cost: HttpCheckCost
  /** Gives what was seen, in a few words. Throws a `Breach` or `NotJudged`. */
  run(trial: Trial): Promise<string>
}

/** What a check costs the server. */
export interface HttpCheckCost {
  readonly requests: number
  readonly effects: number
  /** Whether it sends a race of duplicates besides. */
  readonly race?: boolean
}

/** The revision of the draft that the checks were written from. */
export const DRAFT = 'draft-ietf-httpapi-idempotency-key-header-07'

/** A section of the draft, as a source. */
export function draft(section: string): string {
  return `${DRAFT}, section ${section}`
}
