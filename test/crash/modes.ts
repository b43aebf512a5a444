/** A way of working that the crash test attacks. Each is a route of its server, under its name. */
export type Mode = keyof typeof MODES

/** What must hold for every key of a mode, whatever happened to the servers. */
export type Promised =
  /** One effect at the most. A key without an answer is refused as unknown, and as nothing else. */
  | 'never twice'
  /** One effect at a downstream service that dedupes by the derived key, however often the handler ran. */
  | 'once downstream'
  /** One effect for a success, none for a refusal. */
  | 'effect with its answer'

export interface ModeSettings {
  readonly store: 'postgres' | 'redis'
  readonly promised: Promised
  /** How many accounts transfers go between: few for contention. */
  readonly accounts: number
}

export const MODES = {
  /** A lease, and no second run without being told: `onUnknown: 'reject'`. */
  reject: { store: 'postgres', promised: 'never twice', accounts: 0 },
  /** A lease, `onUnknown: 'rerun'`, and a derived key for the downstream call. */
  rerun: { store: 'postgres', promised: 'once downstream', accounts: 0 },
  'redis-reject': { store: 'redis', promised: 'never twice', accounts: 0 },
  'redis-rerun': { store: 'redis', promised: 'once downstream', accounts: 0 },
  /** `transaction()` in read committed. Accounts are locked in any order, so that some transactions deadlock. */
  transaction: { store: 'postgres', promised: 'effect with its answer', accounts: 40 },
  /** `transaction()` in serializable, which reads balances and writes new ones, between few accounts. */
  serializable: { store: 'postgres', promised: 'effect with its answer', accounts: 6 },
  /** `saveIn()` in a transaction that the handler begins and commits itself. */
  'save-in': { store: 'postgres', promised: 'effect with its answer', accounts: 40 },
} as const satisfies Readonly<Record<string, ModeSettings>>

export const ALL_MODES = Object.keys(MODES) as Mode[]

/** Whether an effect of the mode is a transfer between accounts. */
export function movesMoney(mode: Mode): boolean {
  return MODES[mode].promised === 'effect with its answer'
}

/** An account of a mode. */
export function accountOf(mode: Mode, index: number): string {
  return `${mode}/${index}`
}
