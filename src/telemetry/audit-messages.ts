import type { MessageEvent } from '../messages/inbox-events.js'
import type { AuditEntry } from './audit-log.js'

/** What the audit log has to say of a message, if anything. */
export function auditOfMessage(
  event: Extract<MessageEvent, { type: 'message' | 'message-dead' | 'message-redriven' }>,
): AuditEntry | undefined {
  const { consumer, source: topic, key } = event.message
  switch (event.type) {
    case 'message':
      // One that is dead was told of when it died.
      if (event.result === 'processed' || event.result === 'dead') return undefined
      return { event: 'message-duplicate', consumer, topic, key }
    case 'message-dead':
      return { event: 'message-dead', consumer, topic, key, attempts: event.attempts, error: event.error }
    case 'message-redriven':
      return { event: 'message-redriven', consumer, topic, key }
  }
}
