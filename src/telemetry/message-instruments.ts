import type { Instrument } from './instruments.js'

const MESSAGE_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]

/** What is measured of an inbox. */
export const MESSAGE_INSTRUMENTS = {
  messages: {
    kind: 'counter',
    prometheus: 'messages_total',
    openTelemetry: 'oncekey.messages',
    unit: '{message}',
    help: 'Deliveries of messages, by what became of them.',
    labels: ['consumer', 'source', 'result'],
    known: [{ result: 'processed' }, { result: 'duplicate' }, { result: 'in-progress' }, { result: 'dead' }],
  },
  messagesRedelivered: {
    kind: 'counter',
    prometheus: 'messages_redelivered_total',
    openTelemetry: 'oncekey.messages.redelivered',
    unit: '{message}',
    help: 'Deliveries that the broker marked as repeated.',
    labels: ['consumer', 'source'],
  },
  messageFailures: {
    kind: 'counter',
    prometheus: 'message_failures_total',
    openTelemetry: 'oncekey.messages.failures',
    unit: '{message}',
    help: 'Attempts at a message that failed.',
    labels: ['consumer', 'source'],
  },
  messagesDead: {
    kind: 'counter',
    prometheus: 'messages_dead_total',
    openTelemetry: 'oncekey.messages.dead',
    unit: '{message}',
    help: 'Messages that were given up.',
    labels: ['consumer', 'source'],
  },
  messagesRedriven: {
    kind: 'counter',
    prometheus: 'messages_redriven_total',
    openTelemetry: 'oncekey.messages.redriven',
    unit: '{message}',
    help: 'Dead messages that an operator sent on their way again.',
    labels: ['consumer', 'source'],
  },
  messageDuration: {
    kind: 'histogram',
    prometheus: 'message_duration_seconds',
    openTelemetry: 'oncekey.message.duration',
    unit: 's',
    help: 'How long a message took that was processed, or whose attempt failed.',
    labels: ['consumer', 'source'],
    buckets: MESSAGE_BUCKETS,
  },
} as const satisfies Readonly<Record<string, Instrument>>
