import type { TimedEvent } from '../demo-events.js'
import type { Account, LedgerEntry } from '../ledger.js'

/** What the bank has, and what it says it did. */
export interface BankView {
  readonly accounts: readonly Account[]
  readonly transfers: readonly LedgerEntry[]
  /** The latest events, the oldest first. */
  readonly events: readonly TimedEvent[]
}

/** No more than this is kept of what the bank says. */
const MOST_EVENTS = 400

/** Follows the bank, for as long as the page is there. */
export function followBank(changed: () => void): BankView {
  const view = {
    accounts: [] as readonly Account[],
    transfers: [] as readonly LedgerEntry[],
    events: [] as TimedEvent[],
  }
  let isReading = false
  let isStale = false

  const events = new EventSource('/demo/events')
  // After a time apart, too: what was missed may have moved money.
  events.addEventListener('open', () => void read())
  events.addEventListener('message', ({ data }) => {
    const event = JSON.parse(data) as TimedEvent
    view.events.push(event)
    if (view.events.length > MOST_EVENTS) view.events.shift()
    if (event.type === 'moved' || event.type === 'ledger') void read()
    changed()
  })
  return view

  /** One reading at a time, and another one where something has changed meanwhile. */
  async function read(): Promise<void> {
    isStale = true
    if (isReading) return
    isReading = true
    try {
      while (isStale) {
        isStale = false
        const [accounts, transfers] = await Promise.all([ask('/accounts'), ask('/transfers')])
        view.accounts = accounts as readonly Account[]
        view.transfers = transfers as readonly LedgerEntry[]
        changed()
      }
    } catch {
      // The bank is away. When it is back, the stream of events opens again, and so we come here.
    } finally {
      isReading = false
    }
  }
}

/** Empties the ledger, and fills the accounts as they were at first. */
export async function startOver(): Promise<void> {
  await fetch('/demo/start-over', { method: 'POST', headers: AS_ALICE })
}

const AS_ALICE = { authorization: 'Bearer alice' }

async function ask(path: string): Promise<unknown> {
  const response = await fetch(path, { headers: AS_ALICE })
  return response.json()
}
