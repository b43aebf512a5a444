import type { IdempotencyEvent } from '../core/events.js'
import type { MessageEvent } from '../messages/inbox-events.js'

/** What can be watched: an engine, and a message inbox. */
export type EventSource = (
  | { on(listener: (event: IdempotencyEvent) => void): () => void }
  | { on(listener: (event: MessageEvent) => void): () => void }
  | { on(listener: (event: ObservedEvent) => void): () => void }
) & {
  /** Whose messages they are, of an inbox. */
  readonly consumer?: string
}

/** Everything that there is to hear. */
export type ObservedEvent = IdempotencyEvent | MessageEvent
