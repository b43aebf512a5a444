import { isDeepStrictEqual } from 'node:util'
import type { ClaimRequest, ClaimResult, Outcome, StoredRecord } from '../../src/contract/store.js'

/** What the record of one key must be, by section 3 of the design, and whether a store answers accordingly. */
export interface LifeOfAKey {
  readonly state: 'absent' | 'running' | 'unknown' | 'completed'
  readonly fence: number
  readonly fingerprint: string
  readonly kept: Outcome | undefined
  isHeldBy(token: string): boolean
  /** How many steps there were. */
  readonly changes: number

  // What a store did, and what it answered.
  claimed(request: ClaimRequest, answer: ClaimResult): void
  renewed(token: string, answer: boolean): void
  completed(token: string, outcome: Outcome, answer: boolean): void
  released(token: string, answer: boolean): void
  settled(outcome: Outcome, answer: boolean): void
  /** The lease has lapsed by the store's clock. */
  lapsed(): void
  /** Compares a record that was read with what it must be. */
  compare(record: StoredRecord | undefined): void
}

/** Begins the life of a key. `breach` is told of every answer that differs from what must be. */
export function lifeOfAKey(breach: (what: string) => void): LifeOfAKey {
  let fence = 0
  let token: string | undefined
  let fingerprint = ''
  let hasLapsed = false
  let kept: Outcome | undefined
  let changes = 0

  function stateNow(): LifeOfAKey['state'] {
    if (fence === 0) return 'absent'
    if (kept !== undefined) return 'completed'
    return hasLapsed || token === undefined ? 'unknown' : 'running'
  }

  function expect(step: string, actual: unknown, expected: unknown): void {
    if (isDeepStrictEqual(actual, expected)) return
    breach(`the store answered ${step} with ${show(actual)}, where the life of a key says ${show(expected)}`)
  }

  function grant(request: ClaimRequest, nextFence: number): void {
    fence = nextFence
    token = request.token
    fingerprint = request.fingerprint
    hasLapsed = false
  }

  function isHeldBy(asking: string): boolean {
    return fence > 0 && kept === undefined && token === asking
  }

  return {
    get state() {
      return stateNow()
    },
    get fence() {
      return fence
    },
    get fingerprint() {
      return fingerprint
    },
    get changes() {
      return changes
    },
    get kept() {
      return kept
    },
    isHeldBy,
    claimed(request, answer) {
      changes += 1
      const before = stateNow()
      const mayTake = request.takeOver && request.fingerprint === fingerprint
      if (before === 'absent') grant(request, 1)
      else if (isHeldBy(request.token)) hasLapsed = false
      else if (before === 'unknown' && mayTake) grant(request, fence + 1)
      const expected = isHeldBy(request.token)
        ? { status: 'acquired', fence }
        : before === 'running'
          ? { status: before, fingerprint }
          : before === 'unknown'
            ? { status: before, fingerprint, fence }
            : { status: before, fingerprint, outcome: kept }
      expect('a claim', essence(answer), expected)
    },
    renewed(asking, answer) {
      changes += 1
      expect('a renewal', answer, isHeldBy(asking))
      if (isHeldBy(asking)) hasLapsed = false
    },
    completed(asking, outcome, answer) {
      changes += 1
      expect('a completion', answer, fence > 0 && token === asking)
      if (isHeldBy(asking)) kept = copy(outcome)
    },
    released(asking, answer) {
      changes += 1
      expect('a release', answer, isHeldBy(asking))
      if (!isHeldBy(asking)) return
      token = undefined
      // An earlier holder may have done it, so what was taken over becomes unknown again.
      if (fence === 1) fence = 0
    },
    settled(outcome, answer) {
      changes += 1
      const isUnknown = stateNow() === 'unknown'
      expect('a settlement', answer, isUnknown)
      if (!isUnknown) return
      kept = copy(outcome)
      token = undefined
    },
    lapsed() {
      changes += 1
      hasLapsed = true
    },
    compare(record) {
      const state = stateNow()
      const expected =
        state === 'absent'
          ? undefined
          : { status: state, fingerprint, fence, ...(state === 'completed' && { outcome: kept }) }
      expect('a look at the record', record && essence(record), expected)
    },
  }
}

/** A copy whose bytes compare with those of a store, whatever kind of array either is. */
function copy(outcome: Outcome): Outcome {
  return { ...outcome, body: outcome.body && Buffer.from(outcome.body) }
}

function essence(answer: ClaimResult | StoredRecord): unknown {
  const { status } = answer
  if (status === 'acquired') return { status, fence: answer.fence }
  const { fingerprint } = answer
  const fence = 'fence' in answer && { fence: answer.fence }
  return { status, fingerprint, ...fence, ...(status === 'completed' && { outcome: copy(answer.outcome) }) }
}

function show(answer: unknown): string {
  return JSON.stringify(answer) ?? 'nothing'
}
