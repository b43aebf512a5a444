import type { TimedEvent } from '../demo-events.js'
import type { LedgerEntry } from '../ledger.js'
import type { BankView } from './bank.js'
import { element, fill, make } from './elements.js'
import { folded, lifeOf, type Station, type Step } from './life.js'
import { shown } from './money.js'
import { type Attempt, isOpen, keyOf, type Press, pressOf } from './press.js'
import { verdictOf } from './verdict.js'

/** Shows everything anew. What has not changed is left as it is. */
export function show(press: Press | undefined, bank: BankView): void {
  const moved = press ? bank.transfers.filter(({ reference }) => reference === press.id) : []
  showBalances(bank)
  showVerdict(press, moved)
  showForm(press)
  showWire(press, bank.events)
  showLife(press, bank.events)
  showLedger(bank.transfers, press)
}

function showBalances({ accounts }: BankView): void {
  for (const { id, balance } of accounts) element(`balance-${id}`).textContent = shown(balance)
}

function showVerdict(press: Press | undefined, moved: readonly LedgerEntry[]): void {
  const { mood, title, says } = verdictOf(press, moved)
  element('verdict').dataset.mood = mood
  fill(element('verdict-title'), title)
  fill(element('verdict-says'), says)
  const sum = moved.reduce((total, { amount }) => total + amount, 0)
  const figures: readonly (readonly [string, string])[] = [
    [press?.attempts.length === 1 ? 'attempt' : 'attempts', `${press?.attempts.length ?? 0}`],
    [moved.length === 1 ? 'transfer' : 'transfers', `${moved.length}`],
    ['left Alice', shown(sum)],
  ]
  fill(
    element('count'),
    ...figures.map(([name, figure]) => make('div', {}, make('dt', {}, name), make('dd', {}, figure))),
  )
}

function showForm(press: Press | undefined): void {
  const isBusy = press !== undefined && !press.end
  const isHeld = press !== undefined && (isBusy || isOpen(press))
  const withKey = element<HTMLInputElement>('with-key')
  // Another amount under the same key would be refused, and rightly so.
  element<HTMLInputElement>('amount').readOnly = isHeld
  withKey.disabled = isHeld
  element('pay').dataset.busy = `${isBusy}`
  element('anew').hidden = !isHeld || isBusy
  fill(
    element('with-key-says'),
    withKey.checked ? 'All attempts of a press carry one key.' : 'A plain retry loop, as many pages have.',
  )
  fill(
    element('state'),
    isBusy
      ? 'On its way. Press again, or reload the page.'
      : isHeld
        ? 'Pay asks for the same payment again.'
        : 'Press twice, or reload the page in the middle.',
  )
}

function showWire(press: Press | undefined, events: readonly TimedEvent[]): void {
  const attempts = press?.attempts ?? []
  fill(element('wire-note'), press ? `press ${press.number}` : '')
  const rows = attempts.map((attempt) =>
    make(
      'tr',
      { 'data-mood': gotOf(attempt).mood },
      cell('Sent', make('span', { class: 'time' }, since(press, attempt.sentAt))),
      cell('Request', `POST ${attempt.path}`),
      cell(
        'Idempotency-Key',
        attempt.key === null
          ? make('span', { class: 'none' }, 'none')
          : make('code', { title: attempt.key }, shortened(attempt.key)),
      ),
      cell('The bank', ...bankOf(press, attempt, events)),
      cell('The page got', ...gotCell(gotOf(attempt))),
    ),
  )
  const nothing = make(
    'tr',
    { class: 'nothing' },
    make('td', { colspan: '5' }, 'Every attempt will be listed here.'),
  )
  fill(element('wire'), ...(rows.length > 0 ? rows : [nothing]))
}

function cell(label: string, ...children: readonly (Node | string)[]): HTMLElement {
  return make('td', { 'data-label': label }, make('span', {}, ...children))
}

/** What the bank did at an attempt, as it says itself. */
function bankOf(
  press: Press | undefined,
  attempt: Attempt,
  events: readonly TimedEvent[],
): readonly (Node | string)[] {
  let did = attempt.ended?.how === 'offline' ? 'never heard of it' : '…'
  let moved = ''
  for (const event of events) {
    if (!('press' in event) || event.press !== press?.id || event.attempt !== attempt.number) continue
    if (event.type === 'arrived') did = 'is at work'
    else if (event.type === 'moved') moved = `moved ${shown(event.transfer.amount)}`
    else if (event.type === 'crashed') did = 'crashed'
    else if (event.type === 'reply-lost' || event.type === 'answered') {
      moved ||= 'moved nothing'
      did = `answered ${event.status}${event.replayed ? ' again' : ''}`
    }
  }
  if (moved === '') return [did]
  return [moved === 'moved nothing' ? moved : make('b', {}, moved), make('small', {}, did)]
}

interface Got {
  readonly mood: 'waiting' | 'good' | 'doubt' | 'bad'
  readonly says: string
  readonly detail?: string
}

function gotCell({ says, detail }: Got): readonly Node[] {
  return [make('span', { class: 'got' }, says), ...(detail ? [make('small', {}, detail)] : [])]
}

