import type { IdempotencyStore } from '../../src/contract/store.js'
import type { Sent } from './sent.js'

/** A service that Prometheus scrapes, and the account of what was sent to it. */
export interface MeasuredService {
  /** Host and port. */
  readonly target: string
  readonly sent: Sent
  /** Sends requests and messages of every kind. What it is given is how many of each. Nothing goes on when it ends. */
  load(size: number): Promise<void>
  /** Begins runs that do not end before `letGo` is called. */
  hold(): Promise<HeldRuns>
  close(): Promise<void>
}

/** Runs that wait, and how many there are by route. */
export interface HeldRuns {
  readonly live: Readonly<Record<string, number>>
  readonly stuck: Readonly<Record<string, number>>
  letGo(): Promise<void>
}

const STEPS = ['claim', 'renew', 'complete', 'release', 'find', 'settle'] as const

/** Notes every call that comes to a store, and how many failed. */
export function noting(store: IdempotencyStore, sent: Sent): IdempotencyStore {
  const noted =
    <Arguments extends unknown[], T>(step: string, call: (...args: Arguments) => Promise<T>) =>
    async (...args: Arguments): Promise<T> => {
      sent.add('oncekey_store_call_duration_seconds_count', { step })
      try {
        return await call(...args)
      } catch (error) {
        sent.add('oncekey_store_errors_total', { step })
        throw error
      }
    }
  const { remove, sweep } = store
  return {
    ...store,
    ...(Object.fromEntries(
      STEPS.map((step) => [step, noted(step, store[step] as (...args: unknown[]) => Promise<unknown>)]),
    ) as unknown as Pick<IdempotencyStore, (typeof STEPS)[number]>),
    ...(remove !== undefined && { remove: noted('forget', remove) }),
    ...(sweep !== undefined && { sweep: noted('sweep', sweep) }),
  }
}

/** What becomes of a request. */
export type RequestOutcome =
  | 'run'
  | 'replay'
  | 'in-progress'
  | 'mismatch'
  | 'unknown'
  | 'unprotected'
  | 'refused'

/** Notes a request, and for a run and a replay what follows of it by itself. */
export function noteRequest(
  sent: Sent,
  about: { readonly route: string; readonly outcome: RequestOutcome; readonly takesOver?: boolean },
): void {
  const { route, outcome, takesOver = false } = about
  sent.add('oncekey_requests_total', { route, outcome })
  if (outcome === 'run') sent.add(takesOver ? 'oncekey_take_overs_total' : 'oncekey_claims_total', { route })
  if (outcome === 'replay') sent.add('oncekey_replay_age_seconds_count', { route })
}

/** Notes that a run ended with an outcome that was kept at once. */
export function noteCompletion(sent: Sent, route: string, status: number | undefined): void {
  const result = status === undefined || status < 400 ? 'succeeded' : 'failed'
  const shown = status === undefined ? 'none' : `${Math.trunc(status / 100)}xx`
  sent.add('oncekey_completions_total', { route, result, status: shown })
  sent.add('oncekey_handler_duration_seconds_count', { route })
}
