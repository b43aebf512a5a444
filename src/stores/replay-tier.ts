import { randomUUID } from 'node:crypto'
import { isIdempotencyError } from '../contract/errors.js'
import type { ClaimRequest, ClaimResult, IdempotencyStore, StoredRecord } from '../contract/store.js'
import { copyOf, readCopy } from './replay-envelope.js'

/** Copies of completed outcomes, in a store that may be lost, late or wrong at any time. Nothing here rejects. */
export interface ReplayTier {
  /** Looks for the answer of a record, for a short while. */
  look(id: string): Promise<Look>
  /** Copies the outcome of a completed record in the background. */
  copy(request: ClaimRequest, fingerprint: string): void
  /** @returns a sentence for operators when the tier cannot be used. */
  check(): Promise<string | undefined>
}

/** An answer, or that there is none yet, or that nothing can be learnt: no reply, or one that is not to be believed. */
export type Look = Extract<ClaimResult, { status: 'completed' }> | 'absent' | 'unusable'

/** How long a tier that failed is left alone. */
const REST_MS = 1000

/** How long copying may take. A copy ends this much before its record, or earlier. */
const COPY_MS = 1000
const MOST_AT_ONCE = 32

const REPORT_EVERY_MS = 60_000

/** Makes the tier of copies in `replays` of what `durable` holds. */
export function createReplayTier(options: {
  readonly durable: IdempotencyStore
  readonly replays: IdempotencyStore
  readonly timeoutMs: number
}): ReplayTier {
  const { durable, replays, timeoutMs } = options
  const copying = new Set<string>()
  /** Zero while the tier answers. */
  let restsUntil = 0
  let quietUntil = 0

  async function look(id: string): Promise<Look> {
    const now = performance.now()
    if (now < restsUntil) return 'unusable'
    // After a rest one caller finds out whether it is back. The others need not wait for that.
    if (restsUntil > 0) restsUntil = now + REST_MS
    let found: StoredRecord | undefined
    try {
      found = await within(timeoutMs, () => replays.find(id))
      restsUntil = 0
    } catch (error) {
      // One record that cannot be read says nothing about the next.
      const isAboutThisRecord = isIdempotencyError(error) && !error.retryable
      restsUntil = isAboutThisRecord ? 0 : performance.now() + REST_MS
      report('The replays tier failed', error)
      return 'unusable'
    }
    if (found === undefined) return 'absent'
    // Somebody is copying, or whatever else it may be: who may run is decided elsewhere.
    if (found.status !== 'completed') return 'unusable'
    const copy = readCopy(found)
    if (copy === undefined) {
      report('The replays tier holds what is no copy', `record ${id}`)
      return 'unusable'
    }
    // The tier forgets a copy in time by itself. Where it does not, this clock can only make it end earlier.
    return Date.now() < copy.endsAt ? copy.answer : 'unusable'
  }

  function copy(request: ClaimRequest, fingerprint: string): void {
    const { id } = request
    // What is left out now is copied at a later retry.
    if (copying.has(id) || copying.size >= MOST_AT_ONCE) return
    copying.add(id)
    within(COPY_MS, () => makeCopy(request, fingerprint))
      .catch((error: unknown) => report('An outcome was not copied to the replays tier', error))
      .finally(() => copying.delete(id))
  }

  async function makeCopy({ id, meta }: ClaimRequest, fingerprint: string): Promise<void> {
    // The claim bounds everything that comes after it, by the clock of the tier: however late the completion gets there,
    // it is refused once COPY_MS have passed, and a copy that lives COPY_MS less than its record ends before it. So the
    // record is read after the claim. A copy that is not completed leaves nothing for longer than that either.
    const token = randomUUID()
    const limits = { leaseMs: COPY_MS, ttlMs: COPY_MS, takeOver: false, mayBeLost: true }
    const claim = await replays.claim({ id, token, fingerprint, meta, ...limits })
    if (claim.status !== 'acquired') return
    const readAt = Date.now()
    const record = await durable.find(id)
    if (record?.status !== 'completed' || record.fingerprint !== fingerprint) return
    const ttlMs = Math.floor(record.expiresInMs - COPY_MS)
    if (ttlMs > 0) await replays.complete(id, token, copyOf(record, readAt + record.expiresInMs), ttlMs)
  }

  async function check(): Promise<string | undefined> {
    try {
      // What a store warns of is that it may lose records. Losing these loses nothing.
      await within(timeoutMs, async () => replays.check?.())
      return undefined
    } catch (error) {
      return `The replays tier cannot be used, and the durable store answers every retry until it can: ${reasonOf(error)}`
    }
  }

  function report(what: string, error: unknown): void {
    const now = performance.now()
    if (now < quietUntil) return
    quietUntil = now + REPORT_EVERY_MS
    const warning = `${what}: ${reasonOf(error)}. The durable store answers in its place`
    process.emitWarning(warning, 'OncekeyReplaysWarning')
  }

  return { look, copy, check }
}

/** Waits for an answer, and no longer than `ms`. A late one is dropped. */
async function within<T>(ms: number, ask: () => Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const tooLate = new Promise<never>((_, reject) => {
    // In two halves: a pause of this process ends one of them at the most, and must not pass for a pause of the tier.
    timer = setTimeout(() => {
      timer = setTimeout(() => reject(new Error(`there was no answer within ${ms} ms`)), ms / 2).unref()
    }, ms / 2).unref()
  })
  try {
    return await Promise.race([ask(), tooLate])
  } finally {
    clearTimeout(timer)
  }
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
