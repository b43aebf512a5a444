import type { MessageEvent } from '../messages/inbox-events.js'
import type { Recorder } from './instruments.js'
import { limited } from './label-limit.js'

/** Makes a listener that measures an inbox. At most `maxSources` topics or queues are told apart. */
export function measureMessages(recorder: Recorder, maxSources: number): (event: MessageEvent) => void {
  const sourceOf = limited(maxSources)
  const consumerOf = limited(maxSources)
  return (event) => {
    const { consumer, source } = event.type === 'message-refused' ? event : event.message
    const labels = { consumer: consumerOf(consumer), source: sourceOf(source) }
    switch (event.type) {
      case 'message':
        recorder.add('messages', { ...labels, result: event.result })
        if (event.redelivered) recorder.add('messagesRedelivered', labels)
        if (event.result === 'processed') recorder.observe('messageDuration', labels, event.durationMs / 1000)
        return
      case 'message-failed':
        recorder.add('messageFailures', labels)
        recorder.observe('messageDuration', labels, event.durationMs / 1000)
        return
      case 'message-dead':
        recorder.add('messagesDead', labels)
        return
      case 'message-redriven':
        recorder.add('messagesRedriven', labels)
        return
      // What an operator is told of by the log: they lead to further attempts, which are counted.
      case 'on-dead-failed':
      case 'attempt-not-noted':
      case 'message-refused':
        return
    }
  }
}
