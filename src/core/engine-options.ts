import { z } from 'zod'
import type { Duration } from '../contract/duration.js'
import type { IdempotencyStore } from '../contract/store.js'
import { duration, wholeNumber } from './parse-options.js'
import type { ReplayCacheLimits, ReplayCacheOptions } from './replay-cache.js'

/** What an engine is made of. */
export interface EngineOptions {
  /**
   * Where claims and outcomes live: `memoryStore()`, `redisStore(client)`, `postgresStore(pool)`.
   *
   * @default memoryStore(), which protects one process for as long as it lives
   */
  readonly store?: IdempotencyStore

  /**
   * Keeps services that share a store apart: the same scope and key in two namespaces are two operations.
   *
   * @default ''
   */
  readonly namespace?: string

  /**
   * How long one call of the store may take. Past it, the store counts as away.
   *
   * @default '2s'
   */
  readonly storeTimeout?: Duration

  /**
   * How much this process remembers of completed outcomes; `false` asks the store every time.
   *
   * @default { entries: 10_000, bytes: 33_554_432, maxAge: '1m' }
   */
  readonly replayCache?: ReplayCacheOptions | false

  /**
   * About how often this process lets the store remove what has expired, where the store needs that; `false` never,
   * when something else calls `store.sweep()`.
   *
   * @default '1m'
   */
  readonly sweep?: Duration | false

  /**
   * What `deriveKey` mixes in, so that nobody outside can guess a derived key: 16 random bytes or more, as bytes or
   * text. The same in all processes, and for as long as operations may run again: another secret makes other keys.
   *
   * @default undefined: `deriveKey` throws
   */
  readonly secret?: string | Uint8Array
}

/** The options of an engine, each checked on its own. */
export const engineShape = {
  store: z
    .custom<IdempotencyStore>(
      isStore,
      'must be a store, such as memoryStore(), redisStore(client) or postgresStore(pool)',
    )
    .optional(),
  namespace: z.string('must be a string').optional(),
  storeTimeout: duration({ min: '10ms', max: '1h' }).optional(),
  replayCache: z
    .union(
      [
        z.literal(false),
        z.strictObject({
          entries: wholeNumber(1, 100_000_000).optional(),
          bytes: wholeNumber(1024).optional(),
          maxAge: duration({ min: 1 }).optional(),
        }),
      ],
      'must be false or { entries, bytes, maxAge }',
    )
    .optional(),
  sweep: z
    .union([z.literal(false), duration({ min: '1s', max: '7d' })], 'must be false or a duration')
    .optional(),
  secret: z.custom<string | Uint8Array>(isSecret, 'must be text or bytes, 16 bytes or more').optional(),
}

/** What `engineShape` makes of the options. */
export interface ParsedEngineOptions {
  readonly store?: IdempotencyStore | undefined
  readonly namespace?: string | undefined
  readonly storeTimeout?: number | undefined
  readonly replayCache?:
    | false
    | {
        readonly entries?: number | undefined
        readonly bytes?: number | undefined
        readonly maxAge?: number | undefined
      }
    | undefined
  readonly sweep?: number | false | undefined
  readonly secret?: string | Uint8Array | undefined
}

/** Completes the options of an engine, but for its store, from the defaults. */
export function resolveEngineOptions(parsed: ParsedEngineOptions): {
  readonly namespace: string
  readonly storeTimeoutMs: number
  readonly replayCache: ReplayCacheLimits | false
  readonly sweepMs: number | false
  readonly secret: string | Uint8Array | undefined
} {
  const { replayCache } = parsed
  return {
    namespace: parsed.namespace ?? '',
    storeTimeoutMs: parsed.storeTimeout ?? 2000,
    replayCache: replayCache !== false && {
      entries: replayCache?.entries ?? 10_000,
      bytes: replayCache?.bytes ?? 32 * 1024 * 1024,
      maxAgeMs: replayCache?.maxAge ?? 60_000,
    },
    sweepMs: parsed.sweep ?? 60_000,
    secret: parsed.secret,
  }
}

const STORE_METHODS = ['claim', 'renew', 'complete', 'release', 'find', 'settle'] as const

function isStore(value: unknown): value is IdempotencyStore {
  if (typeof value !== 'object' || value === null) return false
  return STORE_METHODS.every((name) => typeof (value as Record<string, unknown>)[name] === 'function')
}

const SHORTEST_SECRET_BYTES = 16

function isSecret(value: unknown): value is string | Uint8Array {
  if (typeof value === 'string') return Buffer.byteLength(value) >= SHORTEST_SECRET_BYTES
  return value instanceof Uint8Array && value.byteLength >= SHORTEST_SECRET_BYTES
}
