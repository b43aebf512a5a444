import type { InboxTable } from './inbox.js'
import type { MaybePromise } from './maybe-promise.js'

/** What is kept when an operation ends, and handed to every retry. */
export interface Outcome {
  /** Whether the operation answered (`succeeded`) or threw (`failed`). Both are final. */
  readonly result: 'succeeded' | 'failed'
  /** Opaque text beside the body, written by whoever completed the claim: status and headers for HTTP. */
  readonly head: string
  /** The body's bytes; `null` makes this a tombstone: the operation ended, its answer is not kept. */
  readonly body: Uint8Array | null
}

/** What a record says about itself to operators. The first claim's values stay; no decision reads them. */
export interface RecordMeta {
  /** The key as the client sent it, without quotes. */
  readonly key: string
  /** Method and route pattern, such as `POST /payments/:id`, or the name of an operation. */
  readonly route: string
  /** A hash of the scope: enough to compare, not enough to read. */
  readonly scope: string
  /** When the first claim was made by the claiming process's clock, in epoch milliseconds. */
  readonly firstSeenAt: number
}

/** What the engine asks for when it wants the right to run. */
export interface ClaimRequest {
  /** SHA-256 over namespace, scope and key, base64url: the only name a store knows. */
  readonly id: string
  /** Unguessable, one for each claim. Only characters of base64url. */
  readonly token: string
  /** Which request the key stands for. Only characters of base64url. */
  readonly fingerprint: string
  /** How long the claim lasts without a renewal, in milliseconds. */
  readonly leaseMs: number
  /** How long an unresolved claim is remembered, in milliseconds, and never shorter than its lease. */
  readonly ttlMs: number
  /** Whether a claim whose lease has lapsed may be taken over, under the next fence. */
  readonly takeOver: boolean
  /**
   * Whether a crash of the backend may forget this claim, because nothing happens but in a transaction that forgets
   * itself with it. A store may then save the wait for its disk, and need not.
   */
  readonly mayBeLost: boolean
  readonly meta: RecordMeta
}

/** What a claim found. Only `acquired` gives the right to run. */
export type ClaimResult =
  | { readonly status: 'acquired'; readonly fence: number }
  | { readonly status: 'running'; readonly fingerprint: string; readonly leaseLeftMs: number }
  | {
      readonly status: 'unknown'
      readonly fingerprint: string
      readonly fence: number
      readonly meta: RecordMeta
    }
  | {
      readonly status: 'completed'
      readonly fingerprint: string
      readonly outcome: Outcome
      /** Milliseconds since completion, by the store's clock. */
      readonly ageMs: number
    }

interface StoredRecordBase {
  readonly id: string
  readonly fingerprint: string
  readonly fence: number
  readonly meta: RecordMeta
  /** Milliseconds until the record is forgotten, by the store's clock. */
  readonly expiresInMs: number
}

/** A record as `find` reports it. */
export type StoredRecord =
  | (StoredRecordBase & { readonly status: 'running'; readonly leaseLeftMs: number })
  | (StoredRecordBase & { readonly status: 'unknown' })
  | (StoredRecordBase & {
      readonly status: 'completed'
      readonly outcome: Outcome
      readonly ageMs: number
    })

/** How strictly a transaction is kept apart from others. */
export type IsolationLevel = 'read committed' | 'repeatable read' | 'serializable'

/** How a transaction is run. */
export interface TransactionSettings {
  /** `undefined` for the database's own default. */
  readonly isolation: IsolationLevel | undefined
  /** How long a statement waits for a lock, in milliseconds; `undefined` for the database's own default. */
  readonly lockTimeoutMs: number | undefined
  /** How often the work is begun at the most, when the database refuses it for a conflict with other transactions. */
  readonly attempts: number
  /** Gives the transaction up: whatever it waits for, it rolls back, and its connection is not used again. */
  readonly signal: AbortSignal
}

/** A completion that is to become one commit with the application's statements. */
export interface Completion {
  readonly id: string
  readonly token: string
  readonly outcome: Outcome
  readonly ttlMs: number
}

/** What the work of a transaction came to. */
export interface TransactionEnd<T> {
  readonly value: T
  /** What is completed with the commit; `undefined` for a transaction that keeps no outcome. */
  readonly completion: Completion | undefined
}

/** What became of a transaction: committed, or rolled back because its token no longer held a running claim. */
export type TransactionResult<T> =
  | { readonly committed: true; readonly value: T }
  | { readonly committed: false }

/**
 * Runs one statement in a transaction of the application, and gives its rows. It gets the statement in two forms, for
 * clients differ: as `text` with `$1`, `$2`, ... for its `values`, and as the `strings` between the values, with which a
 * template tag is called: `tag(strings, ...values)`. Each value has a cast in the text.
 */
export type ExecuteStatement = (
  text: string,
  values: StatementValue[],
  strings: TemplateStringsArray,
) => PromiseLike<StatementResult>

/** What a statement takes. */
export type StatementValue = string | number | boolean | Buffer | null

/** The rows that a statement gave: a list, or an object with one, as most clients have it. */
export type StatementResult = readonly unknown[] | { readonly rows: readonly unknown[] }

