import { setTimeout as pause } from 'node:timers/promises'
import type { RunLog } from './history.js'
import type { Random } from './random.js'
import type { AttackedServer } from './server-pair.js'

/** How often each thing was done to a server. */
export interface Deeds {
  readonly kills: number
  readonly stops: number
}

/** How hard the servers are attacked. */
export interface ChaosParts {
  readonly servers: readonly AttackedServer[]
  readonly random: Random
  readonly leaseMs: number
  readonly log: RunLog
  readonly isOver: () => boolean
}

/** On a busy machine, servers that are killed as soon as they are up would answer nothing, and nothing would be tested. */
const ANSWERS_IN_PEACE = 10
const LONGEST_WAIT_MS = 5000

const SHORTEST_PEACE_MS = 200
const LONGEST_PEACE_MS = 600

/** Kills and stops servers at random moments until it is over. Usually one of them is left to serve. */
export async function attack(parts: ChaosParts): Promise<Deeds> {
  const { servers, random, leaseMs, log, isOver } = parts
  let kills = 0
  let stops = 0

  function kill(server: AttackedServer): void {
    log.addDeed(`SIGKILL ${server.name}${server.state === 'stopped' ? ', which was stopped' : ''}`)
    server.kill()
    kills += 1
  }

  function stop(server: AttackedServer, forMs: number): void {
    log.addDeed(`SIGSTOP ${server.name} for ${Math.round(forMs)} ms`)
    server.stop(forMs)
    stops += 1
  }

  while (!isOver()) {
    // Everything is drawn before the servers are looked at, so that a seed draws the same every time.
    const peaceMs = random.between(SHORTEST_PEACE_MS, LONGEST_PEACE_MS)
    const luck = random.next()
    const [one, other] = random.chance(0.5) ? servers : [...servers].reverse()
    const [stopMs, otherStopMs] = [aStop(random, leaseMs), aStop(random, leaseMs)]
    const answersBefore = log.answers()
    const waitsUntil = Date.now() + LONGEST_WAIT_MS
    await pause(peaceMs)
    while (log.answers() < answersBefore + ANSWERS_IN_PEACE && Date.now() < waitsUntil && !isOver())
      await pause(SHORTEST_PEACE_MS / 10)
    if (one === undefined || other === undefined) break
    if (!isAtWork(one)) continue
    if (isAtWork(other)) {
      if (luck < 0.04) [one, other].forEach(kill)
      else if (luck < 0.08) {
        stop(one, stopMs)
        stop(other, otherStopMs)
      } else if (luck < 0.14) {
        stop(one, stopMs)
        kill(other)
      } else if (luck < 0.6) kill(one)
      else stop(one, stopMs)
    } else if (luck < 0.1) kill(one)
    else if (other.state === 'stopped' && luck < 0.4) kill(other)
  }
  return { kills, stops }
}

/** One that is being started has nothing that could be killed. */
function isAtWork({ state }: AttackedServer): boolean {
  return state === 'serving'
}

/** Longer than a lease, and now and then longer than the store may take to answer. */
function aStop(random: Random, leaseMs: number): number {
  return leaseMs * (random.chance(0.25) ? random.between(2, 5) : random.between(1.05, 2))
}
