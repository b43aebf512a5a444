import { z } from 'zod'
import { parseOptions, wholeNumber } from '../core/parse-options.js'
import {
  type ConsumeOptions,
  type Consumption,
  consumeShape,
  DRAIN_MS,
  type Hand,
  openHand,
} from './consumption.js'
import type { Inbox } from './inbox.js'
import type { Attempt } from './message-processing.js'
import { createReceiver, type Incoming, type ReceivedBatch } from './receiver.js'
import { createSuspects, type WatchedPartition } from './suspects.js'

/** The part of a message of `@platformatic/kafka` that is used here. */
export interface StreamedMessage {
  readonly topic: string
  readonly partition: number
  readonly offset: bigint
  readonly timestamp: bigint
  readonly headers: ReadonlyMap<unknown, unknown>
  readonly value: unknown
  /** Commits its offset, and those before it. There is nothing to commit where the client does so by itself. */
  commit(): void | Promise<void>
}

/** The part of a stream of messages, as `consumer.consume()` gives it, that is used here. */
export interface MessageStream<M extends StreamedMessage> extends AsyncIterable<M> {
  close(): Promise<void>
  readonly consumer: { on(event: 'consumer:group:join', listener: () => void): unknown }
}

/** How a stream is consumed. */
export interface StreamOptions<M extends StreamedMessage> extends ConsumeOptions<M> {
  /**
   * How many messages of all partitions may wait in this process, before it reads no more.
   *
   * @default 1000
   */
  readonly readAhead?: number
}

/** How a stream is consumed in batches. */
export interface StreamBatchOptions<M extends StreamedMessage> extends StreamOptions<M> {
  /**
   * How many messages of a partition are processed in one transaction at the most.
   *
   * @default 100
   */
  readonly batchSize?: number
}

/**
 * Consumes the messages of a stream one by one, each partition in its order, and the partitions side by side. The stream must
 * be made with `autocommit: false`: an offset is committed after the transaction of its message. A message that fails is tried
 * again in its place, and holds back those of its partition.
 *
 * The client tells the group that it lives by itself, also while a handler hangs: `maxRun` of the inbox ends that.
 *
 * @throws {OptionsError} naming the option that is wrong.
 */
export function consume<Context extends Attempt, M extends StreamedMessage>(
  stream: MessageStream<M>,
  inbox: Inbox<Context, unknown>,
  handler: (message: M, context: Context) => Promise<void> | void,
  options: StreamOptions<M> = {},
): Consumption {
  const { drainMs, readAhead } = resolved(options, 'consume')
  const receiver = createReceiver<M, Context>(inbox, options)
  const suspects = createSuspects(1)
  stream.consumer.on('consumer:group:join', suspects.startOver)
  return begin(stream, { drainMs, readAhead, batchSize: 1, at: suspects.at }, async ([incoming]) => {
    if (incoming === undefined) return { done: 0, processed: 0, retry: undefined }
    const disposition = await receiver.receive(incoming, handler)
    if (disposition.type === 'retry') return { done: 0, processed: 0, retry: disposition }
    // What has no key has its place: nothing is left to the broker.
    const isNew = disposition.type === 'acknowledge' && disposition.result === 'processed'
    return { done: 1, processed: isNew ? 1 : 0, retry: undefined }
  })
}

/**
 * As `consume`, in batches of what has come of a partition, each in one transaction. The handler gets those that are new, in
 * their order. When it fails they are processed one by one, so that what fails alone is one message.
 *
 * @throws {OptionsError} naming the option that is wrong.
 */
export function consumeBatches<BatchContext, M extends StreamedMessage>(
  stream: MessageStream<M>,
  inbox: Inbox<Attempt, BatchContext>,
  handler: (
    messages: readonly { readonly message: M; readonly attempt: Attempt }[],
    context: BatchContext,
  ) => Promise<void> | void,
  options: StreamBatchOptions<M> = {},
): Consumption {
  const { drainMs, readAhead, batchSize } = resolved(options, 'consumeBatches')
  const receiver = createReceiver<M, Attempt, BatchContext>(inbox, options)
  const suspects = createSuspects(batchSize)
  stream.consumer.on('consumer:group:join', suspects.startOver)
  return begin(stream, { drainMs, readAhead, batchSize, at: suspects.at }, (incoming) =>
    receiver.receiveBatch(incoming, (fresh, context) =>
      handler(
        fresh.map(({ raw, attempt }) => ({ message: raw, attempt })),
        context,
      ),
    ),
  )
}

