import { type Duration, durationMs } from '../contract/duration.js'
import { OptionsError } from '../contract/errors.js'
import type { IdempotencyStore } from '../contract/store.js'
import { createReplayTier } from './replay-tier.js'
import { assertStore, passedOn } from './wrapped-store.js'

/** The two stores, and how long one of them may take. */
export interface TieredStoreOptions {
  /** Holds every record and decides everything, as if it were alone. */
  readonly durable: IdempotencyStore
  /**
   * Holds copies of completed outcomes, from their first retry on, and answers later retries. Losing it loses nothing.
   * Its records must be of this durable store alone (for Redis: a `prefix` of their own), and its backend must forget
   * expired records by itself. Where somebody else may write to it, put a `sealedStore` around it.
   */
  readonly replays: IdempotencyStore
  /**
   * How long a claim waits for `replays` before it goes to `durable`. After a failure `replays` is left alone for a
   * second. Keep it well below the engine's `storeTimeout`.
   *
   * @default '50ms'
   */
  readonly replaysTimeout?: Duration
}

const LONGEST_TIMEOUT_MS = 10_000

/**
 * Two stores as one: `durable` decides, `replays` answers retries of what has completed. A replay tier that is lost, late
 * or wrong costs a look at the durable store, and never an answer.
 *
 * @throws {OptionsError} naming the option that is wrong.
 */
export function tieredStore(options: TieredStoreOptions): IdempotencyStore {
  const { durable, replays, replaysTimeout = '50ms' } = options ?? {}
  assertStore(durable, 'tieredStore: option "durable"')
  assertStore(replays, 'tieredStore: option "replays"')
  if (durable === replays)
    throw new OptionsError('tieredStore: option "replays" must be another store than "durable"')
  const timeoutMs = durationMs(replaysTimeout)
  if (timeoutMs === undefined || timeoutMs < 1 || timeoutMs > LONGEST_TIMEOUT_MS)
    throw new OptionsError(
      `tieredStore: option "replaysTimeout" must be a duration from 1ms to 10s; got ${String(replaysTimeout)}`,
    )
  const tier = createReplayTier({ durable, replays, timeoutMs })

  return {
    async claim(request) {
      const seen = await tier.look(request.id)
      if (typeof seen !== 'string') return seen
      const found = await durable.claim(request)
      if (found.status === 'completed' && seen === 'absent') tier.copy(request, found.fingerprint)
      return found
    },

    renew: (id, token, leaseMs) => durable.renew(id, token, leaseMs),
    complete: (id, token, outcome, ttlMs) => durable.complete(id, token, outcome, ttlMs),
    release: (id, token) => durable.release(id, token),
    find: (id) => durable.find(id),
    settle: (id, resolution, ttlMs) => durable.settle(id, resolution, ttlMs),

    async check() {
      const warnings = (await durable.check?.()) ?? []
      const problem = await tier.check()
      return problem === undefined ? warnings : [...warnings, problem]
    },

    // Not `remove`: a copy would go on to answer.
    ...passedOn(durable, ['transaction', 'completeIn', 'inbox', 'list', 'watch', 'sweep']),
  }
}
