import type { IdempotencyStore } from '../../src/contract/store.js'
import type { PolicyOptions } from '../../src/core/policy.js'
import type { IdempotencyListener } from '../../src/index.js'
import type { Asker, GrantedRun, KeyLedger, Reply } from './key-ledger.js'
import { type Handling, type Library, type Serve, textOf } from './modelled-services.js'
import type { Handler, HandlerActs, ProtocolModel } from './protocol-model.js'
import { type LineStep, type SteppedLine, steppedLine } from './stepped-line.js'
import { type SteppedProcess, steppedProcess } from './stepped-process.js'
import { type SteppedStore, steppedStore } from './stepped-store.js'
import type { SteppedClock } from './stepped-time.js'
import { type RowLock, steppedTransaction } from './stepped-transaction.js'

/** How long the lease of a model is, by every clock. */
export const LEASE_MS = 30_000

/** What the application answers when it is asked how an unknown operation ended. */
export const SETTLED = { by: 'the application' }

/** One process with the service in it. */
export interface ModelledServer {
  readonly process: SteppedProcess
  readonly line: SteppedLine
  readonly store: SteppedStore
  /** Who is to be answered before all is over. */
  readonly askers: Asker[]
  send(asker: Asker, handler: Handler, input: string): void
}

/** What the servers of one world share. */
export interface Scene {
  readonly model: ProtocolModel
  readonly key: string
  /** The clocks of all processes at the start. */
  readonly startMs: number
  readonly ledger: KeyLedger
  readonly history: string[]
  readonly inner: IdempotencyStore
  readonly storeClock: SteppedClock
  readonly lock: RowLock
  readonly replies: Map<Asker, Reply>
}

/** A process as it is before and after a world. */
export interface Host {
  readonly name: string
  readonly serve: Serve
  /** The error of its library for a commit whose answer was lost. */
  readonly undecided: () => Error
  readonly room: {
    guest: { readonly store: IdempotencyStore; readonly listener: IdempotencyListener } | undefined
  }
}

const RENEWAL_MS = LEASE_MS / 3
const WAIT_MS = 100
/** The longest that may be set, and longer than a schedule takes. */
const NO_TIMEOUT_MS = 3_600_000

/** Starts the engine of a process. It outlives many worlds, since to make one costs more than a world. */
export function startHost(name: string, model: ProtocolModel, library: Library): Host {
  const room: Host['room'] = { guest: undefined }
  const store = (): IdempotencyStore => {
    if (room.guest === undefined) throw new Error(`Nothing runs in ${name}`)
    return room.guest.store
  }
  const serve = model.service.start(library, {
    storeTimeoutMs: model.storeTimeoutMs ?? NO_TIMEOUT_MS,
    listener: (event) => room.guest?.listener(event),
    store: {
      claim: (request) => store().claim(request),
      renew: (...args) => store().renew(...args),
      complete: (...args) => store().complete(...args),
      release: (...args) => store().release(...args),
      find: (id) => store().find(id),
      settle: (...args) => store().settle(...args),
      watch: (id, signal) => store().watch?.(id, signal) ?? Promise.resolve(),
      transaction: (work, settings) =>
        store().transaction?.(work, settings) ?? Promise.reject(new Error('There are no transactions')),
    },
  })
  return { name, serve, undecided: () => new library.main.CommitUndecidedError(), room }
}

/** Puts a process of a world into its host. */
export function startServer({ name, serve, undecided, room }: Host, scene: Scene): ModelledServer {
  const { model, key, ledger, history, replies } = scene
  const process = steppedProcess(name, scene.startMs)
  const line = steppedLine({ process, ledger, timeoutMs })
  const store = steppedStore({ ...scene, line, note })
  room.guest = {
    store: { ...store, transaction: steppedTransaction({ ...scene, line, note, undecided }) },
    listener(event) {
      process.stir()
      if (event.type === 'claim-lost' && process.state !== 'gone') ledger.reportedLoss(name, event.fence)
    },
  }

  function timeoutMs(step: LineStep): number {
    return step === 'renew' ? RENEWAL_MS : (model.storeTimeoutMs ?? NO_TIMEOUT_MS)
  }

  function note(what: string, answer: string): void {
    const said = `${name}: ${what}`
    if (history.at(-1) === said) history.pop()
    history.push(`${said}: ${answer}`)
  }

  function send(asker: Asker, handler: Handler, input: string): void {
    let granted: GrantedRun | undefined
    const handling: Handling = {
      key,
      input,
      handle(run, sayEnd) {
        granted = ledger.started(asker, run.fence, run.signal)
        const end: HandlerActs['end'] = (result) => sayEnd(result, `${asker.name}-${run.fence}`)
        return handler(run, { ...actsOf(asker, granted), end })
      },
      ended(end) {
        if (granted !== undefined) ledger.ended(granted, end)
      },
    }
    serve(handling, policy()).then(
      (reply) => {
        if (process.state === 'gone') return
        process.stir()
        replies.set(asker, reply)
        history.push(`${asker.name} gets ${textOf(reply)}`)
        ledger.replied(asker, reply)
      },
      (error: unknown) => {
        if (process.state !== 'gone') ledger.breach(`${asker.name} was answered with ${String(error)}`)
      },
    )
  }

  function actsOf(asker: Asker, granted: GrantedRun): Omit<HandlerActs, 'end'> {
    return {
      step: (does, take) =>
        new Promise((resolve) => {
          process.park({
            what: `the handler of ${asker.name} ${does}, under fence ${granted.fence}`,
            touches: [],
            take() {
              take?.()
              resolve()
            },
            abandon: resolve,
          })
        }),
      pay() {
        if (process.state !== 'gone') ledger.paid(granted)
      },
    }
  }

  function policy(): PolicyOptions {
    const { atomic = false, onUnknown = atomic ? 'rerun' : 'reject' } = model
    // Who comes when all is over is told at once how it is.
    const waits = model.waits === true && process.state !== 'free'
    return {
      lease: LEASE_MS,
      maxRun: '5m',
      whenBusy: waits ? { wait: WAIT_MS } : 'reject',
      onUnknown: onUnknown === 'settle' ? ask : onUnknown,
      atomic,
    }
  }

  function ask(): Promise<{ readonly outcome: never }> {
    return new Promise((resolve, reject) => {
      process.park({
        what: 'the application says how it ended',
        touches: [],
        take: () => resolve({ outcome: SETTLED as never }),
        abandon: () => reject(new Error('the process is gone')),
      })
    })
  }

  return { process, line, store, askers: [], send }
}