const optionsSchema = z.strictObject({
  ...consumeShape,
  readAhead: wholeNumber(1, 1_000_000).optional(),
  batchSize: wholeNumber(1, 10_000).optional(),
})

function resolved(options: unknown, where: string) {
  const {
    drainTimeout = DRAIN_MS,
    readAhead = 1000,
    batchSize = 100,
  } = parseOptions(optionsSchema, options, where)
  return { drainMs: drainTimeout, readAhead, batchSize }
}

interface Pace {
  readonly drainMs: number
  readonly readAhead: number
  readonly batchSize: number
  at(partition: string, offset: bigint): WatchedPartition
}

function begin<M extends StreamedMessage>(
  stream: MessageStream<M>,
  { drainMs, readAhead, batchSize, at }: Pace,
  process: (incoming: readonly Incoming<M>[]) => Promise<ReceivedBatch>,
): Consumption {
  const hand = openHand({ drainMs, leave: () => stream.close() })
  const committer = createCommitter(hand)
  /** What waits of each partition that is being worked on. */
  const queues = new Map<string, M[]>()
  let waiting = 0
  let onRoom: () => void = () => {}

  async function read(): Promise<void> {
    for await (const message of stream) {
      if (hand.ending.aborted) return
      enqueue(message)
      if (waiting < readAhead) continue
      await new Promise<void>((resolve) => {
        onRoom = resolve
        hand.ending.addEventListener('abort', () => resolve(), { once: true })
      })
    }
    hand.lose(new Error('The stream has ended'))
  }

  function enqueue(message: M): void {
    const partition = `${message.topic}/${message.partition}`
    const queue = queues.get(partition)
    waiting += 1
    if (queue !== undefined) {
      queue.push(message)
      return
    }
    const started = [message]
    queues.set(partition, started)
    hand.hold(() => work(partition, started))
  }

  async function work(partition: string, queue: M[]): Promise<void> {
    const watched = at(partition, queue[0]?.offset ?? 0n)
    while (queue.length > 0 && !hand.ending.aborted) {
      const mayHaveCrashed = watched.isSuspect
      const incoming = queue
        .slice(0, batchSize)
        .map((message) => ({ ...incomingFrom(message), mayHaveCrashed, signal: hand.signal }))
      const { done, processed, retry } = await process(incoming)
      const ended = queue.splice(0, done)
      waiting -= ended.length
      const last = ended.at(-1)
      if (last !== undefined) {
        watched.passed(last.offset, processed)
        committer.commit(partition, last)
      }
      if (waiting < readAhead) onRoom()
      if (retry !== undefined) await hand.pause(retry.delayMs)
    }
    queues.delete(partition)
  }

  // Reading is not in hand: it ends when the stream is closed, which comes after.
  read().catch(hand.lose)
  return hand.consumption
}

/** Commits offsets one after another, and of each partition only the last that there is. */
function createCommitter(hand: Hand) {
  const due = new Map<string, StreamedMessage>()
  let isCommitting = false

  async function commitAll(): Promise<void> {
    isCommitting = true
    try {
      while (due.size > 0) {
        const messages = [...due.values()]
        due.clear()
        // An offset that cannot be committed, as of a partition that went to somebody else, is read again: its messages are
        // duplicates then.
        for (const message of messages) await Promise.resolve(message.commit()).catch(() => {})
      }
    } finally {
      isCommitting = false
    }
  }

  return {
    commit(partition: string, message: StreamedMessage): void {
      due.set(partition, message)
      if (!isCommitting) hand.hold(commitAll)
    },
  }
}

function incomingFrom<M extends StreamedMessage>(message: M): Incoming<M> {
  const { topic, partition, offset, timestamp, headers, value } = message
  return {
    raw: message,
    broker: {
      header: (name) => headerText(headers, name),
      body: typeof value === 'string' || value instanceof Uint8Array ? value : undefined,
      origin: topic,
      position: `${partition}/${offset}`,
    },
    position: { topic, partition, offset, timestampMs: Number(timestamp) },
  }
}

/** Names and values are bytes, or whatever the client was told to make of them. */
function headerText(headers: StreamedMessage['headers'], name: string): string | undefined {
  for (const [header, value] of headers)
    if (String(header) === name) return value == null ? undefined : String(value)
  return undefined
}
