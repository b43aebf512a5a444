import { z } from 'zod'
import type { Duration } from '../contract/duration.js'
import type { IsolationLevel, Outcome, RecordMeta, TransactionSettings } from '../contract/store.js'
import { duration, wholeNumber } from './parse-options.js'

/** What an `onUnknown` function is told about the operation whose outcome nobody knows. */
export interface UnknownOperation {
  /** The key as the client sent it. */
  readonly key: string
  /** The caller, as the scope function named it. */
  readonly scope: string
  /** How many times the operation was claimed so far. */
  readonly fence: number
  readonly meta: RecordMeta
  /**
   * The key that its runs have sent downstream under this label: ask the other side by it.
   *
   * @throws {OptionsError} without the option `secret`, or when the label is empty.
   */
  deriveKey(label: string): string
  /** Aborts when the answer would come too late to be used: after `maxRun`. */
  readonly signal: AbortSignal
}

/**
 * How an operation with an unknown outcome ended: with this outcome, or not at all (`'rerun'`), or nobody can tell
 * (`'reject'`).
 */
export type Reconciliation<TOutcome> = { readonly outcome: TOutcome } | 'rerun' | 'reject'

/** What to do with an operation whose outcome nobody knows. */
export type OnUnknown<TOutcome> =
  | 'reject'
  | 'rerun'
  | ((operation: UnknownOperation) => Promise<Reconciliation<TOutcome>> | Reconciliation<TOutcome>)

/** What a concurrent duplicate does: it is refused, or waits. */
export type WhenBusy =
  | 'reject'
  | {
      /** How long a duplicate waits for the first one's answer. */
      readonly wait: Duration
      /**
       * How many may wait at once in this process. More are refused.
       *
       * @default 10_000
       */
      readonly waiters?: number
    }

/** How `transaction()` runs. */
export interface TransactionOptions {
  /**
   * How strictly it is kept apart from other transactions. With `'repeatable read'` and `'serializable'`, keep it
   * shorter than a third of the lease: a renewal that comes between makes it begin again.
   *
   * @default the database's own
   */
  readonly isolation?: IsolationLevel
  /**
   * How long one statement waits for a lock before it fails.
   *
   * @default the database's own, which is usually for ever
   */
  readonly lockTimeout?: Duration
  /**
   * How often the work is begun at the most, when the database refuses it for a serialization failure or a deadlock.
   *
   * @default 5
   */
  readonly attempts?: number
}

/** How operations are run. May be given for an engine, and again for single routes or runs. */
export interface PolicyOptions<TOutcome = Outcome> {
  /**
   * How long an outcome answers retries, from its completion. Choose longer than your clients retry.
   *
   * @default '24h'
   */
  readonly ttl?: Duration

  /**
   * How long a claim outlives a process that died while handling a request. It is renewed while the handler runs, so
   * it need not cover your slowest handler. Shorter finds a crash sooner, and costs more renewals.
   *
   * @default '30s'
   */
  readonly lease?: Duration

  /**
   * How long one run may hold its claim. Past it the signal aborts, renewals stop, and the operation becomes unknown
   * a lease later. Choose longer than your slowest handler.
   *
   * @default '5m'
   */
  readonly maxRun?: Duration

  /**
   * What to do when an earlier run stopped without saying how it ended. `'reject'` refuses every retry until the late
   * answer comes or somebody settles it; `'rerun'` runs again under the next fence, for effects that are transactional
   * or repeatable; a function finds out.
   *
   * @default 'reject', and 'rerun' for what is `atomic`
   */
  readonly onUnknown?: OnUnknown<TOutcome>

  /**
   * What a duplicate does while the first is still running: `'reject'`, or `{ wait: '10s' }` to be answered with the
   * first one's outcome.
   *
   * @default 'reject'
   */
  readonly whenBusy?: WhenBusy

  /**
   * What happens when the store is away at the claim: `'reject'` answers 503 and runs nothing, `'run'` runs without
   * protection and reports it as an event.
   *
   * @default 'reject'
   */
  readonly onStoreOutage?: 'reject' | 'run'

  /**
   * Declares that all effects are statements of one `transaction()` (or of a transaction with `saveIn()`). What stopped
   * in the middle then never happened, and is run again by itself; and the claim need not wait for the disk. A success
   * without a transaction is an error. The store must have transactions.
   *
   * @default false
   */
  readonly atomic?: boolean

  /** How `transaction()` runs. */
  readonly transaction?: TransactionOptions
}

