import type { ExecuteStatement, TransactionEnd, TransactionResult, TransactionSettings } from './store.js'

/** A message as a table of messages knows it. */
export interface InboxEntry {
  /** SHA-256 over namespace, consumer, source and key, base64url: the only name that a decision reads. */
  readonly id: string
  readonly consumer: string
  readonly source: string
  readonly key: string
  /** What the key stands for; `undefined` where nobody checks it. */
  readonly fingerprint: string | undefined
  /** Where the message is in its log, when the high watermark of that log decides; `undefined` when its id does. */
  readonly position: LogPosition | undefined
}

/** Where a message is in a log such as a partition of Kafka. */
export interface LogPosition {
  readonly topic: string
  readonly partition: number
  readonly offset: bigint
  /** The message's timestamp in epoch milliseconds, as the log has it. */
  readonly timestampMs: number
  /** What tells a topic from an earlier one of its name, where the client knows it. */
  readonly topicId?: string
}

/** What a message was found to be when it was entered. */
export type InboxFinding =
  /** It is to be processed now: as attempt number `attempt`, and it counts as processed with the commit. */
  | { readonly status: 'entered'; readonly attempt: number }
  /** It was processed before. */
  | { readonly status: 'processed'; readonly fingerprint: string | undefined }
  /** It was given up. */
  | { readonly status: 'dead'; readonly fingerprint: string | undefined }
  /** Its log is not the one that the high watermark is of, or it lies before the first message of it. */
  | { readonly status: 'foreign' }

/** What became of an attempt that was noted. */
export type NotedAttempt =
  /** It was counted, and the message may be tried again. */
  | { readonly status: 'open'; readonly attempts: number }
  /** It was counted, and was the last: the message is dead, as of this transaction. */
  | { readonly status: 'buried'; readonly attempts: number }
  /** It was not counted: the message has been processed, or buried, by somebody else. */
  | { readonly status: 'processed' | 'dead' }

/** How messages are entered. */
export interface EnterSettings {
  /** How long it is remembered that a message was processed, in milliseconds. */
  readonly windowMs: number
  /** How long to wait for a transaction that has entered one of the messages and has not ended, in milliseconds. */
  readonly lockTimeoutMs: number
  /** Whether entering counts as an attempt. Not where it was noted before. */
  readonly countsAttempt: boolean
}

/** How an attempt is noted. */
export interface NoteSettings extends Omit<EnterSettings, 'countsAttempt'> {
  /** 1 for an attempt that was not noted before, 0 to look at those that were. */
  readonly attempts: 0 | 1
  /** With so many attempts, the message is dead. */
  readonly maxAttempts: number
  /** What the attempt failed with, for operators. */
  readonly error: string
}

/** What a transaction begins with: entering messages, or noting an attempt. */
export type InboxStep =
  | {
      readonly type: 'enter'
      readonly entries: readonly InboxEntry[]
      readonly settings: EnterSettings
    }
  | { readonly type: 'note'; readonly entry: InboxEntry; readonly settings: NoteSettings }

/** A transaction that has begun with its step. */
export interface InboxTransaction {
  /** What the application sends its statements through. */
  readonly client: unknown
  /** What became of each entry, in their order. */
  readonly findings: readonly InboxFinding[]
  /** What became of the attempt that was noted. */
  readonly noted: NotedAttempt | undefined
}

/** A message that was given up. */
export interface DeadMessage {
  readonly source: string
  readonly key: string
  /** How often it was tried. */
  readonly attempts: number
  /** What the last attempt failed with. */
  readonly error: string
  /** When it was seen first, and when it was given up, in epoch milliseconds. */
  readonly firstSeenAt: number
  readonly diedAt: number
}

/**
 * Where a backend with transactions keeps which messages were processed: entering a message and its effect are one
 * commit. Every method is one atomic step of the backend, and time is the backend's clock.
 */
export interface InboxTable {
  /**
   * Begins a transaction with `step` and runs `work` in it. It commits when `work` resolves, and the entered messages are
   * processed then. It is run again, whole, after a conflict with others, up to `settings.attempts` times.
   *
   * @returns `{ committed: false }` when another transaction that has not ended is at one of the messages: nothing was done.
   * @throws what `work` rejects with: everything was rolled back.
   * @throws {StoreUnavailableError} when the connection was lost before the commit, whatever `work` made of that.
   * @throws {CommitUndecidedError} when the commit was asked for and its answer never came.
   */
  transaction<T>(
    step: InboxStep,
    work: (transaction: InboxTransaction) => Promise<TransactionEnd<T>>,
    settings: TransactionSettings,
  ): Promise<TransactionResult<T>>

  /**
   * Notes an attempt, by itself.
   *
   * @returns `undefined` when another transaction that has not ended is at the message.
   */
  note(entry: InboxEntry, settings: NoteSettings): Promise<NotedAttempt | undefined>

  /**
   * Enters a message in a transaction that the application has begun.
   *
   * @returns `undefined` when another transaction that has not ended is at the message: this one has failed with that.
   * @throws {TransactionMisuseError} when `execute` runs its statements each for itself, or gives no rows.
   */
  enterIn(
    execute: ExecuteStatement,
    entry: InboxEntry,
    settings: EnterSettings,
  ): Promise<InboxFinding | undefined>

  /** The dead messages of a consumer, of one source or all of them, oldest or newest in no certain order. */
  dead(consumer: string, source: string | undefined): AsyncIterable<DeadMessage>

  /** Lets a dead message be processed when it comes again, with all of its attempts. `false` when it is not dead. */
  redrive(id: string): Promise<boolean>

  /** Forgets a message, whatever became of it. `false` when it was not known. */
  forget(id: string): Promise<boolean>

  /** Forgets all messages of a source, and its high watermarks. @returns how many rows went. */
  forgetSource(consumer: string, source: string): Promise<number>
}
