import { randomUUID } from 'node:crypto'
import type { EffectsWitness } from './http-effects.js'
import { type HttpAnswer, type SentRequest, sendRequest } from './http-exchange.js'
import type { HttpTargetOperationName, ResolvedOperation, ResolvedTarget } from './http-target.js'

/** The server did something else than a check expects. The message says what was seen. */
export class Breach extends Error {
  override readonly name = 'Breach'
}

/** A check cannot be judged against this target. The message says why. */
export class NotJudged extends Error {
  override readonly name = 'NotJudged'
}

/** Ends a check with what was seen, unless `holds`. */
export function demand(holds: boolean, seen: string): asserts holds {
  if (!holds) throw new Breach(seen)
}

/** Ends a check that cannot say anything about this server. */
export function cannotJudge(why: string): never {
  throw new NotJudged(why)
}

/** What a request of an operation has different from the others. */
export interface Variation {
  /** The lines of the key's header, as they are sent; none for a request without it. */
  readonly keyLines?: readonly string[]
  readonly body?: Buffer
  readonly keepAlive?: boolean
}

/** One operation with one key, which can be sent again and again. */
export interface TestedOperation {
  readonly key: string
  send(variation?: Variation): Promise<HttpAnswer>
  /** Sends a request and does not wait for its answer. */
  start(variation?: Variation): SentRequest
  /** Sends it again and again while the answer is 409. */
  settled(): Promise<HttpAnswer>
  /** The body of another operation, for which this one's key does not stand. */
  otherBody(): Buffer
  /** The body that all its requests have. */
  readonly body: Buffer
}

/** What begins an operation. */
export interface OperationChoice {
  readonly name?: HttpTargetOperationName
  /** @default 0 */
  readonly caller?: 0 | 1
  /** @default a random UUID */
  readonly key?: string
  readonly body?: Buffer
}

/** One check under way: its operations, and the effects that they have. */
export interface Trial {
  readonly target: ResolvedTarget
  readonly witness: EffectsWitness
  begin(choice?: OperationChoice): TestedOperation
  /** How many effects there have been. `undefined` where they are not seen. */
  effects(): Promise<number | undefined>
  /** Ends the check unless there have been so many effects. Where effects are not seen, it says nothing. */
  demandEffects(expected: number): Promise<void>
  /** Forgets the effects until now. */
  recount(): Promise<void>
  /** The number that was last looked at: for the report. */
  lastEffects(): number | undefined
  /** Effects that answers do not name are seen only by a server's own count. Without it, the check ends here. */
  needsCount(): void
  /** Without any evidence of effects the check ends here. */
  needsEvidence(): void
}

/** How keys are written: as the draft has it, or bare for servers that take nothing else. */
export type KeyStyle = 'quoted' | 'bare'

/** What the checks of one target share. */
export interface TrialOptions {
  readonly target: ResolvedTarget
  readonly witness: EffectsWitness
  readonly keyStyle: KeyStyle
  /** Gives the next operation its number. */
  readonly nextNumber: () => number
}

/** How often a running operation is asked about. */
export const POLL_MS = 100

/** Begins a check. */
export async function beginTrial(options: TrialOptions): Promise<Trial> {
  const { target, witness, keyStyle, nextNumber } = options
  const answers: HttpAnswer[] = []
  let before = (await witness.count?.()) ?? 0
  let last: number | undefined

  function begin(choice: OperationChoice = {}): TestedOperation {
    const operation = operationOf(target, choice.name)
    const key = choice.key ?? randomUUID()
    const body = choice.body ?? operation.body(nextNumber())
    const caller = target.callers?.[choice.caller ?? 0] ?? {}

    function start(variation: Variation = {}): SentRequest {
      const keyLines = variation.keyLines ?? [keyStyle === 'quoted' ? quoted(key) : key]
      const sending = sendRequest({
        url: operation.url,
        method: operation.method,
        headers: headerLines(
          { ...target.headers, ...caller, ...operation.headers },
          target.keyHeader,
          keyLines,
        ),
        body: variation.body ?? body,
        timeoutMs: target.timeoutMs,
        keepAlive: variation.keepAlive ?? false,
      })
      sending.answer.then(
        (answer) => answers.push(answer),
        // Whoever waits for the answer is told.
        () => {},
      )
      return sending
    }

    return {
      key,
      body,
      start,
      send: (variation) => start(variation).answer,
      async settled() {
        const givesUpAt = Date.now() + target.timeoutMs
        for (;;) {
          const answer = await start().answer
          if (answer.status !== 409 || Date.now() > givesUpAt) return answer
          await new Promise((resolve) => setTimeout(resolve, POLL_MS))
        }
      },
      otherBody: () => anotherBody(operation, body, nextNumber()),
    }
  }

  async function countEffects(): Promise<number | undefined> {
    if (witness.count !== undefined) return (await witness.count()) - before
    if (witness.evidence === 'not seen') return undefined
    const named = answers.filter(isSuccess).map(witness.nameIn)
    return new Set(named.filter((name) => name !== undefined)).size
  }

  return {
    target,
    witness,
    begin,
    effects: countEffects,
    async demandEffects(expected) {
      last = await countEffects()
      if (last !== undefined)
        demand(last === expected, `${last} instead of ${expected} effects (${witness.evidence})`)
    },
    async recount() {
      before = (await witness.count?.()) ?? 0
      answers.length = 0
    },
    lastEffects: () => last,
    needsCount() {
      if (witness.count === undefined)
        cannotJudge('needs the server to count its effects: name "effects" (--effects URL)')
    },
    needsEvidence() {
      if (witness.evidence === 'not seen')
        cannotJudge(`effects are not seen: ${witness.source}. Name "effects" (--effects URL) or "effectId"`)
    },
  }
}

