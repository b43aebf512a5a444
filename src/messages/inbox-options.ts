import { z } from 'zod'
import type { Duration } from '../contract/duration.js'
import { OptionsError } from '../contract/errors.js'
import type { DeadMessage } from '../contract/inbox.js'
import type { IdempotencyStore, IsolationLevel } from '../contract/store.js'
import { engineShape, resolveEngineOptions } from '../core/engine-options.js'
import { duration, fn, parseOptions, wholeNumber } from '../core/parse-options.js'
import type { HighWatermark } from './high-watermark.js'

/** A message that is being given up, as `onDead` gets it. */
export interface DyingMessage<Payload = unknown>
  extends Omit<DeadMessage, 'firstSeenAt' | 'diedAt' | 'error'> {
  /** What the last attempt failed with. */
  readonly error: unknown
  /** The message as the broker delivered it, where the adapter hands it on. */
  readonly payload: Payload | undefined
}

/**
 * What to do with a message that is given up. In a store with transactions it runs in the one that marks the message:
 * `tx` is that transaction. In another it runs before the message is marked, and may run again.
 */
export type OnDead<Client> = (message: DyingMessage, context: { readonly tx: Client }) => Promise<void> | void

/** What a message is known by whose process died while it was handled, to those who find out how that ended. */
export interface UnknownMessage {
  readonly source: string
  readonly key: string
  /** Which attempt it was. */
  readonly attempt: number
}

/** What to do with such a message, where there are no transactions to undo what was done. */
export type OnUnknownMessage =
  | 'reject'
  | 'rerun'
  | ((
      message: UnknownMessage,
    ) => Promise<'processed' | 'rerun' | 'reject'> | 'processed' | 'rerun' | 'reject')

/** What an inbox is made of. */
export interface InboxOptions<Client = unknown, Store extends IdempotencyStore = IdempotencyStore> {
  /**
   * Where it is kept which messages were processed: `postgresStore(pool)`, where that commits together with their
   * effects, or a store with leases: `redisStore(client)`, `memoryStore()`.
   */
  readonly store: Store

  /**
   * What consumes: each consumer processes every message once. Name the purpose, such as `'ledger'`, and never an
   * instance. It is a part of every key.
   */
  readonly consumer: string

  /**
   * How long it is remembered that a message was processed. Choose longer than your broker keeps messages, or than
   * anybody would reset a group back.
   *
   * @default '7d'
   */
  readonly window?: Duration

  /** How failing messages are tried. */
  readonly attempts?: {
    /**
     * After so many attempts, a message is dead.
     *
     * @default 5
     */
    readonly max?: number
    /**
     * How long adapters wait after the first failed attempt; after later ones twice, four times as long, up to a minute,
     * with full jitter.
     *
     * @default '1s'
     */
    readonly delay?: Duration
  }

  /**
   * Whether the messages behind a dead one go on (`'skip'`), or wait until it is redriven or forgotten (`'block'`).
   *
   * @default 'skip'
   */
  readonly order?: 'skip' | 'block'

  /** Is told of every message that is given up: to hand it to people, or to a topic for the dead. */
  readonly onDead?: OnDead<Client>

  /**
   * What decides whether a message is new: `highWatermark()`, or nothing for the key of each message.
   *
   * @default undefined
   */
  readonly strategy?: HighWatermark

  /**
   * How effect and entry belong together: in one transaction, or by a lease. `'lease'` is for effects that no transaction
   * of the store could undo, such as calls of other services. Read what it promises in `docs/messages.md`.
   *
   * @default 'transaction' where the store has them, otherwise 'lease'
   */
  readonly mode?: 'transaction' | 'lease'

  /**
   * How long to wait for another consumer that is at the same message. Then it is `in-progress`. At most half of
   * `storeTimeout`. In transactions only.
   *
   * @default '500ms'
   */
  readonly lockTimeout?: Duration

  /** How transactions run. */
  readonly transaction?: {
    /**
     * How strictly they are kept apart from others.
     *
     * @default the database's own
     */
    readonly isolation?: IsolationLevel
    /**
     * How often one is begun at the most, when the database refuses it for a serialization failure or a deadlock.
     *
     * @default 5
     */
    readonly attempts?: number
  }

  /**
   * How long a handler may run. Then its signal aborts, and its transaction is rolled back.
   *
   * @default '5m'
   */
  readonly maxRun?: Duration

  /**
   * How long a claim outlives a process that died while it handled a message. Leases only.
   *
   * @default '30s'
   */
  readonly lease?: Duration

  /**
   * What to do with a message whose process died while it was handled, so that nobody knows whether its effect happened:
   * `'reject'` gives it up, for people to decide; `'rerun'` processes it again; a function finds out. Leases only: with a
   * transaction everybody knows.
   *
   * @default 'reject'
   */
  readonly onUnknown?: OnUnknownMessage

  /**
   * Keeps services that share a store apart.
   *
   * @default ''
   */
  readonly namespace?: string

  /**
   * What `deriveKey` mixes in: 16 random bytes or more, the same in all processes.
   *
   * @default undefined: `deriveKey` throws
   */
  readonly secret?: string | Uint8Array

  /**
   * How long one step of the store may take. Past it, the store counts as away.
   *
   * @default '2s'
   */
  readonly storeTimeout?: Duration

  /**
   * About how often this process lets the store remove what has expired; `false` never.
   *
   * @default '1m'
   */
  readonly sweep?: Duration | false
}

