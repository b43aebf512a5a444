import type { LedgerEntry } from '../ledger.js'
import { shown } from './money.js'
import type { Press } from './press.js'

/** What a visitor should take from what happened. */
export interface Verdict {
  readonly mood: 'calm' | 'busy' | 'good' | 'bad' | 'doubt'
  readonly title: string
  readonly says: string
}

const TIMES = ['not at all', 'once', 'twice', 'three times', 'four times', 'five times', 'six times']

/** @param moved what the ledger holds of this press. */
export function verdictOf(press: Press | undefined, moved: readonly LedgerEntry[]): Verdict {
  if (!press)
    return {
      mood: 'calm',
      title: 'Nothing has been paid yet.',
      says: 'Press Pay. Unless you choose otherwise, two replies get lost, and the page asks again, as pages do.',
    }
  const sum = shown(moved.reduce((total, { amount }) => total + amount, 0))
  const times = TIMES[moved.length] ?? `${moved.length} times`
  const asked = TIMES[press.attempts.length] ?? `${press.attempts.length} times`
  const { end } = press
  if (!end)
    return {
      mood: 'busy',
      title: 'Paying…',
      says: `Asked ${asked} so far. ${sum} has left Alice${moved.length > 1 ? `: ${times}` : ''}.`,
    }
  if (moved.length > 1)
    return {
      mood: 'bad',
      title: `Bob got ${sum} for one press.`,
      says: `The page asked ${asked}, and the money left ${times}. Without a key the bank cannot tell a retry from a new order.`,
    }
  switch (end.kind) {
    case 'paid':
      return press.withKey
        ? {
            mood: 'good',
            title: `${sum} left Alice, ${times}.`,
            says:
              press.attempts.length > 1
                ? `The page asked ${asked}, always with the same key. The bank did it at the first, and gave its answer again to the others.`
                : 'One attempt, one answer: nothing went wrong this time. Lose some replies, and press again.',
          }
        : {
            mood: 'calm',
            title: `${sum} left Alice, ${times}.`,
            says: 'No reply was lost, so nothing was asked twice. Lose some, and press again.',
          }
    case 'settled':
      return {
        mood: 'good',
        title: `${sum} left Alice, ${times}.`,
        says: `An operator has settled the payment: it ended with ${end.status}, and nobody has its answer.`,
      }
    case 'refused':
      return { mood: 'doubt', title: 'Not paid.', says: `The bank says: ${end.says}.` }
    case 'no-answer':
      return press.withKey
        ? {
            mood: 'doubt',
            title: 'No answer yet.',
            says: 'The key is kept in this tab. Press Pay again, or mend the network: the same payment goes on.',
          }
        : {
            mood: 'doubt',
            title: 'No answer, and no key.',
            says: 'Was it paid? The page cannot ask without paying again.',
          }
    case 'unknown':
      return {
        mood: 'doubt',
        title: 'Nobody knows how it ended.',
        says: `The bank claimed the key and never said more, so it refuses to run it again: it could pay twice. The ledger, which an operator can read, has it ${times}. Settle the key in the operator’s console, then press Pay again.`,
      }
    case 'reloaded':
      return {
        mood: 'doubt',
        title: 'The page forgot what it was doing.',
        says: `It was loaded again in the middle. Without a key it cannot go on, and cannot know that ${sum} has left Alice.`,
      }
  }
}
