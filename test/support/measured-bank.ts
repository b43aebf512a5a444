import { buildBank } from '../../examples/payments/bank.js'
import { openLedger } from '../../examples/payments/ledger.js'
import { createFetch } from '../../src/client/create-fetch.js'
import { seededRandom } from '../crash/random.js'
import { aKey } from './fastify-app.js'
import { type Gate, gate } from './gate.js'
import { type MeasuredService, noteCompletion, noteRequest, type RequestOutcome } from './measured-service.js'
import { createSent } from './sent.js'

const ROUTE = 'POST /transfers'

/** Amounts, in cents, that the ledger of this bank does not simply move. */
const HELD = 77
const BROKEN = 13
const TOO_MUCH = 1_000_000

const OUTCOMES: Readonly<Record<string, RequestOutcome>> = {
  IDEMPOTENCY_KEY_IN_PROGRESS: 'in-progress',
  IDEMPOTENCY_KEY_REUSED: 'mismatch',
}

/** The bank of the demo, over HTTP, with clients that lose answers and retry. Every answer is noted as it was received. */
export async function aMeasuredBank(): Promise<MeasuredService> {
  const sent = createSent(() => ({ instance: target }))
  let target = ''
  const ledger = await openLedger()
  let held: Gate = gate()
  let inside = 0
  const bank = await buildBank({
    ...ledger,
    async transfer(...given: Parameters<typeof ledger.transfer>) {
      const [{ amount }] = given
      if (amount === BROKEN) throw new Error('The ledger is broken')
      if (amount === HELD) {
        inside += 1
        await held.opened
      }
      return ledger.transfer(...given)
    },
  })
  const url = await bank.listen({ port: 0, host: '127.0.0.1' })
  target = new URL(url).host
  // It sweeps and renews when the time for it has come.
  bank.idempotency.on((event) => {
    if (event.type === 'store-call' && (event.step === 'sweep' || event.step === 'renew'))
      sent.add('oncekey_store_call_duration_seconds_count', { step: event.step })
    if (event.type === 'swept') sent.add('oncekey_swept_records_total', {}, event.removed)
  })
  // While a key runs, and once an outcome is remembered, at its first retry, the bank does not ask its store.
  const atHand = new Set<string>()

  function note(
    key: string,
    answer: { readonly status: number; readonly isReplay: boolean; readonly code: unknown },
  ) {
    const outcome = answer.isReplay ? 'replay' : (OUTCOMES[String(answer.code)] ?? 'run')
    noteRequest(sent, { route: ROUTE, outcome })
    const steps: string[] = []
    if (outcome === 'run') {
      steps.push('claim', 'complete')
      noteCompletion(sent, ROUTE, answer.status)
    }
    if (outcome === 'replay') {
      const source = atHand.has(key) ? 'cache' : 'store'
      sent.add('oncekey_replays_total', { route: ROUTE, source, body: 'kept' })
    }
    if ((outcome === 'replay' || outcome === 'mismatch') && !atHand.has(key)) steps.push('claim')
    if (outcome === 'replay') atHand.add(key)
    for (const step of steps) sent.add('oncekey_store_call_duration_seconds_count', { step })
  }

  /** Sends a request, and notes what it was answered, whether or not its sender gets to know. */
  async function wire(input: string | URL | Request, init?: RequestInit): Promise<Response> {
    const request = new Request(input, init)
    const key = request.headers.get('idempotency-key') ?? ''
    const response = await fetch(request)
    const text = await response.text()
    const { code } = JSON.parse(text) as { readonly code?: unknown }
    if (key !== '')
      note(key, { status: response.status, isReplay: response.headers.has('idempotent-replayed'), code })
    const { status, headers } = response
    return new Response(text, { status, headers })
  }

  const body = (amount: number, to = 'bob'): string => JSON.stringify({ from: 'alice', to, amount })
  const headers = { authorization: 'Bearer alice', 'content-type': 'application/json' }
  const send = (key: string, amount: number): Promise<Response> =>
    wire(`${url}/transfers`, {
      method: 'POST',
      headers: { ...headers, 'idempotency-key': key },
      body: body(amount),
    })

  /** A client of ours whose answers are lost on their way, again and again. */
  async function payThroughBadNetwork(size: number): Promise<void> {
    const random = seededRandom('bad network')
    const pay = createFetch({
      retries: 20,
      backoff: { base: 1, max: 5 },
      async fetch(input, init) {
        const response = await wire(input, init)
        if (random.chance(0.5)) throw new TypeError('fetch failed')
        return response
      },
    })
    const orders = Array.from({ length: size }, (_, one) => {
      if (one % 5 === 1) return body(TOO_MUCH)
      if (one % 5 === 2) return body(1, 'nobody')
      if (one % 5 === 3) return body(BROKEN)
      return body(1)
    })
    const clients = Array.from({ length: 8 }, async () => {
      for (let order = orders.pop(); order !== undefined; order = orders.pop())
        await pay(`${url}/transfers`, { method: 'POST', headers, body: order })
    })
    await Promise.all(clients)
  }

  return {
    target,
    sent,

    async load(size) {
      await payThroughBadNetwork(8 * size)
      for (let one = 0; one < size; one += 1) {
        const key = aKey()
        await send(key, 1)
        // Of another request, before the bank has remembered the first and after it.
        await send(key, 2)
        for (let retry = 0; retry < 3; retry += 1) await send(key, 1)
        await send(key, 2)
        // Two at once: one runs, the other is refused or replays.
        const twice = aKey()
        await Promise.all([send(twice, 1), send(twice, 1)])
        // Without a key nothing is measured.
        await wire(`${url}/transfers`, { method: 'POST', headers, body: body(1) })
      }
    },

    async hold() {
      held = gate()
      inside = 0
      const keys = [aKey(), aKey(), aKey()]
      const running = keys.map((key) => send(key, HELD))
      for (const key of keys) atHand.add(key)
      while (inside < keys.length) await new Promise((resolve) => setTimeout(resolve, 5))
      for (const key of keys) {
        await send(key, HELD)
        await send(key, HELD)
        await send(key, 1)
      }
      return {
        live: { [ROUTE]: keys.length },
        stuck: {},
        async letGo() {
          held.open()
          await Promise.all(running)
          for (const key of keys) atHand.delete(key)
        },
      }
    },

    close: () => bank.close(),
  }
}