function operationOf(target: ResolvedTarget, name: HttpTargetOperationName | undefined): ResolvedOperation {
  if (name === undefined) return target.main
  return target.operations[name] ?? cannotJudge(`the target names no operation "${name}"`)
}

function headerLines(
  headers: Readonly<Record<string, string>>,
  keyHeader: string,
  keyLines: readonly string[],
): (readonly [string, string])[] {
  const names = Object.keys(headers).map((name) => name.toLowerCase())
  return [
    ...(names.includes('content-type') ? [] : [['content-type', 'application/json'] as const]),
    ...Object.entries(headers),
    ...keyLines.map((line) => [keyHeader, line] as const),
  ]
}

/** A key as the draft has it: an RFC 9651 String. */
export function quoted(key: string): string {
  return `"${key.replace(/["\\]/g, '\\$&')}"`
}

function anotherBody(operation: ResolvedOperation, body: Buffer, n: number): Buffer {
  const next = operation.body(n)
  if (!next.equals(body)) return next
  const text = body.toString()
  // The first number that is a value of its own becomes another, so that the body stays what the server takes.
  const changed = text.replace(
    /([[:,]\s*)(-?\d+)(?=\s*[,\]}])/,
    (_, start, number) => `${start}${Number(number) + 1}`,
  )
  if (changed === text)
    cannotJudge('the target has one body only, with no number in it: use {{n}} or {{uuid}}')
  return Buffer.from(changed)
}

/** Whether a server carried an operation out. */
export function isSuccess(answer: HttpAnswer): boolean {
  return answer.status >= 200 && answer.status < 400
}

/** An answer in a few words. */
export function shown(answer: HttpAnswer): string {
  const { length } = answer.body
  if (length === 0) return `${answer.status} without a body`
  const text = answer.body.subarray(0, 120).toString()
  const isReadable = /^[\x20-\x7e\s]*$/.test(text)
  const beginning = isReadable ? ` ${text.replace(/\s+/g, ' ')}${length > 120 ? '…' : ''}` : ''
  return `${answer.status} (${length} bytes)${beginning}`
}

/** Ends the check unless the operation was carried out. A server that is too busy says nothing about itself. */
export function demandSuccess(answer: HttpAnswer, what = 'the first request'): void {
  if (answer.status === 429 || answer.status === 503)
    cannotJudge(`${what} was answered with ${shown(answer)}: the server takes no more requests now`)
  demand(isSuccess(answer), `${what} was answered with ${shown(answer)}`)
}

/** Ends the check unless a retry got the first answer: its status and its bytes. */
export function demandSame(first: HttpAnswer, retry: HttpAnswer, what = 'the retry'): void {
  demand(
    retry.status === first.status && retry.body.equals(first.body),
    `${what} was answered with ${shown(retry)}, the first request with ${shown(first)}`,
  )
}

/** Ends the check unless an answer is one of these refusals. */
export function demandRefusal(answer: HttpAnswer, statuses: readonly number[], what: string): void {
  demand(
    statuses.includes(answer.status),
    `${what} was answered with ${shown(answer)} instead of ${statuses.join(' or ')}`,
  )
}
