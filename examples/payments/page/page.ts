import { CallAnswerNotKeptError, CallError, CallOutcomeUnknownError } from '/oncekey/client/create-fetch.js'
import { followBank, startOver } from './bank.js'
import { element } from './elements.js'
import { parsed } from './money.js'
import { giveUp, type Patience, payWithKey, payWithoutKey } from './pay.js'
import {
  type End,
  forget,
  isOpen,
  keyOf,
  type Network,
  newPress,
  type Press,
  store,
  stored,
} from './press.js'
import { show } from './view.js'
import { wireOf } from './wire.js'

// `?timeout=…&wait=…&double=…`, in milliseconds, makes the page more or less patient.
const asked = new URLSearchParams(location.search)
const patience: Patience = {
  timeoutMs: Number(asked.get('timeout') ?? 1500),
  waitMs: Number(asked.get('wait') ?? 900),
}
/** Whoever presses again within this time has pressed once, with a nervous finger. */
const doublePressMs = Number(asked.get('double') ?? 600)

const form = element<HTMLFormElement>('form')
const amount = element<HTMLInputElement>('amount')
const withKey = element<HTMLInputElement>('with-key')

let current = stored()
let pressedAt = Number.NEGATIVE_INFINITY
/** How many calls are under way for the current press. */
let running = 0
let isShowing = false
const bank = followBank(changed)

form.addEventListener('submit', (event) => {
  event.preventDefault()
  press(event.timeStamp)
})
// A key that is held down is one press.
form.addEventListener('keydown', (event) => {
  if (event.repeat && event.key === 'Enter') event.preventDefault()
})
// Not all fields are inside of their form, on the page.
document.addEventListener('change', () => {
  keepChoices()
  changed()
  resume()
})
addEventListener('online', resume)
element('anew').addEventListener('click', () => letGo())
element('start-over').addEventListener('click', async () => {
  await startOver()
  await letGo()
})

restoreChoices()
if (current && isOpen(current) && current.end?.kind !== 'unknown') {
  current.resumedAt.push(Date.now())
  void pay(current)
} else if (current && !current.end) current.end = { kind: 'reloaded' }
changed()

function press(timeStamp: number): void {
  const cents = parsed(amount.value)
  amount.setAttribute('aria-invalid', `${cents === undefined}`)
  element('amount-error').textContent = cents === undefined ? 'Say how much, as in 5.00.' : ''
  if (cents === undefined) {
    amount.focus()
    return
  }

  const isSecond = timeStamp - pressedAt < doublePressMs
  pressedAt = timeStamp
  const isSame = current && (isOpen(current) || running > 0 || isSecond)
  if (!current || !isSame) current = newPress(current, cents, withKey.checked)
  void pay(current)
}

/** Goes on with a payment that got no answer, once the network may be better. */
function resume(): void {
  if (current && isOpen(current) && current.end?.kind === 'no-answer' && network() !== 'offline')
    void pay(current)
}

/** Forgets the current payment, unless it is under way. */
async function letGo(): Promise<void> {
  if (!current || running > 0) return
  await giveUp(current)
  current = undefined
  forget()
  changed()
}

async function pay(press: Press): Promise<void> {
  // The key of a payment that is done is not stored any more. A second finger gets the answer of the first.
  const doneKey = press.withKey && press.end && !isOpen(press) ? keyOf(press) : undefined
  running += 1
  press.end = undefined
  changed()
  const wire = wireOf(press, network, changed)
  let end: End
  try {
    const response = await (press.withKey
      ? payWithKey(press, wire, patience, doneKey)
      : payWithoutKey(press, wire, patience))
    // An operator may have settled the payment with any answer.
    const [, error = `${response.status}`] = /"error":"([^"]*)"/.exec(await response.text()) ?? []
    end = response.ok ? { kind: 'paid' } : { kind: 'refused', says: error }
  } catch (error) {
    end = { kind: error instanceof CallOutcomeUnknownError ? 'unknown' : 'no-answer' }
    if (error instanceof CallAnswerNotKeptError) {
      // It has ended, so the key has done its work.
      end = { kind: 'settled', status: Number(error.problem.originalStatus) }
      await giveUp(press)
    } else if (!(error instanceof CallError || error instanceof TypeError || error instanceof DOMException))
      reportError(error)
  } finally {
    running -= 1
  }
  // Where two fingers wait, the last answer is the end.
  if (running === 0 || end.kind === 'paid' || end.kind === 'settled') press.end = end
  changed()
}

/** Keeps what happened before it goes on, and shows it once a frame. */
function changed(): void {
  if (current) store(current)
  if (isShowing) return
  isShowing = true
  // A tab in the background has no frames, and its visitor looks later.
  requestAnimationFrame(() => {
    isShowing = false
    show(current, bank)
  })
}

function network(): Network {
  return new FormData(form).get('network') as Network
}

function keepChoices(): void {
  sessionStorage.setItem('demo:choices', JSON.stringify({ network: network(), withKey: withKey.checked }))
}

function restoreChoices(): void {
  const choices = JSON.parse(sessionStorage.getItem('demo:choices') ?? 'null') as {
    readonly network: Network
    readonly withKey: boolean
  } | null
  if (!choices) return
  withKey.checked = choices.withKey
  for (const choice of form.querySelectorAll<HTMLInputElement>('[name=network]'))
    choice.checked = choice.value === choices.network
}
