import { z } from 'zod'
import type { Duration } from '../contract/duration.js'
import { duration, parseOptions, wholeNumber } from '../core/parse-options.js'
import type { Inbox } from './inbox.js'
import { incomingFrom, type KafkaDelivery, type KafkaMessage } from './kafka-record.js'
import type { Attempt } from './message-processing.js'
import { createReceiver, type Disposition, type ReceiverOptions, receiverShape } from './receiver.js'
import { createSuspects, type Suspects, type WatchedPartition } from './suspects.js'

export type { KafkaDelivery, KafkaHeader, KafkaMessage } from './kafka-record.js'

/** The part of what `eachBatch` of a consumer of KafkaJS gets that is used here. */
export interface EachBatchPayload<M extends KafkaMessage = KafkaMessage> {
  readonly batch: { readonly topic: string; readonly partition: number; readonly messages: readonly M[] }
  resolveOffset(offset: string): void
  heartbeat(): Promise<void>
  /** Stops fetching the partition. @returns a function that goes on with it. */
  pause(): () => void
  isRunning(): boolean
  isStale(): boolean
}

/** The part of a consumer of KafkaJS that tells when its partitions change. */
export interface RejoiningConsumer {
  readonly events: { readonly GROUP_JOIN: string }
  // biome-ignore lint/suspicious/noExplicitAny: each version of the client names its events in types of its own
  on(event: any, listener: () => void): unknown
}

/** How messages of Kafka are consumed. */
export interface KafkaOptions<D extends KafkaDelivery = KafkaDelivery> extends ReceiverOptions<D> {
  /**
   * How long a handler may run before its consumer stops telling the group that it lives. Then its partitions go to
   * another consumer, which waits for the message.
   *
   * @default the `maxRun` of the inbox
   */
  readonly heartbeatFor?: Duration
  /**
   * The consumer, so that it is known when partitions are assigned: the first messages after that are watched for whether
   * they kill their process. Without it, they are when a process sees a partition first, or an offset again.
   */
  readonly consumer?: RejoiningConsumer
}

/** How messages of Kafka are consumed in batches. */
export interface KafkaBatchOptions<D extends KafkaDelivery = KafkaDelivery> extends KafkaOptions<D> {
  /**
   * How many messages are processed in one transaction at the most.
   *
   * @default 100
   */
  readonly batchSize?: number
}

/** What `consumer.run` takes. */
export interface RunConfig<M extends KafkaMessage> {
  readonly eachBatchAutoResolve: false
  eachBatch(payload: EachBatchPayload<M>): Promise<void>
}

/**
 * Consumes messages one by one: `consumer.run(eachMessage(inbox, handler))`, or with more options of `run`,
 * `consumer.run({ partitionsConsumedConcurrently: 3, ...eachMessage(inbox, handler) })`. The offset of a message is resolved
 * after the commit of its transaction, and the client commits no offset that is not: `autoCommit` may stay as it is.
 *
 * A message that fails pauses its partition until it is tried again. The others go on, and the group is not disturbed.
 *
 * @throws {OptionsError} naming the option that is wrong.
 */
export function eachMessage<Context extends Attempt, M extends KafkaMessage = KafkaMessage>(
  inbox: Inbox<Context, unknown>,
  handler: (delivery: KafkaDelivery<M>, context: Context) => Promise<void> | void,
  options: KafkaOptions<KafkaDelivery<M>> = {},
): RunConfig<M> {
  const { heartbeatMs, suspects } = prepared(inbox, options, 'eachMessage')
  const receiver = createReceiver<KafkaDelivery<M>, Context>(inbox, options)
  return {
    eachBatchAutoResolve: false,
    eachBatch: (payload) =>
      withHeartbeats(payload, heartbeatMs, async (begin) => {
        const { topic, partition, messages } = payload.batch
        const watched = watch(suspects, payload)
        for (const message of messages) {
          if (!payload.isRunning() || payload.isStale()) return
          begin()
          const incoming = {
            ...incomingFrom({ topic, partition, message }),
            mayHaveCrashed: watched.isSuspect,
          }
          const disposition = await receiver.receive(incoming, handler)
          // What has no key has its place: nothing is left to the broker.
          if (disposition.type !== 'acknowledge') return pauseFor(payload, disposition)
          watched.passed(BigInt(message.offset), disposition.result === 'processed' ? 1 : 0)
          payload.resolveOffset(message.offset)
          await payload.heartbeat()
        }
      }),
  }
}

