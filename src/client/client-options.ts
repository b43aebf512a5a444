import { type Duration, durationMs } from '../contract/duration.js'
import { OptionsError } from '../contract/errors.js'
import type { CallProgress } from './call-errors.js'
import type { ItemStorage, KeyStorage } from './key-storage.js'
import { type RetryDelayOptions, retryDelayMs } from './retry-delay.js'

/** What `createFetch` takes, and all of it again for a single call in `init.idempotency`. */
export interface ClientOptions {
  /**
   * How many failed attempts are followed by another. An answer that the first request is still running is no
   * failure: the client asks again until the deadline.
   *
   * @default 5
   */
  readonly retries?: number

  /** How waits between attempts grow: exponentially, with full jitter. */
  readonly backoff?: RetryDelayOptions

  /**
   * The most of a `Retry-After` that is obeyed. Longer ones are cut to it, so that one answer cannot hold a call for
   * an hour.
   *
   * @default '1m'
   */
  readonly maxRetryAfter?: Duration

  /**
   * How long one attempt may take, with its answer where that is read whole. Then it is given up, and counts as
   * failed. Choose it longer than your slowest answer.
   *
   * @default '30s'
   */
  readonly timeout?: Duration

  /**
   * How long the whole call may take: storage, hooks, attempts and waits.
   *
   * @default '2m'
   */
  readonly deadline?: Duration

  /**
   * The methods whose calls carry a key. A call that names a `key` or an `operation` carries it whatever its method.
   *
   * @default ['POST', 'PATCH']
   */
  readonly methods?: readonly Uppercase<string>[]

  /**
   * The methods that are retried without a key, since HTTP calls them idempotent (RFC 9110, section 9.2.2). Methods in
   * neither list are sent once, as by plain `fetch`.
   *
   * @default ['GET', 'HEAD', 'OPTIONS', 'PUT', 'DELETE']
   */
  readonly keylessMethods?: readonly Uppercase<string>[]

  /**
   * The header that carries the key.
   *
   * @default 'Idempotency-Key'
   */
  readonly header?: string

  /**
   * Whether keys are sent in quotes, as draft-ietf-httpapi-idempotency-key-header has it. Most servers want a bare
   * value. Ours takes both, but keys of your own with other characters than letters, digits and `_.:~+/=@-` need quotes.
   *
   * @default false
   */
  readonly quoteKey?: boolean

  /** Where the keys of named operations are stored: `sessionStorage`, `localStorage`, or an object of your own. */
  readonly storage?: KeyStorage | ItemStorage

  /**
   * How long the server answers retries of a key. A key that is older is not sent any more: the server may have
   * forgotten it, and would do the operation again. Choose it no longer than the server's ttl.
   *
   * @default '24h'
   */
  readonly keyLifetime?: Duration

  /**
   * Whether the answer of a call with a key is read whole before you get it, so that a connection that breaks in the
   * middle of it is an attempt that failed. `false` for answers that are read while they come. Streams of events
   * (`text/event-stream`) never are read before.
   *
   * @default true
   */
  readonly bufferAnswer?: boolean

  /**
   * Is told of each attempt before it is waited for and sent, and is awaited. What it throws ends the call, and nothing
   * more is sent.
   */
  readonly onAttempt?: (attempt: Attempt) => void | Promise<void>

  /**
   * What sends a request.
   *
   * @default the global `fetch` at the time of `createFetch`
   */
  readonly fetch?: SendRequest
}

/** The shape of `fetch`. */
export type SendRequest = (input: string | URL | Request, init?: RequestInit) => Promise<Response>

/** The options of one call. It names a key, or an operation, or neither, and then it makes a key for itself. */
export type CallOptions = ClientOptions &
  (
    | {
        /** A key of your own. It is sent whatever the method. */
        readonly key?: string | undefined
        readonly operation?: never
      }
    | {
        /** The name of the operation, for which a key is stored in `storage`. Calls of one name are one operation. */
        readonly operation: string
        readonly key?: never
      }
  )

/** An attempt that is about to be made, with what became of the one before. */
export interface Attempt extends CallProgress {
  /** How long until it is sent. */
  readonly delayMs: number
}

/** The options of all calls, checked, with their defaults. Durations are milliseconds. */
export interface ClientSettings {
  readonly retries: number
  readonly backoff: RetryDelayOptions
  readonly maxRetryAfter: number
  readonly timeout: number
  readonly deadline: number
  readonly methods: readonly string[]
  readonly keylessMethods: readonly string[]
  readonly header: string
  readonly quoteKey: boolean
  readonly storage: KeyStorage | ItemStorage | null
  readonly keyLifetime: number
  readonly bufferAnswer: boolean
  readonly onAttempt: (attempt: Attempt) => void | Promise<void>
  readonly fetch: SendRequest
}

/** The options of one call. */
export interface CallSettings extends ClientSettings {
  /** Empty where the call names none. */
  readonly key: string
  /** Empty where the call names none. */
  readonly operation: string
}

/** What is in effect where nobody says anything else. A key is of one call, and no option of all. */
export function defaultSettings(): ClientSettings {
  return {
    retries: 5,
    backoff: {},
    maxRetryAfter: 60_000,
    timeout: 30_000,
    deadline: 120_000,
    keyLifetime: 86_400_000,
    methods: ['POST', 'PATCH'],
    keylessMethods: ['GET', 'HEAD', 'OPTIONS', 'PUT', 'DELETE'],
    header: 'Idempotency-Key',
    quoteKey: false,
    storage: null,
    bufferAnswer: true,
    onAttempt() {},
    fetch: globalThis.fetch,
  }
}

/**
 * The settings that `options` make, on top of `base`.
 *
 * @throws {OptionsError} naming the option that is wrong, its type and its value. One that does not exist has none.
 */
export function resolveSettings<T extends ClientSettings>(options: CallOptions, base: T): T {
  const settings = { ...base } as Record<string, unknown>
  for (const [name, given] of Object.entries(options)) {
    if (given === undefined) continue
    // What is there already says of what type it is, and that there is such an option.
    const type = typeof settings[name]
    // All numbers but `retries` are durations, and a plain number reads alike.
    const value = type === 'number' ? durationMs(given) : given
    if (typeof value !== type || value === '')
      throw new OptionsError(`oncekey/client: option "${name}" (${type}) cannot be ${given}`)
    settings[name] = value
  }
  retryDelayMs(1, settings.backoff as RetryDelayOptions)
  if (settings.operation && !settings.storage)
    throw new OptionsError('oncekey/client: option "operation" needs a storage')
  return settings as T
}
