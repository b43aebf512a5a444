import { setTimeout as pause } from 'node:timers/promises'
import { attack, type Deeds } from './chaos.js'
import { ask, carryOut } from './client.js'
import { type Answer, answersOf, type RunLog } from './history.js'
import type { Mode } from './modes.js'
import { anOperation } from './operations.js'
import type { Random } from './random.js'
import type { StoredState } from './records.js'
import type { ServerPair } from './server-pair.js'
import type { Evidence } from './verdict.js'

/** The load that servers are attacked under. */
export interface Load {
  readonly modes: readonly Mode[]
  readonly seconds: number
  readonly clients: number
  readonly leaseMs: number
  readonly random: Random
  readonly log: RunLog
  readonly pair: ServerPair
  /** Whether the attack may end: one that has hit too little goes on, for a while. */
  readonly isEnough: () => Promise<boolean>
  /** Told now and then how far it is. */
  readonly onProgress?: (text: string) => void
}

const PROGRESS_MS = 30_000
/** How much longer than asked for an attack may go on. */
const LONGEST_TIMES = 3
/** What has not ended by then, after all servers were healed, never will. */
const ENDS_WITHIN_MS = 60_000
const TROUBLED_ASKED_AGAIN = 500
const LAST_ATTEMPT = 1_000_000

/** Lets clients work while servers are attacked, then heals the servers and waits until every operation has ended. */
export async function attackUnderLoad(load: Load): Promise<Deeds> {
  const { modes, seconds, clients, leaseMs, random, log, pair, onProgress = () => {} } = load
  let givesUpAt = Number.POSITIVE_INFINITY
  const isOver = (): boolean => givesUpAt !== Number.POSITIVE_INFINITY
  const progress = setInterval(
    () => onProgress(`${log.histories.size} operations, ${log.deeds.length} kills and stops so far`),
    PROGRESS_MS,
  )

  async function work(client: number): Promise<void> {
    const own = random.fork(`client ${client}`)
    const parts = { random: own, servers: pair.servers, leaseMs, log, givesUpAt: () => givesUpAt }
    for (let number = 1; !isOver(); number += 1) {
      const operation = anOperation(`${client}-${number}`, own.pick(modes), own)
      await carryOut(log.begin(operation), parts)
    }
  }

  async function end(): Promise<void> {
    const startedAt = Date.now()
    await pause(seconds * 1000)
    while (!(await load.isEnough()) && Date.now() < startedAt + seconds * 1000 * LONGEST_TIMES)
      await pause(1000)
    givesUpAt = Date.now() + ENDS_WITHIN_MS
  }

  try {
    const ending = end()
    const working = Promise.all(Array.from({ length: clients }, (_, client) => work(client)))
    const deeds = await attack({ servers: pair.servers, random: random.fork('chaos'), leaseMs, log, isOver })
    await ending
    await pair.heal()
    await working
    await pair.becomeIdle()
    // From here on nobody holds a claim that was held by a process which has gone.
    await pause(leaseMs * 1.5)
    return deeds
  } finally {
    clearInterval(progress)
  }
}

/** Asks once more about all keys that were left as unknown, and about some that had a troubled way to their answer. */
export async function askAgain(
  { log, pair, random }: Load,
  before: ReadonlyMap<string, StoredState>,
): Promise<Evidence['lastAnswers']> {
  const histories = [...log.histories.values()]
  const unknown = histories.filter(({ ended }) => ended === 'unknown')
  const troubled = histories.filter((history) => history.ended !== 'unknown' && answersOf(history).length > 2)
  const lastAnswers = new Map<string, { answer: Answer; before: StoredState | undefined }>()
  for (const history of [...unknown, ...troubled.slice(-TROUBLED_ASKED_AGAIN)]) {
    const { key } = history.operation
    const answer = await ask(history, { random, servers: pair.servers, log }, LAST_ATTEMPT)
    lastAnswers.set(key, { answer, before: before.get(key) })
  }
  return lastAnswers
}
