import type { Pool } from 'pg'
import { eventsOf, type RunLog } from './history.js'
import { MODES, type Mode } from './modes.js'

/**
 * How many keys of a mode an attack hit where it hurts, so far: between the effect and the end of the operation. A crash
 * test that never does proves nothing.
 */
export async function hitsOf(mode: Mode, pool: Pool, log: RunLog): Promise<number> {
  const histories = [...log.histories.values()].filter(({ operation }) => operation.mode === mode)
  switch (MODES[mode].promised) {
    case 'never twice': {
      // The effect is there, and nobody knows.
      const unknown = histories.filter(({ ended }) => ended === 'unknown')
      return keysIn(pool, 'select distinct key from effects where key = any($1)', [
        unknown.map(({ operation }) => operation.key),
      ])
    }
    case 'once downstream':
      // A run had called the provider, and another one had to do so again.
      return keysIn(pool, 'select key from charge_calls where mode = $1 group by key having count(*) > 1', [
        mode,
      ])
    case 'effect with its answer':
      // A run ended in the middle of its transaction, or was stopped there, and another one took over.
      return histories.filter((history) => eventsOf(history, 'claimed').some(({ fence = 0 }) => fence > 1))
        .length
  }
}

async function keysIn(pool: Pool, text: string, values: unknown[]): Promise<number> {
  return (await pool.query(text, values)).rows.length
}
