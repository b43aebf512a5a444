import {
  CommitUndecidedError,
  StoreUnavailableError,
  TransactionUnsupportedError,
} from '../contract/errors.js'
import type { IdempotencyStore, Outcome, StoreTransaction, TransactionSettings } from '../contract/store.js'
import type { StoreCalls } from './store-calls.js'

/** How a piece of work in a transaction ends: its effects commit with this outcome, or are taken back. */
export interface TransactionEnd<T> {
  readonly value: T
  readonly outcome: Outcome | 'roll-back'
}

/** Work in a transaction. It may be run again, whole, when the database refuses it for a conflict with others. */
export type TransactionWork<T, TClient = unknown> = (client: TClient) => Promise<TransactionEnd<T>>

/** For a transaction that keeps no outcome, since nothing was claimed. */
export const NO_OUTCOME: Outcome = { result: 'succeeded', head: '', body: null }

/** What became of a transaction whose work did not throw. */
export type Transacted<T> =
  | { readonly kind: 'committed'; readonly value: T; readonly outcome: Outcome }
  | { readonly kind: 'rolled-back'; readonly value: T }
  /** The claim had gone to somebody else: everything was rolled back. */
  | { readonly kind: 'lost' }
  /** The commit was asked for, and its answer did not come. */
  | { readonly kind: 'undecided'; readonly value: T; readonly outcome: Outcome; readonly error: unknown }

/** What a transaction needs of those who run it. */
export interface TransactionParts {
  readonly store: IdempotencyStore
  readonly call: StoreCalls
  readonly settings: Omit<TransactionSettings, 'signal'>
  /** Gives the transaction up when it aborts, wherever it is. */
  readonly giveUp: AbortController
  /** Keeps the outcome in the transaction. Resolves with `false` when the claim was lost. */
  readonly complete: (tx: StoreTransaction, outcome: Outcome) => Promise<boolean>
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
  const { store, call, settings, giveUp, complete, onRepeated } = parts
  if (store.transaction === undefined) throw new TransactionUnsupportedError()
  const { signal } = giveUp
  let endTurn = startTurn('begin')
  let attempts = 0
  let ended: Transacted<T> | undefined
  let failure: { readonly error: unknown } | undefined

  function startTurn(turn: Turn): () => void {
    let end: () => void = () => {}
    const over = new Promise<void>((resolve) => {
      end = resolve
    })
    call(turn, () => over).catch((error: unknown) => giveUp.abort(error))
    return end
  }

  async function attempt(tx: StoreTransaction): Promise<void> {
    // A connection that comes after all must not be worked with: nobody waits for it any more.
    signal.throwIfAborted()
    endTurn()
    ended = undefined
    failure = undefined
    attempts += 1
    if (attempts > 1) onRepeated(attempts)
    try {
      const { value, outcome } = await work(tx.client)
      signal.throwIfAborted()
      if (outcome === 'roll-back') {
        ended = { kind: 'rolled-back', value }
        throw ROLL_BACK
      }
      endTurn = startTurn('commit')
      if (!(await complete(tx, outcome).catch(storeFailed))) {
        ended = { kind: 'lost' }
        throw ROLL_BACK
      }
      signal.throwIfAborted()
      ended = { kind: 'committed', value, outcome }
    } catch (error) {
      endTurn()
      endTurn = startTurn('rollback')
      failure ??= { error }
      throw error
    }
  }

  /** The store gets its error as it was, to see whether the work may be run again; everybody else gets ours. */
  function storeFailed(cause: unknown): never {
    failure = { error: new StoreUnavailableError('The store failed at "complete"', { cause }) }
    throw cause
  }

  const running = store.transaction(attempt, { ...settings, signal })
  try {
    await Promise.race([running, rejectionOf(signal, running)])
  } catch (error) {
    // Once the work is done, all that can fail is the commit. Before, it certainly was not asked for.
    if (ended?.kind === 'committed' && (signal.aborted || error instanceof CommitUndecidedError))
      return { ...ended, kind: 'undecided', error }
    if (ended !== undefined && ended.kind !== 'committed') return ended
    if (attempts === 0 && !signal.aborted)
      throw new StoreUnavailableError('The store failed at "begin"', { cause: error })
    throw failure === undefined ? error : failure.error
  } finally {
    endTurn()
  }
  if (ended === undefined) throw new Error('The store did not run the work of a transaction')
  return ended
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
