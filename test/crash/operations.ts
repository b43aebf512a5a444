import { accountOf, MODES, type Mode, movesMoney } from './modes.js'
import type { Random } from './random.js'
import type { OperationBody } from './routes.js'

/** One thing that a client wants done once. */
export interface Operation {
  readonly key: string
  readonly mode: Mode
  readonly body: OperationBody
}

const LARGEST_AMOUNT = 400

/** Makes an operation. In a mode that moves money it is a transfer between two of its accounts. */
export function anOperation(key: string, mode: Mode, random: Random): Operation {
  const amount = 1 + Math.floor(random.next() * LARGEST_AMOUNT)
  if (!movesMoney(mode)) return { key, mode, body: { from: 'nobody', to: 'nobody', amount } }
  const { accounts } = MODES[mode]
  const from = Math.floor(random.next() * accounts)
  const to = (from + 1 + Math.floor(random.next() * (accounts - 1))) % accounts
  return { key, mode, body: { from: accountOf(mode, from), to: accountOf(mode, to), amount } }
}
