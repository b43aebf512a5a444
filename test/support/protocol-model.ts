import type { IdempotencyStore } from '../../src/contract/store.js'
import type { HandlerResult, ModelledService, Run } from './modelled-services.js'
import type { ModelledClient as TransactionClient } from './stepped-transaction.js'

/** What is explored: who does what, and what may go wrong. */
export interface ProtocolModel {
  readonly service: ModelledService
  readonly clients: readonly ModelledClient[]
  /** Whether a duplicate waits. @default false */
  readonly waits?: boolean
  /** What becomes of an unknown outcome. `'settle'` is an application that is asked, and says how it ended. @default 'reject' */
  readonly onUnknown?: 'reject' | 'rerun' | 'settle'
  /** Whether every effect is a part of a transaction. @default false */
  readonly atomic?: boolean
  /** @default longer than a schedule takes */
  readonly storeTimeoutMs?: number
  /** What may go wrong in each process. @default nothing */
  readonly mishaps?: Readonly<Partial<Record<ServerName, Mishaps>>>
  /** How often the lease may lapse by the store's clock. @default 0 */
  readonly lapses?: number
  /** @default memoryStore */
  readonly createStore?: () => IdempotencyStore
}

/** A client that sends one request with the key. */
export interface ModelledClient {
  readonly name: string
  /** The server that it is sent to. Each is a process of its own. */
  readonly process: ServerName
  /** @default pays */
  readonly handler?: Handler
  /** What it says. Another input is another request. @default the same for all */
  readonly input?: string
}

/** Two servers, and one that is started when all is over. */
export type ServerName = 'P' | 'Q'

/** How often something may go wrong in a process. */
export interface Mishaps {
  readonly crashes?: 1
  /** It comes to its next timer while other things happen: to a renewal, a timeout, another look. */
  readonly ticks?: number
  /** A call to the store, or the answer to it, is lost. */
  readonly losses?: number
}

/** What the handler of a request does: a script of steps. Anything may happen between any two of them. */
export type Handler = (run: Run, acts: HandlerActs) => Promise<unknown>

/** What a handler can do. */
export interface HandlerActs {
  /** Comes to a step, and goes on once it is taken. */
  step(what: string, take?: () => void): Promise<void>
  /** The effect, which must not happen twice. */
  pay(): void
  /** Says how the handler ends. @returns the answer. */
  end(result: HandlerResult): unknown
}

/** Has its effect, and answers. */
export const pays: Handler = async (_run, { step, pay, end }) => {
  await step('pays', pay)
  return end('paid')
}

/** Has its effect, and fails after it. */
export const paysAndFails: Handler = async (_run, { step, pay, end }) => {
  await step('pays, and fails', pay)
  return end('failed')
}

/** Finds that there is nothing to do, and says so. */
export const doesNothing: Handler = async (_run, { step, end }) => {
  await step('does nothing')
  return end('nothing')
}

/** Has its effect as a part of the commit that keeps its answer. */
export const paysInTransaction: Handler = (run, { step, pay, end }) =>
  run.transaction(async (client) => {
    await step('pays in a transaction')
    const { write } = client as TransactionClient
    write(pay)
    return end('paid')
  })
