/** Which message an event is about. */
export interface InboxSubject {
  /** Who consumes: a group, or the name of a handler. */
  readonly consumer: string
  /** Where it came from: a topic, a queue or a subject. */
  readonly source: string
  /** What names the message. Treat it as personal data. */
  readonly key: string
  /** Where the key was found. */
  readonly keyKind: string
}

/** What an inbox reports, each step once. */
export type InboxEvent =
  | {
      readonly type: 'message'
      readonly message: InboxSubject
      readonly result: 'processed' | 'duplicate' | 'in-progress' | 'dead'
      readonly attempt: number
      readonly redelivered: boolean
      readonly durationMs: number
    }
  | {
      readonly type: 'message-failed'
      readonly message: InboxSubject
      readonly attempt: number
      readonly error: unknown
      readonly durationMs: number
    }
  | {
      readonly type: 'message-dead'
      readonly message: InboxSubject
      readonly attempts: number
      readonly error: unknown
    }
  | { readonly type: 'message-redriven'; readonly message: InboxSubject }
