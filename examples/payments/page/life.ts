import type { KeyEvent, TimedEvent } from '../demo-events.js'
import { shown } from './money.js'
import { keyOf, type Press } from './press.js'

/** The states of a key, in the order of its life. */
export type Station = 'absent' | 'running' | 'completed' | 'replayed' | 'unknown'

/** One step in the life of a key. */
export interface Step {
  readonly at: number
  /** The state that the key came to, where it came to one. */
  readonly station?: Station
  readonly says: string
  readonly mood: 'plain' | 'good' | 'bad' | 'doubt'
}

/** What became of the key of a press, or of the press where it has none, by what the page did and the bank has told. */
export function lifeOf(press: Press, events: readonly TimedEvent[]): readonly Step[] {
  const key = keyOf(press)
  const steps: Step[] = []
  if (press.withKey)
    steps.push({
      at: press.startedAt,
      station: 'absent',
      mood: 'plain',
      says: 'The page made a key and stored it in this tab. The bank has not heard of it.',
    })
  for (const at of press.resumedAt)
    steps.push({ at, mood: 'plain', says: 'The page was loaded again, and found the key in its tab.' })
  for (const event of events) {
    if (event.type === 'key' && event.key === key) steps.push({ at: event.at, ...stepOf(event) })
    else if (event.type === 'moved' && event.press === press.id)
      steps.push({
        at: event.at,
        mood: press.withKey ? 'plain' : 'bad',
        says: press.withKey
          ? `${shown(event.transfer.amount)} moved: transfer ${event.transfer.id}.`
          : `Attempt ${event.attempt} is a new order to the bank: ${shown(event.transfer.amount)} moved, transfer ${event.transfer.id}.`,
      })
    else if (event.type === 'crashed' && event.press === press.id)
      steps.push({ at: event.at, mood: 'bad', says: 'The bank crashed before it could say so.' })
  }
  return steps.sort((one, other) => one.at - other.at)
}

/** What is said again and again is said once, with how often. */
export function folded(steps: readonly Step[]): readonly Step[] {
  const rows: { readonly step: Step; count: number }[] = []
  for (const step of steps) {
    const last = rows.at(-1)
    if (last?.step.says === step.says) last.count += 1
    else rows.push({ step, count: 1 })
  }
  return rows.map(({ step, count }) => (count > 1 ? { ...step, says: `${step.says} ×${count}` } : step))
}

function stepOf(event: KeyEvent): Omit<Step, 'at'> {
  const ms = `${Math.round(event.ms ?? 0)} ms`
  switch (event.what) {
    case 'claimed':
      return {
        station: 'running',
        mood: 'plain',
        says: `Claimed, fence ${event.fence}: one attempt may run, and no other.`,
      }
    case 'completed':
      return {
        station: 'completed',
        mood: 'good',
        says: `The answer ${event.status} is kept, ${ms} after the claim.`,
      }
    case 'replayed':
      return {
        station: 'replayed',
        mood: 'good',
        says: `Answered ${event.status} again, from what was kept ${ms} before. Nothing ran.`,
      }
    case 'in-progress':
      return { mood: 'doubt', says: 'Refused with 409: the first is still running.' }
    case 'unknown':
      return {
        station: 'unknown',
        mood: 'bad',
        says: 'Refused with 409: nobody knows how the first attempt ended.',
      }
    case 'mismatch':
      return { mood: 'bad', says: 'Refused with 422: the key stands for another request.' }
    case 'released':
      return { station: 'absent', mood: 'plain', says: 'Given back: nothing was done.' }
    case 'max-run':
      return { mood: 'doubt', says: 'Running for too long: its claim is no longer renewed.' }
  }
}