/** The options of an inbox, checked and complete. */
export interface InboxSettings {
  readonly store: IdempotencyStore
  readonly consumer: string
  readonly windowMs: number
  readonly maxAttempts: number
  readonly attemptDelayMs: number
  readonly order: 'skip' | 'block'
  readonly onDead: OnDead<unknown> | undefined
  readonly usesWatermark: boolean
  readonly mode: 'transaction' | 'lease'
  readonly lockTimeoutMs: number
  readonly isolation: IsolationLevel | undefined
  readonly transactionAttempts: number
  readonly maxRunMs: number
  readonly leaseMs: number
  readonly onUnknown: OnUnknownMessage
  readonly namespace: string
  readonly secret: string | Uint8Array | undefined
  readonly storeTimeoutMs: number
  readonly sweepMs: number | false
}

const LONGEST_NAME = 255

const schema = z.strictObject({
  ...engineShape,
  store: engineShape.store.nonoptional('must be a store, such as postgresStore(pool)'),
  replayCache: z.undefined('is no option of an inbox').optional(),
  consumer: z.custom<string>(isName, 'must be text of 1 to 255 characters that names who consumes'),
  window: duration({ min: '1s' }).optional(),
  attempts: z
    .strictObject({
      max: wholeNumber(1, 1_000_000).optional(),
      delay: duration({ min: 0, max: '1h' }).optional(),
    })
    .optional(),
  order: z.enum(['skip', 'block'], `must be 'skip' or 'block'`).optional(),
  onDead: fn<OnDead<unknown>>('a function').optional(),
  strategy: z
    .custom<HighWatermark>(
      (value) => (value as HighWatermark | null)?.strategy === 'high-watermark',
      'must be what highWatermark() makes',
    )
    .optional(),
  mode: z.enum(['transaction', 'lease'], `must be 'transaction' or 'lease'`).optional(),
  lockTimeout: duration({ min: '1ms', max: '30m' }).optional(),
  transaction: z
    .strictObject({
      isolation: z
        .enum(
          ['read committed', 'repeatable read', 'serializable'],
          `must be 'read committed', 'repeatable read' or 'serializable'`,
        )
        .optional(),
      attempts: wholeNumber(1, 1000).optional(),
    })
    .optional(),
  maxRun: duration({ min: '1ms', max: '24d' }).optional(),
  lease: duration({ min: '100ms', max: '24d' }).optional(),
  onUnknown: z
    .custom<OnUnknownMessage>(
      (value) => value === 'reject' || value === 'rerun' || typeof value === 'function',
      `must be 'reject', 'rerun' or a function`,
    )
    .optional(),
})

/**
 * Checks the options of an inbox, and completes them from the defaults.
 *
 * @throws {OptionsError} naming the option that is wrong.
 */
export function resolveInboxOptions(options: unknown): InboxSettings {
  const parsed = parseOptions(schema, options, WHERE)
  const { store } = parsed
  const { storeTimeoutMs, namespace, secret, sweepMs } = resolveEngineOptions(parsed)
  const mode = parsed.mode ?? (store.inbox === undefined ? 'lease' : 'transaction')
  if (mode === 'transaction' && store.inbox === undefined)
    throw new OptionsError(
      `${WHERE}: option "mode" needs a store with transactions, such as postgresStore(pool)`,
    )
  if (mode === 'lease' && parsed.strategy !== undefined)
    throw new OptionsError(`${WHERE}: option "strategy" needs transactions, and this inbox works by leases`)
  refuseForeign(mode, parsed)
  const lockTimeoutMs = parsed.lockTimeout ?? Math.min(500, storeTimeoutMs / 2)
  if (lockTimeoutMs > storeTimeoutMs / 2)
    throw new OptionsError(
      `${WHERE}: option "lockTimeout" must be at most half of "storeTimeout" (${storeTimeoutMs} ms); got ${lockTimeoutMs} ms`,
    )
  return {
    store,
    consumer: parsed.consumer,
    windowMs: parsed.window ?? 7 * 24 * 3_600_000,
    maxAttempts: parsed.attempts?.max ?? 5,
    attemptDelayMs: parsed.attempts?.delay ?? 1000,
    order: parsed.order ?? 'skip',
    onDead: parsed.onDead,
    usesWatermark: parsed.strategy !== undefined,
    mode,
    lockTimeoutMs,
    isolation: parsed.transaction?.isolation,
    transactionAttempts: parsed.transaction?.attempts ?? 5,
    maxRunMs: parsed.maxRun ?? 5 * 60_000,
    leaseMs: parsed.lease ?? 30_000,
    onUnknown: parsed.onUnknown ?? 'reject',
    namespace,
    secret,
    storeTimeoutMs,
    sweepMs,
  }
}

const WHERE = 'createInbox'

/** An option that would change nothing is a misunderstanding. */
function refuseForeign(mode: InboxSettings['mode'], parsed: Readonly<Record<string, unknown>>): void {
  const foreign = mode === 'lease' ? ['lockTimeout', 'transaction'] : ['lease', 'onUnknown']
  const [name] = foreign.filter((option) => parsed[option] !== undefined)
  if (name === undefined) return
  const how = mode === 'lease' ? 'by leases' : 'with transactions'
  throw new OptionsError(`${WHERE}: option "${name}" says nothing to an inbox that works ${how}`)
}

function isName(value: unknown): boolean {
  return (
    typeof value === 'string' &&
    value !== '' &&
    value.length <= LONGEST_NAME &&
    value.isWellFormed() &&
    !value.includes('\0')
  )
}
