import { createHmac, timingSafeEqual } from 'node:crypto'

/** Who confirms. */
export interface Confirmer {
  readonly by: string
  readonly session?: string | undefined
}

/** Proves that a person was shown what would happen, a moment ago, and by this console. */
export interface Confirmations {
  /** Makes the proof that goes into the page that asks. `what` is everything that is shown. */
  make(who: Confirmer, what: readonly (string | number)[]): string
  /** Whether `proof` was made for this person and exactly this, and not too long ago. */
  holds(proof: string, who: Confirmer, what: readonly (string | number)[]): boolean
}

/** How long a page that asks may be left open. */
export const CONFIRM_WITHIN_MS = 15 * 60_000

/** By how much the clocks of two processes may differ. */
const CLOCK_SKEW_MS = 60_000

/**
 * Makes proofs with an HMAC over the person, the session, the change and the time: nobody else can send the form, nor send
 * another one with it, and no process has to remember anything. Processes with one secret accept each other's.
 */
export function createConfirmations(
  secret: string | Uint8Array,
  now: () => number = Date.now,
): Confirmations {
  function proofOf({ by, session }: Confirmer, what: readonly (string | number)[], madeAt: number): string {
    // A list in JSON: no two of them have the same text.
    const text = JSON.stringify(['oncekey console', by, session ?? null, madeAt, what])
    return `${madeAt.toString(36)}.${createHmac('sha256', secret).update(text).digest('base64url')}`
  }

  return {
    make: (who, what) => proofOf(who, what, now()),

    holds(proof, who, what) {
      const madeAt = Number.parseInt(proof.split('.', 1)[0] ?? '', 36)
      const ageMs = now() - madeAt
      // A time that is none compares as false, too.
      if (!(ageMs >= -CLOCK_SKEW_MS && ageMs <= CONFIRM_WITHIN_MS)) return false
      const given = Buffer.from(proof)
      const right = Buffer.from(proofOf(who, what, madeAt))
      return given.byteLength === right.byteLength && timingSafeEqual(given, right)
    },
  }
}
