import type { Outcome } from '../contract/store.js'

/**
 * Which operation an event is about. All events of one call of `begin`, and of the run that comes of it, carry the same
 * object: a subscriber may tell two concurrent ones apart by it.
 */
export interface EventSubject {
  /** The record's name in the store. */
  readonly id: string
  /** The key as the client sent it. Treat it as personal data. */
  readonly key: string
  /** A hash of the scope. */
  readonly scope: string
  /** Method and route pattern, or the name of the operation. */
  readonly route: string
}

interface About {
  readonly operation: EventSubject
}

/** The store's steps, as `store-call` names them. */
export type StoreStep =
  | 'claim'
  | 'renew'
  | 'complete'
  | 'release'
  | 'find'
  | 'settle'
  | 'sweep'
  | 'check'
  | 'begin'
  | 'commit'
  | 'rollback'
  | 'note'
  | 'redrive'
  | 'forget'

/** What the door that an operation came through can say of its outcome. */
export interface OutcomeFacts {
  /** The status of an HTTP answer. */
  readonly status?: number
  /** The trace of the run that made it, as W3C Trace Context writes it, where `traceWith` gave one. */
  readonly traceparent?: string
}

/** Reads what an outcome says of itself. */
export type OutcomeReader = (outcome: Outcome) => OutcomeFacts

/** What the engine reports, each step once. Metrics, traces and logs subscribe to these and to nothing else. */
export type IdempotencyEvent =
  /** The right to run was acquired. `fence` above 1 is a take-over of an unknown operation. */
  | (About & { readonly type: 'claimed'; readonly fence: number })
  /** A kept outcome answered a retry. */
  | (About & {
      readonly type: 'replayed'
      readonly from: 'store' | 'cache'
      readonly ageMs: number
      readonly tombstone: boolean
      /** Reads the outcome, for whoever asks: the head of an outcome is parsed for nobody else. */
      facts(): OutcomeFacts
    })
  /** A duplicate was refused because the first is still running. */
  | (About & { readonly type: 'in-progress' })
  /** The key came with another fingerprint, and was refused. */
  | (About & { readonly type: 'mismatch' })
  /** A retry was refused because nobody knows how an earlier attempt ended. */
  | (About & { readonly type: 'unknown'; readonly fence: number; readonly firstSeenAt: number })
  /** An operation was refused because the store failed, did not answer in time, or has no room. */
  | (About & { readonly type: 'refused'; readonly error: unknown })
  /** A concurrent duplicate waited for `waitedMs`, and then went on. */
  | (About & { readonly type: 'waited'; readonly waitedMs: number })
  /** The application's `onUnknown` function answered, or failed with `error`. */
  | (About & {
      readonly type: 'reconciled'
      readonly answer: 'outcome' | 'rerun' | 'reject'
      readonly fence: number
      readonly firstSeenAt: number
    })
  | (About & {
      readonly type: 'reconcile-failed'
      readonly error: unknown
      readonly fence: number
      readonly firstSeenAt: number
    })
  /** An outcome was kept, `runMs` after its claim. `late` marks one that could not be kept at the first attempt. */
  | (About & {
      readonly type: 'completed'
      readonly result: 'succeeded' | 'failed'
      readonly tombstone: boolean
      readonly runMs: number
      readonly late: boolean
      /** Reads the outcome, for whoever asks. */
      facts(): OutcomeFacts
    })
  /** The operation ended and its body could not be kept: a tombstone was kept in its place. */
  | (About & { readonly type: 'body-not-kept'; readonly reason: string })
  /** A claim was given back, because nothing was done. */
  | (About & { readonly type: 'released'; readonly runMs: number })
  /** A run is over for this process, in whatever way: each `claimed` gets one, unless its handler never ends. */
  | (About & { readonly type: 'claim-ended'; readonly fence: number })
  /** The claim is held by somebody else, or may be: its signal has aborted. */
  | (About & { readonly type: 'claim-lost'; readonly fence: number })
  /** A renewal got no answer. The claim is still held while its lease lasts. */
  | (About & { readonly type: 'renewal-failed'; readonly error: unknown })
  /** The operation ran for longer than `maxRun`: its claim is no longer renewed, its signal has aborted. */
  | (About & { readonly type: 'max-run'; readonly fence: number })
  /** The outcome could not be saved at the first attempt. It is tried again in the background. */
  | (About & { readonly type: 'save-failed'; readonly error: unknown })
  /** The outcome could not be saved until `maxRun`, and is given up: the operation becomes unknown. */
  | (About & { readonly type: 'save-abandoned'; readonly error: unknown })
  /** The operation ended after its claim was lost, and its own outcome was not kept. */
  | (About & { readonly type: 'outcome-lost'; readonly fence: number })
  /** A transaction was rolled back: its work failed, asked for it, or the claim was lost. */
  | (About & {
      readonly type: 'rolled-back'
      readonly fence: number
      readonly why: 'failed' | 'asked' | 'lost'
    })
  /** The database refused a transaction for a conflict with others, and its work was run again. */
  | (About & { readonly type: 'transaction-repeated'; readonly attempt: number })
  /** The answer to a commit was lost. The record decides. */
  | (About & { readonly type: 'commit-undecided'; readonly error: unknown })
  /** A claim that got no answer is being given back, in the background, or could not be. */
  | (About & { readonly type: 'claim-abandoned'; readonly error: unknown })
  | (About & { readonly type: 'release-failed'; readonly error: unknown })
  /** The handler ran without protection, because the store was away and `onStoreOutage` is `'run'`. */
  | (About & { readonly type: 'unprotected'; readonly error: unknown })
  /** One call of the store took `durationMs`. `error` is there when it failed. */
  | {
      readonly type: 'store-call'
      readonly step: StoreStep
      readonly durationMs: number
      readonly error?: unknown
    }
  /** The store said something that an operator should know, or a step of its upkeep failed. */
  | { readonly type: 'store-warning'; readonly message: string; readonly error?: unknown }
  /** Expired records were removed. */
  | { readonly type: 'swept'; readonly removed: number }