function gotOf({ ended }: Attempt): Got {
  switch (ended?.how) {
    case undefined:
      return { mood: 'waiting', says: 'waiting…' }
    case 'lost':
      return { mood: 'bad', says: '✕ reply lost' }
    case 'given-up':
      return { mood: 'bad', says: '✕ no reply in time' }
    case 'offline':
      return { mood: 'bad', says: '✕ offline' }
    case 'reloaded':
      return { mood: 'bad', says: '✕ page reloaded' }
    case 'answered':
      if (ended.replayed)
        return { mood: 'good', says: `✓ ${ended.status}`, detail: 'Idempotent-Replayed: true' }
      if (Number(ended.status) < 400) return { mood: 'good', says: `✓ ${ended.status}` }
      return {
        mood: 'doubt',
        says: `${ended.status}`,
        detail: (ended.code ?? '').replace('IDEMPOTENCY_', ''),
      }
  }
}

const NAMES: Readonly<Record<Station, string>> = {
  absent: 'absent',
  running: 'running',
  completed: 'completed',
  replayed: 'replayed',
  unknown: 'unknown',
}

function showLife(press: Press | undefined, events: readonly TimedEvent[]): void {
  const steps = press ? lifeOf(press, events) : []
  const key = press && keyOf(press)
  fill(element('key'), key ? make('code', { title: key }, shortened(key)) : '')
  const stations = press?.withKey === false ? [] : stationsOf(steps)
  element('stations').hidden = stations.length === 0
  fill(
    element('stations'),
    ...stations.map(({ station, count, isNow }) =>
      make(
        'li',
        {
          'data-station': station,
          'data-reached': `${count > 0}`,
          ...(isNow && { 'aria-current': 'step' }),
        },
        count > 1 ? `${NAMES[station]} ×${count}` : NAMES[station],
      ),
    ),
  )
  const rows = folded(steps).map(({ at, says, mood }) =>
    make(
      'li',
      { 'data-mood': mood },
      make('span', { class: 'time' }, since(press, at)),
      make('span', {}, says),
    ),
  )
  const nothing = press?.withKey === false ? 'No key: nothing for the bank to recognise.' : 'No key yet.'
  fill(element('life'), ...(rows.length > 0 ? rows : [make('li', { class: 'nothing' }, nothing)]))
}

interface ReachedStation {
  readonly station: Station
  readonly count: number
  readonly isNow: boolean
}

/** The usual way of a key, with how often it came by. A key whose end is unknown leaves that way. */
function stationsOf(steps: readonly Step[]): readonly ReachedStation[] {
  const reached = steps.flatMap(({ station }) => (station ? [station] : []))
  const isUnknown = reached.includes('unknown') && !reached.includes('completed')
  const way: readonly Station[] = isUnknown
    ? ['absent', 'running', 'unknown', ...reached.filter((one) => one === 'replayed').slice(0, 1)]
    : ['absent', 'running', 'completed', 'replayed']
  return way.map((station) => ({
    station,
    // How often an unknown end was asked about says nothing more.
    count:
      station === 'replayed'
        ? reached.filter((one) => one === station).length
        : Number(reached.includes(station)),
    isNow: reached.at(-1) === station,
  }))
}

function showLedger(transfers: readonly LedgerEntry[], press: Press | undefined): void {
  const groups: LedgerEntry[][] = []
  for (const entry of transfers) {
    const group = groups.at(-1)
    if (group?.[0]?.reference === entry.reference) group.push(entry)
    else groups.push([entry])
  }
  const items = groups.slice(0, 12).map((group) => {
    const reference = group[0]?.reference ?? ''
    const named = pressOf(reference)
    const sum = shown(group.reduce((total, { amount }) => total + amount, 0))
    return make(
      'li',
      {
        'data-mood': !named ? 'plain' : group.length > 1 ? 'bad' : 'good',
        'data-now': `${reference === press?.id}`,
      },
      make(
        'p',
        { class: 'group' },
        make(
          'span',
          {},
          named
            ? `Press ${named.number}, ${named.withKey ? 'with a key' : 'without a key'}`
            : 'Sent from elsewhere',
        ),
        make('b', {}, sum),
      ),
      make(
        'ul',
        {},
        ...group.map(({ id, from, to, amount }) =>
          make(
            'li',
            {},
            make('span', {}, `${id}`),
            make('span', {}, `${capitalised(from)} → ${capitalised(to)}`),
            make('span', {}, shown(amount)),
          ),
        ),
      ),
    )
  })
  fill(
    element('ledger'),
    ...(items.length > 0 ? items : [make('li', { class: 'nothing' }, 'No transfers yet.')]),
  )
}

function since(press: Press | undefined, at: number): string {
  return `${(Math.max(0, at - (press?.startedAt ?? at)) / 1000).toFixed(2)} s`
}

function shortened(key: string): string {
  return key.length > 13 ? `${key.slice(0, 8)}…` : key
}

function capitalised(name: string): string {
  return name.charAt(0).toUpperCase() + name.slice(1)
}
