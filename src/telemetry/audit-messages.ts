import type { AuditEntry } from './audit-log.js'
import type { InboxEvent } from './inbox-events.js'

/** What the audit log has to say of a message, if anything. */
export function auditOfMessage(
  event: Extract<InboxEvent, { type: 'message' | 'message-dead' | 'message-redriven' }>,
): AuditEntry | undefined {
  const { consumer, source: topic, key } = event.message
  switch (event.type) {
    case 'message':
      if (event.result === 'processed') return undefined
      // One that is dead was told of when it died, and is told of at each delivery since.
      return { event: event.result === 'dead' ? 'message-dead' : 'message-duplicate', consumer, topic, key }
    case 'message-dead':
      return { event: 'message-dead', consumer, topic, key, attempts: event.attempts, error: event.error }
    case 'message-redriven':
      return { event: 'message-redriven', consumer, topic, key }
  }
}
