import { setTimeout as pause } from 'node:timers/promises'
import { type Answer, endOf, type History, type RunLog } from './history.js'
import type { Operation } from './operations.js'
import type { Random } from './random.js'

/** What a client needs to carry an operation out. */
export interface ClientParts {
  readonly random: Random
  readonly servers: readonly { readonly name: string; readonly url: string }[]
  readonly leaseMs: number
  readonly log: RunLog
  /** When nobody tries any more, in epoch milliseconds: what has not ended by then never will. */
  readonly givesUpAt: () => number
}

/** Clients differ in their patience, and some ask elsewhere before a lease is over. */
const LEAST_PATIENCE_MS = 500
const MOST_PATIENCE_MS = 3000
const DUPLICATES_ONCE_IN = 7
const ASKS_AGAIN_ONCE_IN = 4

/**
 * Sends an operation, with the same key and body, to one server or the other until it has ended. Now and then it is sent
 * several times at once, and now and then again after its end.
 */
export async function carryOut(history: History, parts: ClientParts): Promise<void> {
  const { random, leaseMs } = parts
  let attempt = 0
  let timesUnknown = 0
  while (Date.now() < parts.givesUpAt()) {
    attempt += 1
    const copies = random.chance(1 / DUPLICATES_ONCE_IN) ? 2 + Math.floor(random.next() * 2) : 1
    const answers = await Promise.all(Array.from({ length: copies }, () => ask(history, parts, attempt)))
    const ended = answers.map(endOf).find((end) => end !== undefined)
    if (ended === 'unknown') {
      timesUnknown += 1
      // Asked again after a whole lease, so that nobody can hold it any more.
      if (timesUnknown > 1) history.ended = ended
      else await pause(leaseMs * 1.5)
    } else if (ended !== undefined) history.ended = ended
    else timesUnknown = 0
    if (history.ended !== undefined) break
    await pause(random.between(5, Math.min(400, 20 * 2 ** attempt)))
  }
  if (history.ended !== undefined && random.chance(1 / ASKS_AGAIN_ONCE_IN)) {
    await pause(random.between(0, leaseMs))
    await ask(history, parts, attempt + 1)
  }
}

/** Sends an operation once, and writes down what came back. */
export async function ask(
  history: History,
  { random, servers, log }: Pick<ClientParts, 'random' | 'servers' | 'log'>,
  attempt: number,
): Promise<Answer> {
  const { operation } = history
  const { name: server, url } = random.pick(servers)
  const sentAt = Date.now()
  const patienceMs = Math.round(random.between(LEAST_PATIENCE_MS, MOST_PATIENCE_MS))
  const answer = await send(url, operation, { attempt, patienceMs })
  const answered: Answer = { from: 'client', server, sentAt, at: Date.now(), ...answer }
  log.addAnswer(history, answered)
  return answered
}

type Sent = Omit<Answer, 'from' | 'server' | 'sentAt' | 'at'>

async function send(
  url: string,
  { key, mode, body }: Operation,
  { attempt, patienceMs }: { readonly attempt: number; readonly patienceMs: number },
): Promise<Sent> {
  try {
    const answer = await fetch(`${url}/${mode}`, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        'idempotency-key': key,
        // What the handler does at random may differ between attempts.
        'x-attempt': String(attempt),
      },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(patienceMs),
    })
    const text = await answer.text()
    const isProblem = answer.headers.get('content-type')?.startsWith('application/problem+json') === true
    const problem = isProblem
      ? (JSON.parse(text) as { readonly code: string; readonly retryable: boolean })
      : undefined
    return {
      status: answer.status,
      code: problem?.code,
      isRetryable: problem?.retryable ?? false,
      isReplay: answer.headers.get('idempotent-replayed') === 'true',
      body: text,
    }
  } catch (error) {
    // A broken connection is a TypeError. Anything else is a fault of this client.
    if (!(error instanceof TypeError) && (error as Error).name !== 'TimeoutError') throw error
    return { status: 0, code: whyOf(error), isRetryable: true, isReplay: false, body: '' }
  }
}

function whyOf(error: unknown): string {
  const { name, message, cause } = error as Error & { readonly cause?: { readonly code?: string } }
  return cause?.code ?? (name === 'TimeoutError' ? name : message)
}