/** Receives every event. It must not throw: what it throws becomes a process warning and changes nothing. */
export type IdempotencyListener = (event: IdempotencyEvent) => void

/** A list of listeners, and the way to tell them. */
export interface Events<Event extends { readonly type: string } = IdempotencyEvent> {
  emit(event: Event): void
  /** Whether anybody listens to events of a type: one that nobody hears need not be made. */
  isHeard(type: Event['type']): boolean
  /**
   * Subscribes to every event, or to those of some types.
   *
   * @returns a function that ends the subscription.
   */
  on(listener: (event: Event) => void, types?: readonly Event['type'][]): () => void
}

/** Makes an empty list of listeners. */
export function createEvents<Event extends { readonly type: string } = IdempotencyEvent>(): Events<Event> {
  type Listener = (event: Event) => void
  /** Each listener, with the types that it wants to hear; `undefined` for all. */
  const listeners = new Map<Listener, ReadonlySet<string> | undefined>()
  /** The types that somebody hears; `undefined` when somebody hears all. */
  let heard: ReadonlySet<string> | undefined = new Set()

  function look(): void {
    const wanted = [...listeners.values()]
    heard = wanted.includes(undefined) ? undefined : new Set(wanted.flatMap((types) => [...(types ?? [])]))
  }

  return {
    emit(event) {
      for (const [listener, types] of listeners) {
        if (types?.has(event.type) === false) continue
        try {
          listener(event)
        } catch (error) {
          // An observer must never change an answer, and its failure must not be silent either.
          process.emitWarning(error instanceof Error ? error : String(error), 'OncekeyListenerWarning')
        }
      }
    },
    isHeard: (type) => heard === undefined || heard.has(type),
    on(listener, types) {
      listeners.set(listener, types && new Set(types))
      look()
      return () => {
        listeners.delete(listener)
        look()
      }
    },
  }
}
