import type { KeyLedger } from './key-ledger.js'
import type { SteppedProcess } from './stepped-process.js'

/** What the steps at the store have in common. */
export const STORE = 'store'

/** The calls from one process to a store that have no answer yet. */
export interface SteppedLine {
  readonly process: SteppedProcess
  /** Begins a call. `fail` is for when nobody will ever answer it. */
  ask(call: Pick<LineCall, 'step' | 'token' | 'fail'>): LineCall
  /** The answer has come: the ledger learns what the process is told, unless the process has given up waiting. */
  hear(call: LineCall, answer: unknown): void
  /** The call, or its answer, was lost. */
  lose(call: LineCall): void
  /** Tells the ledger which calls the process does not wait for any longer. They may happen all the same. */
  noteTimeouts(): void
  /** Fails all calls: nobody waits for them any more. */
  leave(): void
}

/** One call. */
export interface LineCall {
  readonly step: LineStep
  readonly token: string | undefined
  readonly fail: (error: Error) => void
  readonly askedAtMs: number
  isLate: boolean
}

/** What is asked of a store. */
export type LineStep = 'claim' | 'renew' | 'complete' | 'release' | 'find' | 'settle' | 'begin' | 'commit'

/** Makes the line of a process. */
export function steppedLine(parts: {
  readonly process: SteppedProcess
  readonly ledger: KeyLedger
  /** How long the process waits for the answer to a call. */
  readonly timeoutMs: (step: LineStep) => number
}): SteppedLine {
  const { process, ledger, timeoutMs } = parts
  const open = new Set<LineCall>()
  return {
    process,
    ask(asked) {
      const call: LineCall = { ...asked, askedAtMs: process.clock.nowMs, isLate: false }
      open.add(call)
      ledger.asked(process.name, call.step, call.askedAtMs)
      return call
    },
    hear(call, answer) {
      open.delete(call)
      if (!call.isLate) ledger.told(process.name, call.step, call.token, answer)
    },
    lose(call) {
      open.delete(call)
      if (!call.isLate) ledger.failed(process.name, call.step, call.token)
    },
    noteTimeouts() {
      for (const call of open) {
        if (call.isLate || process.clock.nowMs - call.askedAtMs < timeoutMs(call.step)) continue
        call.isLate = true
        ledger.failed(process.name, call.step, call.token)
      }
    },
    leave() {
      for (const { fail } of open) fail(new Error('the process is gone'))
      open.clear()
    },
  }
}
