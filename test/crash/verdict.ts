import { type Answer, answersOf, endOf, eventsOf, type History, type RunLog } from './history.js'
import type { Counted, Effect } from './ledger.js'
import { MODES, type Mode, type Promised } from './modes.js'
import type { StoredState } from './records.js'

/** Everything that a key is judged by. */
export interface Evidence extends Counted {
  readonly log: RunLog
  readonly leaseMs: number
  /** How many keys of each mode were hit between their effect and their end. */
  readonly hits: ReadonlyMap<Mode, number>
  /** What the stores held when all was over. */
  readonly records: ReadonlyMap<string, StoredState>
  /** The last question about keys that clients had left as unknown, with what the store held before it was asked. */
  readonly lastAnswers: ReadonlyMap<
    string,
    { readonly answer: Answer; readonly before: StoredState | undefined }
  >
}

/** A key that broke a promise. */
export interface WrongKey {
  readonly history: History
  readonly faults: readonly string[]
}

/** What a mode came to. */
export interface ModeReport {
  readonly mode: Mode
  readonly operations: number
  readonly succeeded: number
  readonly refused: number
  /** Keys that are unknown for good: their effect happened, or did not. */
  readonly unknown: number
  /** Of these, keys whose effect has happened. */
  readonly unknownWithEffect: number
  /** Keys that were hit between their effect and their end. */
  readonly hits: number
  /** Runs under a fence above 1. */
  readonly takeOvers: number
  /** Runs that ended after their claim was lost, and whose completion or commit was refused. */
  readonly overtaken: number
  /** Keys whose first answer was lost: the client only ever saw it replayed. */
  readonly answersLost: number
  /** Keys for which the provider was called more than once. */
  readonly calledAgain: number
  /** Transactions that the database had to run again, and commits whose answer was lost. */
  readonly repeated: number
  readonly undecided: number
  /** What is wrong with the mode as a whole. */
  readonly faults: readonly string[]
  readonly wrong: readonly WrongKey[]
}

/** Codes that a client may meet on its way. Anything else is a broken promise. */
const EXPECTED_CODES: Readonly<Record<Promised, readonly string[]>> = {
  'never twice': [
    'IDEMPOTENCY_KEY_IN_PROGRESS',
    'IDEMPOTENCY_STORE_UNAVAILABLE',
    'IDEMPOTENCY_OUTCOME_UNKNOWN',
  ],
  'once downstream': ['IDEMPOTENCY_KEY_IN_PROGRESS', 'IDEMPOTENCY_STORE_UNAVAILABLE'],
  'effect with its answer': [
    'IDEMPOTENCY_KEY_IN_PROGRESS',
    'IDEMPOTENCY_STORE_UNAVAILABLE',
    'IDEMPOTENCY_COMMIT_UNDECIDED',
    'IDEMPOTENCY_CLAIM_LOST',
  ],
}

/** Judges every key of a mode. */
export function judge(mode: Mode, evidence: Evidence): ModeReport {
  const histories = [...evidence.log.histories.values()].filter(({ operation }) => operation.mode === mode)
  const counted = (type: string, wanted: (fence: number, detail?: string) => boolean = () => true): number =>
    histories
      .flatMap((history) => eventsOf(history, type))
      .filter(({ fence = 0, detail }) => wanted(fence, detail)).length
  const endedAs = (ended: History['ended']): number =>
    histories.filter((history) => history.ended === ended).length
  const unknown = histories.filter(
    ({ operation: { key } }) => evidence.records.get(key)?.status === 'running',
  )
  return {
    mode,
    operations: histories.length,
    succeeded: endedAs('succeeded'),
    refused: endedAs('refused'),
    unknown: unknown.length,
    unknownWithEffect: unknown.filter(({ operation: { key } }) => evidence.effects.has(key)).length,
    hits: evidence.hits.get(mode) ?? 0,
    takeOvers: counted('claimed', (fence) => fence > 1),
    overtaken: counted('outcome-lost') + counted('rolled-back', (_, why) => why === 'lost'),
    answersLost: histories.filter(hasLostItsAnswer).length,
    calledAgain: histories.filter(({ operation: { key } }) => (evidence.calls.get(key) ?? 0) > 1).length,
    repeated: counted('transaction-repeated'),
    undecided: counted('commit-undecided'),
    faults: faultsOfMode(mode, evidence),
    wrong: histories
      .map((history) => ({ history, faults: faultsOf(history, evidence) }))
      .filter(({ faults }) => faults.length > 0),
  }
}

function hasLostItsAnswer(history: History): boolean {
  const first = answersOf(history).find((answer) => endOf(answer) === 'succeeded')
  return first?.isReplay === true
}