/** A policy, checked, in milliseconds. */
export interface Policy {
  readonly ttlMs: number
  readonly leaseMs: number
  readonly maxRunMs: number
  readonly onUnknown: OnUnknown<Outcome>
  readonly whenBusy: 'reject' | { readonly waitMs: number; readonly waiters: number }
  readonly onStoreOutage: 'reject' | 'run'
  readonly atomic: boolean
  readonly transaction: Omit<TransactionSettings, 'signal'>
}

/** The options of a policy, each checked on its own. `resolvePolicy` adds the defaults and checks them together. */
export const policyShape = {
  ttl: duration({ min: 1 }).optional(),
  lease: duration({ min: '100ms', max: '1d' }).optional(),
  maxRun: duration({ min: '100ms', max: '30d' }).optional(),
  onUnknown: z
    .custom<OnUnknown<never>>(
      (value) => value === 'reject' || value === 'rerun' || typeof value === 'function',
      `must be 'reject', 'rerun' or a function`,
    )
    .optional(),
  whenBusy: z
    .union(
      [
        z.literal('reject'),
        z.strictObject({ wait: duration({ min: 1, max: '1h' }), waiters: wholeNumber(1).optional() }),
      ],
      `must be 'reject' or { wait: '10s' }`,
    )
    .optional(),
  onStoreOutage: z.enum(['reject', 'run'], `must be 'reject' or 'run'`).optional(),
  atomic: z.boolean('must be true or false').optional(),
  transaction: z
    .strictObject(
      {
        isolation: z
          .enum(
            ['read committed', 'repeatable read', 'serializable'],
            `must be 'read committed', 'repeatable read' or 'serializable'`,
          )
          .optional(),
        lockTimeout: duration({ min: 1, max: '1h' }).optional(),
        attempts: wholeNumber(1, 1000).optional(),
      },
      'must be { isolation, lockTimeout, attempts }',
    )
    .optional(),
}

/** What `policyShape` makes of the options. */
export interface ParsedPolicy {
  readonly ttl?: number | undefined
  readonly lease?: number | undefined
  readonly maxRun?: number | undefined
  readonly onUnknown?: OnUnknown<never> | undefined
  readonly whenBusy?: 'reject' | { readonly wait: number; readonly waiters?: number | undefined } | undefined
  readonly onStoreOutage?: 'reject' | 'run' | undefined
  readonly atomic?: boolean | undefined
  readonly transaction?:
    | {
        readonly isolation?: IsolationLevel | undefined
        readonly lockTimeout?: number | undefined
        readonly attempts?: number | undefined
      }
    | undefined
}

/** Completes a parsed policy from defaults. */
export function resolvePolicy(
  parsed: ParsedPolicy,
  defaults: Policy,
  onUnknown: OnUnknown<Outcome> = usualOnUnknown(parsed, defaults),
): Policy {
  // Most single runs say nothing, and there may be many at once.
  if (onUnknown === defaults.onUnknown && Object.keys(parsed).length === 0) return defaults
  const { whenBusy: busy, transaction } = parsed
  return {
    ttlMs: parsed.ttl ?? defaults.ttlMs,
    leaseMs: parsed.lease ?? defaults.leaseMs,
    maxRunMs: parsed.maxRun ?? defaults.maxRunMs,
    onUnknown,
    whenBusy:
      busy === undefined
        ? defaults.whenBusy
        : busy === 'reject'
          ? busy
          : { waitMs: busy.wait, waiters: busy.waiters ?? 10_000 },
    onStoreOutage: parsed.onStoreOutage ?? defaults.onStoreOutage,
    atomic: parsed.atomic ?? defaults.atomic,
    transaction: {
      isolation: transaction?.isolation ?? defaults.transaction.isolation,
      lockTimeoutMs: transaction?.lockTimeout ?? defaults.transaction.lockTimeoutMs,
      attempts: transaction?.attempts ?? defaults.transaction.attempts,
    },
  }
}

/** Where `atomic` is said, it says what to do with unknown outcomes too, and not what holds for other operations. */
function usualOnUnknown({ atomic }: ParsedPolicy, defaults: Policy): OnUnknown<Outcome> {
  if (atomic === undefined || atomic === defaults.atomic) return defaults.onUnknown
  return atomic ? 'rerun' : 'reject'
}

/** The policy where nothing was said. */
export const DEFAULT_POLICY: Policy = {
  ttlMs: 24 * 3_600_000,
  leaseMs: 30_000,
  maxRunMs: 5 * 60_000,
  onUnknown: 'reject',
  whenBusy: 'reject',
  onStoreOutage: 'reject',
  atomic: false,
  transaction: { isolation: undefined, lockTimeoutMs: undefined, attempts: 5 },
}
