import type { Completion, IdempotencyStore } from '../../src/contract/store.js'
import type { KeyLedger } from './key-ledger.js'
import { STORE, type SteppedLine } from './stepped-line.js'
import { byClock, type SteppedClock } from './stepped-time.js'

/** What the work of a modelled transaction sends its statements through. */
export interface ModelledClient {
  /** A statement of the application: it has its effect when the transaction commits. */
  write(effect: () => void): void
}

/** The lock on the record. While a transaction holds it, every other step at the store waits. */
export interface RowLock {
  heldBy: string | undefined
}

/** What a stepped transaction is made of. */
export interface SteppedTransactionParts {
  readonly inner: IdempotencyStore
  readonly storeClock: SteppedClock
  readonly line: SteppedLine
  readonly ledger: KeyLedger
  readonly lock: RowLock
  /** The error of this process's library for a commit whose answer was lost. */
  readonly undecided: () => Error
  readonly note: (what: string, answer: string) => void
}

/**
 * Transactions on a store that has none, as a database runs them: the completion locks the record, and the commit writes
 * the effects and the outcome in one step. A process that crashes takes its open transaction with it.
 */
export function steppedTransaction(
  parts: SteppedTransactionParts,
): NonNullable<IdempotencyStore['transaction']> {
  const { inner, storeClock, line, ledger, lock, undecided, note } = parts
  const { process } = line

  function unlock(): void {
    if (lock.heldBy === process.name) lock.heldBy = undefined
  }

  function begin(): Promise<void> {
    return new Promise((resolve, reject) => {
      const call = line.ask({ step: 'begin', token: undefined, fail: reject })
      process.park({
        what: 'its transaction begins',
        touches: [],
        take() {
          line.hear(call, undefined)
          resolve()
        },
        lose() {
          line.lose(call)
          reject(new Error('the connection was lost'))
        },
      })
    })
  }

  /**
   * Completes the record and commits, which is one call. The record is locked in between: nobody else gets at it.
   *
   * @returns whether it was committed: `false` when the claim was lost.
   */
  function commit(completion: Completion, effects: readonly (() => void)[]): Promise<boolean> {
    const { id, token, outcome, ttlMs } = completion
    return new Promise((resolve, reject) => {
      const call = line.ask({ step: 'commit', token, fail: reject })
      const lose = (): void => {
        unlock()
        line.lose(call)
        reject(undecided())
      }
      const answer = (committed: boolean): void => {
        unlock()
        const take = (): void => {
          line.hear(call, committed)
          resolve(committed)
        }
        process.park({ what: 'hears the answer to its commit', touches: [], take, lose })
      }
      const complete = (): void => {
        const isHeld = ledger.life.isHeldBy(token)
        note(COMPLETES, String(isHeld))
        if (!isHeld) {
          answer(false)
          return
        }
        lock.heldBy = process.name
        process.park({
          what: 'its transaction commits',
          touches: [STORE],
          holdsRow: true,
          take() {
            byClock(storeClock, async () => inner.complete(id, token, outcome, ttlMs)).then((held) => {
              ledger.completed(token, outcome, held)
              for (const effect of effects) effect()
              answer(true)
            }, reject)
          },
          lose,
        })
      }
      process.park({ what: COMPLETES, touches: [STORE], take: complete, lose })
    })
  }

  return async (work) => {
    await begin()
    const effects: (() => void)[] = []
    const client: ModelledClient = { write: (effect) => effects.push(effect) }
    const { value, completion } = await work(client)
    if (completion === undefined) throw new Error('In a model, every transaction has a key')
    return (await commit(completion, effects)) ? { committed: true, value } : { committed: false }
  }
}

const COMPLETES = 'its transaction completes the record'
