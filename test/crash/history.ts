import type { CrashServerLine } from '../programs/crash-server.js'
import type { Operation } from './operations.js'

/** What a client got for one request. */
export interface Answer {
  readonly from: 'client'
  readonly sentAt: number
  readonly at: number
  readonly server: string
  /** 0 when there was none: the connection broke, or the client waited no longer. */
  readonly status: number
  /** The code of a problem, or why there was no answer. */
  readonly code: string | undefined
  /** Whether a problem says that the same request may succeed later. */
  readonly isRetryable: boolean
  readonly isReplay: boolean
  readonly body: string
}

/** What a server's engine reported about the key. */
export type ServerEvent = Extract<CrashServerLine, { tells: 'event' }> & {
  readonly from: 'server'
  readonly server: string
}

/** How the client left an operation. */
export type Ended = 'succeeded' | 'refused' | 'failed' | 'unknown'

/** Everything that anybody saw of one key, in the order it was seen. */
export interface History {
  readonly operation: Operation
  readonly seen: (Answer | ServerEvent)[]
  /** `undefined` as long as the client still tries. */
  ended: Ended | undefined
}

/** What was done to the servers. */
export interface Deed {
  readonly at: number
  readonly what: string
}

/** The record of a run: all operations by key, and what was done to the servers. */
export interface RunLog {
  readonly histories: ReadonlyMap<string, History>
  readonly deeds: readonly Deed[]
  begin(operation: Operation): History
  addAnswer(history: History, answer: Answer): void
  addEvent(server: string, event: Extract<CrashServerLine, { tells: 'event' }>): void
  addDeed(what: string): void
  /** How many answers ended an operation so far, replays among them. */
  answers(): number
}

/** Makes an empty log. */
export function createRunLog(): RunLog {
  const histories = new Map<string, History>()
  const deeds: Deed[] = []
  let answers = 0
  return {
    histories,
    deeds,
    begin(operation) {
      const history: History = { operation, seen: [], ended: undefined }
      histories.set(operation.key, history)
      return history
    },
    addAnswer(history, answer) {
      history.seen.push(answer)
      if (endOf(answer) !== undefined) answers += 1
    },
    addEvent(server, event) {
      histories.get(event.key)?.seen.push({ ...event, from: 'server', server })
    },
    addDeed(what) {
      deeds.push({ at: Date.now(), what })
    },
    answers: () => answers,
  }
}

/** The answers of a history. */
export function answersOf({ seen }: History): readonly Answer[] {
  return seen.filter((entry): entry is Answer => entry.from === 'client')
}

/** The events of a history of one type. */
export function eventsOf({ seen }: History, type: string): readonly ServerEvent[] {
  return seen.filter((entry): entry is ServerEvent => entry.from === 'server' && entry.type === type)
}

/** How an answer ends an operation, if it does. What must not come at all ends it as well, and is found later. */
export function endOf({ status, code, isRetryable, isReplay }: Answer): Ended | undefined {
  if (status >= 200 && status < 300) return 'succeeded'
  if (code === 'IDEMPOTENCY_OUTCOME_UNKNOWN') return 'unknown'
  if (status === 402) return 'refused'
  if (status === 0 || isRetryable) return undefined
  // An answer of the application: a failure that was kept comes back, one that was not may be tried again.
  if (code === undefined && status >= 500 && !isReplay) return undefined
  return 'failed'
}
