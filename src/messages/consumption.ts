import { setMaxListeners } from 'node:events'
import { setTimeout as wait } from 'node:timers/promises'
import type { Duration } from '../contract/duration.js'
import { OptionsError } from '../contract/errors.js'
import { duration } from '../core/parse-options.js'
import type { Inbox } from './inbox.js'
import { type ReceiverOptions, receiverShape } from './receiver.js'

/** How messages are consumed. */
export interface ConsumeOptions<Raw> extends ReceiverOptions<Raw> {
  /**
   * How long `stop()` waits for what is in hand, before it is taken back.
   *
   * @default '30s'
   */
  readonly drainTimeout?: Duration
}

/** A consumer that takes messages from its broker. */
export interface Consumption {
  /** How it ended, once nothing is in hand any more. It never rejects. */
  readonly ended: Promise<ConsumptionEnd>

  /**
   * Takes no more messages, and resolves when nothing is in hand any more. What is then not done within `drainTimeout` is
   * taken back: its signal aborts, and the broker delivers it again. Close the connection only after that.
   */
  stop(): Promise<void>
}

/** Why a consumer takes no more messages. */
export type ConsumptionEnd =
  | { readonly reason: 'stopped' }
  /** The broker or its client has ended it. What was in hand has come to its end, and is delivered again. */
  | { readonly reason: 'lost'; readonly error: Error }

/** What an adapter keeps its messages in hand with. */
export interface Hand {
  readonly consumption: Consumption
  /** Aborts when what is in hand is taken back. */
  readonly signal: AbortSignal
  /** Aborts when no more messages are to be taken. */
  readonly ending: AbortSignal
  /** Keeps the consumption from its end until `work` has come to its own. */
  hold(work: () => Promise<void>): void
  /** Waits, but not beyond the end of the consumption. */
  pause(delayMs: number): Promise<void>
  /** No more messages will come. */
  lose(error: unknown): void
}

/**
 * Begins a consumption.
 *
 * @param parts.leave tells the broker to send no more messages. What it fails with means that there are none anyway.
 */
export function openHand({ drainMs, leave }: { readonly drainMs: number; leave(): Promise<unknown> }): Hand {
  const takenBack = new AbortController()
  const endingNow = new AbortController()
  // As many listeners as messages.
  setMaxListeners(0, takenBack.signal, endingNow.signal)
  const inHand = new Set<Promise<void>>()
  let end: ConsumptionEnd | undefined
  let resolveEnded: (end: ConsumptionEnd) => void
  const ended = new Promise<ConsumptionEnd>((resolve) => {
    resolveEnded = resolve
  })

  function finish(how: ConsumptionEnd): void {
    if (end !== undefined) return
    end = how
    endingNow.abort()
    // Whoever is gone already needs not leave.
    if (how.reason === 'stopped') hold(async () => void (await leave().catch(() => {})))
    void drained().then(() => resolveEnded(how))
  }

  async function drained(): Promise<void> {
    while (inHand.size > 0) await Promise.all(inHand)
  }

  function lose(error: unknown): void {
    finish({ reason: 'lost', error: error instanceof Error ? error : new Error(String(error)) })
  }

  function hold(work: () => Promise<void>): void {
    const held = work()
      .catch(lose)
      .finally(() => inHand.delete(held))
    inHand.add(held)
  }

  async function stop(): Promise<void> {
    finish({ reason: 'stopped' })
    const limit = setTimeout(
      () => takenBack.abort(new Error('The message was taken back: its consumer stops')),
      drainMs,
    )
    await ended
    clearTimeout(limit)
  }

  return {
    consumption: { ended, stop },
    signal: takenBack.signal,
    ending: endingNow.signal,
    hold,
    // An early end is what the signal is for.
    pause: (delayMs) => wait(delayMs, undefined, { signal: endingNow.signal }).catch(() => {}),
    lose,
  }
}

/** The options that adapters of queues share, for the schema of each. */
export const consumeShape = {
  ...receiverShape,
  drainTimeout: duration({ min: 0, max: '24d' }).optional(),
}

/** The default of `drainTimeout`. */
export const DRAIN_MS = 30_000

/**
 * Refuses an inbox that goes by a high watermark: a queue delivers again out of order, and what comes late would be taken
 * for old.
 *
 * @throws {OptionsError}
 */
export function refuseWatermark(where: string, { usesWatermark }: Pick<Inbox, 'usesWatermark'>): void {
  if (!usesWatermark) return
  throw new OptionsError(`${where}: highWatermark() is for logs that are read in order, such as Kafka's`)
}
