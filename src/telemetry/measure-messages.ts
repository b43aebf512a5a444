import type { MessageEvent } from '../messages/inbox-events.js'
import type { Recorder } from './instruments.js'
import { beginSeries } from './known-series.js'
import { limited } from './label-limit.js'

/** How the messages of an inbox are told apart. */
interface MessageLabels {
  /** At most so many topics or queues, and so many consumers. */
  readonly maxSources: number
  /** Whose messages they are, where that is known beforehand. */
  readonly consumer: string | undefined
  /** What is there from the start. */
  readonly sources: readonly string[]
}

/** Makes a listener that measures an inbox. */
export function measureMessages(
  recorder: Recorder,
  { maxSources, consumer: known, sources }: MessageLabels,
): (event: MessageEvent) => void {
  const sourceOf = limited(maxSources)
  const consumerOf = limited(maxSources)
  const begun = new Set<string>()
  const labelsOf = (consumer: string, source: string) => {
    const labels = { consumer: consumerOf(consumer), source: sourceOf(source) }
    const pair = `${labels.consumer}\n${labels.source}`
    if (!begun.has(pair)) beginSeries(recorder, labels)
    begun.add(pair)
    return labels
  }
  if (known !== undefined) for (const source of sources) labelsOf(known, source)
  return (event) => {
    const { consumer, source } = event.type === 'message-refused' ? event : event.message
    const labels = labelsOf(consumer, source)
    switch (event.type) {
      case 'message':
        recorder.add('messages', { ...labels, result: event.result })
        if (event.redelivered) recorder.add('messagesRedelivered', labels)
        if (event.result === 'processed') recorder.observe('messageDuration', labels, event.durationMs / 1000)
        return
      case 'message-failed':
        recorder.add('messageFailures', labels)
        if (event.redelivered) recorder.add('messagesRedelivered', labels)
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
