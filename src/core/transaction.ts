import {
  CommitUndecidedError,
  StoreUnavailableError,
  TransactionUnsupportedError,
} from '../contract/errors.js'
import type { IdempotencyStore, Outcome, TransactionEnd, TransactionSettings } from '../contract/store.js'
import type { StoreCalls } from './store-calls.js'

/** What a piece of work in a transaction came to: its effects commit with this outcome, or are taken back. */
export interface WorkEnd<T> {
  readonly value: T
  /** `undefined` for a transaction that keeps no outcome, since nothing was claimed. */
  readonly outcome: Outcome | 'roll-back' | undefined
}

/** Work in a transaction. It may be run again, whole, when the database refuses it for a conflict with others. */
export type TransactionWork<T, TClient = unknown> = (client: TClient) => Promise<WorkEnd<T>>

/** What became of a transaction whose work did not throw. */
export type Transacted<T> =
  | { readonly kind: 'committed'; readonly value: T; readonly outcome: Outcome | undefined }
  | { readonly kind: 'rolled-back'; readonly value: T }
  /** The claim had gone to somebody else: everything was rolled back. */
  | { readonly kind: 'lost' }
  /** The commit was asked for, and its answer did not come. */
  | {
      readonly kind: 'undecided'
      readonly value: T
      readonly outcome: Outcome | undefined
      readonly error: unknown
    }

/** What a transaction needs of those who run it. */
export interface TransactionParts {
  readonly store: Pick<IdempotencyStore, 'transaction'>
  readonly call: StoreCalls
  readonly settings: Omit<TransactionSettings, 'signal'>
  /** Gives the transaction up when it aborts, wherever it is. */
  readonly giveUp: AbortController
  /** The claim that is completed with the commit. */
  readonly claim: { readonly id: string; readonly token: string; readonly ttlMs: number } | undefined
  /** Told when the work is over and all that is left is the commit. */
  readonly onCommitting: () => void
  /** Told when the work is run again, with the number of the attempt. */
  readonly onRepeated: (attempt: number) => void
}

/** What the store is waited for. */
type Turn = 'begin' | 'commit' | 'rollback'

/**
 * Runs `work` in a transaction of the store. While it is the store's turn (to begin, to commit, to roll back) it is held
 * to the time of a step; the work itself is not.
 *
 * @throws what `work` throws, and what the store says when it cannot begin or refuses to commit. Then nothing happened.
 */
export async function transact<T>(parts: TransactionParts, work: TransactionWork<T>): Promise<Transacted<T>> {
  const { store, call, settings, giveUp, claim, onCommitting, onRepeated } = parts
  if (store.transaction === undefined) throw new TransactionUnsupportedError()
  const { signal } = giveUp
  let endTurn = startTurn('begin')
  let attempts = 0
  let ended: WorkEnd<T> | undefined
  let failure: { readonly error: unknown } | undefined

  function startTurn(turn: Turn): () => void {
    let end: () => void = () => {}
    const over = new Promise<void>((resolve) => {
      end = resolve
    })
    call(turn, () => over).catch((error: unknown) => giveUp.abort(error))
    return end
  }

  async function attempt(client: unknown): Promise<TransactionEnd<T>> {
    // A connection that comes after all must not be worked with: nobody waits for it any more.
    signal.throwIfAborted()
    endTurn()
    ended = undefined
    failure = undefined
    attempts += 1
    if (attempts > 1) onRepeated(attempts)
    try {
      const end = await work(client)
      signal.throwIfAborted()
      ended = end
      if (end.outcome === 'roll-back') throw ROLL_BACK
      endTurn = startTurn('commit')
      onCommitting()
      const { value, outcome } = end
      return { value, completion: outcome && claim && { ...claim, outcome } }
    } catch (error) {
      endTurn = startTurn('rollback')
      failure = { error }
      throw error
    }
  }

  const running = store.transaction(attempt, { ...settings, signal })
  try {
    const result = await Promise.race([running, rejectionOf(signal, running)])
    if (!result.committed) return { kind: 'lost' }
    return { kind: 'committed', value: result.value, outcome: outcomeOf(ended) }
  } catch (error) {
    if (attempts === 0 && !signal.aborted)
      throw new StoreUnavailableError('The store failed at "begin"', { cause: error })
    if (failure !== undefined) {
      if (failure.error === ROLL_BACK && ended !== undefined)
        return { kind: 'rolled-back', value: ended.value }
      throw failure.error
    }
    // Once the work is done, all that can fail is the commit. Before, it certainly was not asked for.
    const isUndecided = ended !== undefined && (signal.aborted || error instanceof CommitUndecidedError)
    if (isUndecided && ended !== undefined)
      return { kind: 'undecided', value: ended.value, outcome: outcomeOf(ended), error }
    throw error
  } finally {
    endTurn()
  }
}

function outcomeOf(ended: WorkEnd<unknown> | undefined): Outcome | undefined {
  return ended?.outcome === 'roll-back' ? undefined : ended?.outcome
}

/** Unwinds a transaction that is to roll back. Nobody outside sees it. */
const ROLL_BACK = new Error('roll back')

/** Rejects when `signal` aborts. What is still running then ends unobserved. */
function rejectionOf(signal: AbortSignal, running: Promise<unknown>): Promise<never> {
  return new Promise((_, reject) => {
    const onAbort = (): void => reject(signal.reason)
    if (signal.aborted) onAbort()
    else signal.addEventListener('abort', onAbort, { once: true })
    const done = (): void => signal.removeEventListener('abort', onAbort)
    running.then(done, done)
  })
}
