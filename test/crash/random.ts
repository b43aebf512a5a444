import { createHash } from 'node:crypto'

/** A source of choices that can be made again: one seed, one sequence. */
export interface Random {
  /** From 0 up to, and without, 1. */
  next(): number
  between(least: number, most: number): number
  chance(probability: number): boolean
  pick<T>(choices: readonly T[]): T
  /** Another source, which only depends on this one's seed and `name`, and not on what was asked so far. */
  fork(name: string): Random
}

/** Makes the source of a seed. */
export function seededRandom(seed: string): Random {
  let state = createHash('sha256').update(seed).digest().readUInt32LE()

  // Mulberry32: enough for choices, and nothing else is asked of it.
  function next(): number {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }

  return {
    next,
    between: (least, most) => least + next() * (most - least),
    chance: (probability) => next() < probability,
    pick(choices) {
      const chosen = choices[Math.floor(next() * choices.length)]
      if (chosen === undefined) throw new Error('There is nothing to pick from')
      return chosen
    },
    fork: (name) => seededRandom(`${seed}/${name}`),
  }
}