/**
 * Consumes messages in batches, each in one transaction: `consumer.run(eachBatch(inbox, handler))`. The handler gets those
 * that are new, in their order. When it fails they are processed one by one, so that what fails alone is one message.
 *
 * @throws {OptionsError} naming the option that is wrong.
 */
export function eachBatch<BatchContext, M extends KafkaMessage = KafkaMessage>(
  inbox: Inbox<Attempt, BatchContext>,
  handler: (
    deliveries: readonly (KafkaDelivery<M> & Attempt)[],
    context: BatchContext,
  ) => Promise<void> | void,
  options: KafkaBatchOptions<KafkaDelivery<M>> = {},
): RunConfig<M> {
  const { heartbeatMs, batchSize, suspects } = prepared(inbox, options, 'eachBatch')
  const receiver = createReceiver<KafkaDelivery<M>, Attempt, BatchContext>(inbox, options)
  return {
    eachBatchAutoResolve: false,
    eachBatch: (payload) =>
      withHeartbeats(payload, heartbeatMs, async (begin) => {
        const { topic, partition, messages } = payload.batch
        const watched = watch(suspects, payload)
        for (let start = 0; start < messages.length; ) {
          if (!payload.isRunning() || payload.isStale()) return
          begin()
          const mayHaveCrashed = watched.isSuspect
          const incoming = messages
            .slice(start, start + batchSize)
            .map((message) => ({ ...incomingFrom({ topic, partition, message }), mayHaveCrashed }))
          const { done, processed, retry } = await receiver.receiveBatch(incoming, (fresh, context) =>
            handler(
              fresh.map(({ raw, attempt }) => ({ ...raw, ...attempt })),
              context,
            ),
          )
          start += done
          const last = messages[start - 1]
          if (done > 0 && last !== undefined) {
            watched.passed(BigInt(last.offset), processed)
            payload.resolveOffset(last.offset)
          }
          if (retry !== undefined) return pauseFor(payload, retry)
          await payload.heartbeat()
        }
      }),
  }
}

const DEFAULT_BATCH_SIZE = 100

const optionsSchema = z.strictObject({
  ...receiverShape,
  heartbeatFor: duration({ min: 0, max: '24d' }).optional(),
  consumer: z
    .custom<RejoiningConsumer>(
      (value) => typeof (value as RejoiningConsumer | null)?.on === 'function',
      'must be a consumer of KafkaJS',
    )
    .optional(),
  batchSize: wholeNumber(1, 10_000).optional(),
})

/** Checks the options, and completes them. */
function prepared(
  inbox: Pick<Inbox, 'maxRunMs'>,
  options: unknown,
  where: 'eachMessage' | 'eachBatch',
): { readonly heartbeatMs: number; readonly batchSize: number; readonly suspects: Suspects } {
  const {
    heartbeatFor,
    consumer,
    batchSize = DEFAULT_BATCH_SIZE,
  } = parseOptions(optionsSchema, options, where)
  const suspects = createSuspects(where === 'eachBatch' ? batchSize : 1)
  consumer?.on(consumer.events.GROUP_JOIN, suspects.startOver)
  return { heartbeatMs: heartbeatFor ?? inbox.maxRunMs, batchSize, suspects }
}

function watch(suspects: Suspects, { batch }: EachBatchPayload): WatchedPartition {
  const { topic, partition, messages } = batch
  return suspects.at(`${topic}/${partition}`, BigInt(messages[0]?.offset ?? 0))
}

const HEARTBEAT_EVERY_MS = 500

/**
 * Runs what is done with a payload, and tells the group meanwhile that this consumer lives, but no longer than `limitMs` for
 * one piece of work. The client itself limits how often that is sent. When the group changes, the work comes to its end
 * first, and is told then.
 */
async function withHeartbeats(
  payload: Pick<EachBatchPayload, 'heartbeat'>,
  limitMs: number,
  run: (begin: () => void) => Promise<void>,
): Promise<void> {
  let begunAt = performance.now()
  const timer = setInterval(() => {
    // A group that changes says so again after the work, where somebody can be told.
    if (performance.now() - begunAt <= limitMs) payload.heartbeat().catch(() => {})
  }, HEARTBEAT_EVERY_MS)
  try {
    await run(() => {
      begunAt = performance.now()
    })
  } finally {
    clearInterval(timer)
  }
}

/** Leaves a partition alone for a while. What has not been resolved comes again after it. */
function pauseFor(payload: Pick<EachBatchPayload, 'pause'>, disposition: Disposition): void {
  const resume = payload.pause()
  const delayMs = disposition.type === 'retry' ? disposition.delayMs : 0
  setTimeout(resume, delayMs).unref()
}