/** Which records an operator looks for. What is not said does not matter. */
export interface ListQuery {
  readonly status?: StoredRecord['status']
  readonly route?: string
  /** Only records whose first claim was made at least so many milliseconds ago. */
  readonly olderThanMs?: number
  /** At most so many. */
  readonly limit?: number
  /**
   * Ends the list early, between two pages; what was given so far stays. Closing the iterator does not end it where nothing
   * is found: a generator hears of that at the next record that it gives.
   */
  readonly signal?: AbortSignal
}

/**
 * Where claims and outcomes live.
 *
 * Every method is one atomic step of the backend and one round trip, and time is the backend's clock. A method
 * resolves with what it found and rejects only when the backend failed: then the step may or may not have happened.
 */
export interface IdempotencyStore {
  /**
   * Claims an id. Of any number of concurrent callers, one sees `acquired`. A claim repeated with the token that
   * holds the id answers `acquired` again, so that a client that resends after a lost reply is not locked out.
   *
   * A record whose lease has lapsed reports `unknown`, unless `takeOver` is set and the fingerprints are equal: then
   * it is acquired under the next fence, with the new token. The first claim's `meta` stays.
   *
   * A store that lives in this process may answer at once, without a promise.
   *
   * @throws {StoreFullError} when the store is bounded and holds only live records.
   */
  claim(request: ClaimRequest): MaybePromise<ClaimResult>

  /**
   * Makes the lease end `leaseMs` from now, while `token` holds the id. A lapsed lease that nobody took revives.
   *
   * @returns `false` when `token` no longer holds the id, or the operation has ended; nothing is written then.
   */
  renew(id: string, token: string, leaseMs: number): Promise<boolean>

  /**
   * Keeps `outcome` for `ttlMs` from now, while `token` holds the id, whether its lease has lapsed or not.
   * Completing again with the token that completed answers `true` and changes nothing, so that it may be repeated. It may
   * answer at once, as `claim` may.
   *
   * @returns `false` when the claim was lost; nothing is written then.
   */
  complete(id: string, token: string, outcome: Outcome, ttlMs: number): MaybePromise<boolean>

  /**
   * Gives a claim back: nothing was done. The first claim's record (fence 1) is removed. A taken-over claim
   * (fence 2 and up) goes back to `unknown`, since an earlier holder may have done it.
   *
   * @returns `false` when `token` does not hold a running claim; nothing is written then.
   */
  release(id: string, token: string): Promise<boolean>

  /** Reads a record without changing anything. Expired records are absent. */
  find(id: string): Promise<StoredRecord | undefined>

  /**
   * Ends an `unknown` record without its token: keeps an outcome for `ttlMs`, or with `'release'` removes the record.
   *
   * @returns `false` when the record is not unknown; nothing is written then.
   */
  settle(id: string, resolution: Outcome | 'release', ttlMs: number): Promise<boolean>

  /**
   * Runs `work` in a transaction of the backend, and commits it when `work` resolves, together with the completion that
   * it gives. That is kept as by `complete`, and stricter: only while its token holds a claim that nobody has completed,
   * or else everything rolls back. A second transaction of one claim must not commit, whatever became of the first.
   *
   * `work` gets what the application sends its statements through. When it rejects, the transaction rolls back, and the
   * rejection is handed on as it is. The backend may refuse a transaction for a conflict with others: then `work` is run
   * again, whole, up to `settings.attempts` times.
   *
   * @throws {CommitUndecidedError} when the commit was asked for and its answer never came.
   * @throws what the backend says when it refuses the completion or the commit: then nothing happened.
   */
  transaction?<T>(
    work: (client: unknown) => Promise<TransactionEnd<T>>,
    settings: TransactionSettings,
  ): Promise<TransactionResult<T>>

  /**
   * Completes as `transaction` does, in a transaction that the application has begun by itself.
   *
   * @returns `false` when the claim was lost; the application must roll back then.
   * @throws {TransactionMisuseError} when `execute` gives no rows, or runs its statements each for itself: the outcome
   *   would be kept whatever became of the transaction. Nothing is kept then.
   */
  completeIn?(
    execute: ExecuteStatement,
    id: string,
    token: string,
    outcome: Outcome,
    ttlMs: number,
  ): Promise<boolean>

  /** Where the same transactions keep which messages were processed. */
  readonly inbox?: InboxTable

  /** Resolves when the record may have changed, or when `signal` aborts. Never rejects. */
  watch?(id: string, signal: AbortSignal): Promise<void>

  /**
   * Finds records for operators, in no certain order. One that changes meanwhile may be missed, and none comes twice. What
   * this version cannot read is left out.
   */
  list?(query: ListQuery): AsyncIterable<StoredRecord>

  /**
   * Removes a record that has ended, or whose outcome is unknown.
   *
   * @returns `false` when there is none, or when it is running; nothing is written then.
   */
  remove?(id: string): Promise<boolean>

  /** Removes what has expired, in bounded batches. @returns how many records went. */
  sweep?(): Promise<number>

  /**
   * Looks at the backend's configuration, once, before the first claim.
   *
   * @returns warnings for operators, a sentence each.
   * @throws {StoreUnfitError} when the backend must not be used as it is.
   */
  check?(): Promise<readonly string[]>
}