function faultsOfMode(mode: Mode, { imbalances, effects, log }: Evidence): readonly string[] {
  const strays = [...effects]
    .filter(([key, [effect]]) => effect?.mode === mode && !log.histories.has(key))
    .map(([key]) => `nobody has asked for ${key}, and it had an effect`)
  return [...(imbalances.get(mode) ?? []), ...strays]
}

function faultsOf(history: History, evidence: Evidence): readonly string[] {
  const { promised } = MODES[history.operation.mode]
  return [
    ...faultsOfAnswers(history, promised),
    ...faultsOfEffects(history, promised, evidence),
    ...faultsOfRecord(history, evidence),
    ...faultsOfClaims(history, promised, evidence.leaseMs),
    ...faultsOfLastAnswer(history, evidence),
  ]
}

function faultsOfAnswers(history: History, promised: Promised): readonly string[] {
  const answers = answersOf(history)
  const faults: string[] = []
  if (history.ended === undefined) faults.push('it never ended')
  if (history.ended === 'failed') faults.push('it ended with an answer that must not come')
  const finals = new Set(finalAnswers(history).map(({ status, body }) => `${status} ${body}`))
  if (finals.size > 1) faults.push(`it has ${finals.size} different answers`)
  const codes = new Set(answers.filter(({ status }) => status > 0).map(({ code }) => code))
  for (const code of codes)
    if (code !== undefined && !EXPECTED_CODES[promised].includes(code))
      faults.push(`a client was told ${code}`)
  return faults
}

/** What answers a key for good: a success, a refusal of the application, or a failure that was kept. */
function finalAnswers(history: History): readonly Answer[] {
  return answersOf(history).filter(
    (answer) => answer.code === undefined && endOf(answer) !== undefined && answer.status > 0,
  )
}

function faultsOfEffects(history: History, promised: Promised, evidence: Evidence): readonly string[] {
  const effects = evidence.effects.get(history.operation.key) ?? []
  const charges = evidence.charges.get(history.operation.key) ?? []
  const success = answersOf(history).find((answer) => endOf(answer) === 'succeeded')
  switch (promised) {
    case 'never twice':
      if (effects.length > 1) return [`it has ${effects.length} effects`]
      return success === undefined ? [] : faultsOfReceipt(success, effects)
    case 'effect with its answer':
      if (success !== undefined) return faultsOfReceipt(success, effects)
      return effects.length === 0 ? [] : [`it has no success, and ${effects.length} effects`]
    case 'once downstream':
      if (charges.length !== 1) return [`it was charged ${charges.length} times`]
      if (success === undefined) return ['it has no success']
      return success.body.includes(`"${charges[0]} `) ? [] : ['its answer names another charge']
  }
}

function faultsOfReceipt({ body }: Answer, effects: readonly Effect[]): readonly string[] {
  const [effect] = effects
  if (effects.length !== 1 || effect === undefined) return [`it has a success, and ${effects.length} effects`]
  return body.includes(`"${effect.receipt}"`) ? [] : ['its answer and its effect are of different runs']
}

function faultsOfRecord(history: History, { records }: Evidence): readonly string[] {
  const record = records.get(history.operation.key)
  const [final] = finalAnswers(history)
  if (final === undefined) return []
  if (record === undefined) return ['it has an answer, and nothing is kept']
  if (record.status !== 'completed') return ['it has an answer, and its record says that it is running']
  if (record.body !== final.body) return ['what is kept is not what was answered']
  if (endOf(final) !== 'succeeded') return []
  const { fence } = JSON.parse(final.body) as { readonly fence: number }
  return fence === record.fence ? [] : ['a run that was overtaken has kept its answer']
}

function faultsOfClaims(history: History, promised: Promised, leaseMs: number): readonly string[] {
  const takeOver = eventsOf(history, 'claimed').find(({ fence = 0 }) => fence > 1)
  if (takeOver === undefined) return []
  if (promised === 'never twice') return ['it was run again, without being told to']
  // The first claim cannot be older than the first request, nor the take-over younger than its report.
  const firstSentAt = Math.min(...answersOf(history).map(({ sentAt }) => sentAt))
  return takeOver.at - firstSentAt < leaseMs ? ['it was taken over before any lease can have ended'] : []
}

function faultsOfLastAnswer({ operation: { key } }: History, { lastAnswers }: Evidence): readonly string[] {
  const last = lastAnswers.get(key)
  if (last?.before?.status !== 'running') return []
  const { status, code } = last.answer
  return code === 'IDEMPOTENCY_OUTCOME_UNKNOWN'
    ? []
    : [`its outcome is unknown, and a client was told ${code ?? status}`]
}
