import type { IdempotencyStore, Outcome } from '../../src/contract/store.js'
import type { KeyLedger } from './key-ledger.js'
import { type LineStep, STORE, type SteppedLine } from './stepped-line.js'
import { byClock, type SteppedClock } from './stepped-time.js'

/** What a stepped store is made of. */
export interface SteppedStoreParts {
  /** The real store, which all processes share. */
  readonly inner: IdempotencyStore
  readonly storeClock: SteppedClock
  readonly line: SteppedLine
  readonly ledger: KeyLedger
  /** Notes a step and what the store answered. */
  readonly note: (what: string, answer: string) => void
}

/** A store as one process sees it. */
export interface SteppedStore extends IdempotencyStore {
  /** Whether the store may wake the process. */
  readonly isWatching: boolean
}

/**
 * A store on a line on which every call waits twice: before it reaches the store, and before its answer reaches the
 * process. In between, the step has happened and its process does not know.
 */
export function steppedStore(parts: SteppedStoreParts): SteppedStore {
  const { inner, storeClock, line, ledger, note } = parts
  const { process } = line
  const watches = new Set<AbortSignal>()

  function through<T>(
    step: LineStep,
    token: string | undefined,
    perform: () => Promise<T>,
    happened: (answer: T, askedAtMs: number) => void,
  ): Promise<T> {
    if (process.state === 'gone') return Promise.reject(new Error('the process is gone'))
    const what = `its ${step} reaches the store`
    return new Promise<T>((resolve, reject) => {
      const call = line.ask({ step, token, fail: reject })
      const losing = (lost: string) => (): void => {
        line.lose(call)
        reject(new Error(`the ${lost} was lost`))
      }
      const arrive = (answer: T): void => {
        line.hear(call, answer)
        resolve(answer)
      }
      const reach = (): void => {
        byClock(storeClock, perform).then((answer) => {
          happened(answer, call.askedAtMs)
          note(what, shortly(answer))
          const hearing = `hears the answer to its ${step}`
          process.park({ what: hearing, touches: [], take: () => arrive(answer), lose: losing('answer') })
        }, reject)
      }
      process.park({ what, touches: [STORE], take: reach, lose: losing('call') })
    })
  }

  return {
    get isWatching() {
      return watches.size > 0
    },
    claim: (request) =>
      through(
        'claim',
        request.token,
        async () => inner.claim(request),
        (answer, askedAtMs) => ledger.claimed(process.name, request, answer, askedAtMs),
      ),
    renew: (id, token, leaseMs) =>
      through(
        'renew',
        token,
        () => inner.renew(id, token, leaseMs),
        (held) => ledger.life.renewed(token, held),
      ),
    complete: (id, token, outcome, ttlMs) =>
      through(
        'complete',
        token,
        async () => inner.complete(id, token, outcome, ttlMs),
        (held) => ledger.completed(token, outcome, held),
      ),
    release: (id, token) =>
      through(
        'release',
        token,
        () => inner.release(id, token),
        (held) => ledger.released(token, held),
      ),
    find: (id) => through('find', undefined, () => inner.find(id), ledger.life.compare),
    settle: (id, resolution, ttlMs) =>
      through(
        'settle',
        undefined,
        () => inner.settle(id, resolution, ttlMs),
        (done) => ledger.settled(resolution as Outcome, done),
      ),
    /** A watch reaches the store in a step of its own: what changed before it did wakes nobody. */
    watch: (id, signal) =>
      new Promise((resolve) => {
        let parked = process.park({
          what: 'its watch reaches the store',
          touches: [STORE],
          take() {
            ledger.watched(process.name)
            watches.add(signal)
            inner.watch?.(id, signal).then(() => {
              watches.delete(signal)
              if (signal.aborted) return
              parked = process.park({ what: 'is woken', touches: [], take: resolve, series: 'wake' })
            })
          },
        })
        signal.addEventListener('abort', () => {
          watches.delete(signal)
          if (parked !== undefined) process.withdraw(parked)
          resolve()
        })
      }),
  }
}

function shortly(answer: unknown): string {
  if (typeof answer === 'object' && answer !== null && 'status' in answer)
    return 'fence' in answer ? `${answer.status}, fence ${answer.fence}` : String(answer.status)
  return answer === undefined ? 'nothing' : String(answer)
}
