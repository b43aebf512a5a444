import type { IdempotencyEvent } from '../core/events.js'
import type { InboxEvent } from './inbox-events.js'

/** What can be watched: an engine, and a message inbox. */
export type EventSource =
  | { on(listener: (event: IdempotencyEvent) => void): () => void }
  | { on(listener: (event: InboxEvent) => void): () => void }

/** Everything that there is to hear. */
export type ObservedEvent = IdempotencyEvent | InboxEvent
