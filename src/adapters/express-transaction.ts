import { asBuffer } from '../contract/as-buffer.js'
import { TransactionMisuseError } from '../contract/errors.js'
import type { CapturedAnswer, Exchange } from '../http/exchange.js'
import type { HeldResponse } from '../http/held-response.js'
import type { AnswerHeaders } from '../http/kept-headers.js'
import type { PlainResponse } from '../http/response-outcome.js'
import type { ExpressState } from './express-request.js'
import type { ExpressResponse } from './express-types.js'

/**
 * Runs `work` in a transaction of the store. With a key, it commits together with its answer: what `work` sends, or else
 * what it returns. The answer leaves after the commit, and whatever the handler says then is ignored. Without a key, it is
 * a plain transaction, with an answer that leaves after its commit, if the work has one.
 */
export function runTransaction<T>(state: ExpressState, work: (client: unknown) => Promise<T>): Promise<T> {
  const { exchange, held } = state
  return exchange === undefined || held === undefined
    ? plainTransaction(state, work)
    : keyedTransaction(state, { exchange, held }, work)
}

async function keyedTransaction<T>(
  { response }: ExpressState,
  { exchange, held }: { readonly exchange: Exchange; readonly held: HeldResponse },
  work: (client: unknown) => Promise<T>,
): Promise<T> {
  let hasBegun = false
  let value: T
  try {
    value = await exchange.transaction<T>(
      async (client) => {
        held.beginWork()
        hasBegun = true
        return work(client)
      },
      async (returned) => {
        const answer = await answerOf(response, held, returned)
        if (answer === undefined)
          throw new TransactionMisuseError(
            'transaction() must send the answer, or return it: it is committed with its effects. Send it inside, as in res.status(201).json(...), and await what it takes',
          )
        return answer
      },
    )
  } catch (error) {
    // One that was refused because another one is under way has not begun, and leaves that one alone.
    if (hasBegun) held.endWork('failed')
    throw error
  }
  if (exchange.committed === undefined) held.tellWork()
  else held.sendWork()
  return value
}

async function plainTransaction<T>(state: ExpressState, work: (client: unknown) => Promise<T>): Promise<T> {
  const { response, guard } = state
  const { engine, settings } = guard
  if (response.headersSent || state.held?.isWorking === true) {
    const ended = await engine.transaction<T>(settings.policy, async (client) => ({
      value: await work(client),
      outcome: undefined,
    }))
    return ended.value
  }
  const held = state.hold()
  let isAnswered = false
  let ended: { readonly value: T }
  try {
    ended = await engine.transaction<T>(settings.policy, async (client) => {
      held.beginWork()
      const value = await work(client)
      const answer = await answerOf(response, held, value)
      isAnswered = answer !== undefined
      return { value, outcome: answer !== undefined && answer.status >= 400 ? 'roll-back' : undefined }
    })
  } catch (error) {
    held.endWork('failed')
    throw error
  }
  if (isAnswered) held.sendWork()
  else held.endWork('silent')
  return ended.value
}

async function answerOf(
  response: ExpressResponse,
  held: HeldResponse,
  value: unknown,
): Promise<CapturedAnswer | undefined> {
  if (held.workAnswer() === undefined && value !== undefined && value !== response)
    await answerWith(response, value)
  const answer = held.workAnswer()
  if (answer === 'unfinished')
    throw new TransactionMisuseError(
      'transaction() ended in the middle of its answer: await what sends it, inside of the transaction',
    )
  return answer
}

/** Sends a value as Express would, by the settings of the application. */
async function answerWith(response: ExpressResponse, value: unknown): Promise<void> {
  if (typeof value === 'string') response.send(value)
  else if (value instanceof Uint8Array) response.send(asBuffer(value))
  else if (isStreamed(value)) {
    for await (const chunk of value) response.write(chunk)
    response.end()
  } else response.json(value)
}

function isStreamed(value: unknown): value is AsyncIterable<string | Uint8Array> {
  return typeof value === 'object' && value !== null && Symbol.asyncIterator in value
}

/** What `saveIn` is to keep, as the response would send it, with the headers that it has by now. */
export function capturedResponse(
  response: ExpressResponse,
  { status, headers = {}, body }: PlainResponse,
  maxBodyBytes: number,
): CapturedAnswer {
  const named = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value] as const)
  const [type, bytes] = payloadOf(response, body)
  return {
    status,
    headers: {
      ...(type !== undefined && { 'content-type': type }),
      ...(response.getHeaders() as AnswerHeaders),
      ...Object.fromEntries(named),
    },
    body: bytes !== undefined && bytes.byteLength > maxBodyBytes ? 'too-long' : bytes,
    isText: false,
  }
}

function payloadOf(
  response: ExpressResponse,
  body: unknown,
): readonly [type: string | undefined, bytes: Uint8Array | undefined] {
  if (body === undefined) return [undefined, undefined]
  if (body instanceof Uint8Array) return ['application/octet-stream', body]
  if (typeof body === 'string') return ['text/html; charset=utf-8', Buffer.from(body)]
  return ['application/json; charset=utf-8', Buffer.from(jsonOf(response, body))]
}

/** JSON as `res.json` makes it. */
function jsonOf({ app }: ExpressResponse, body: unknown): string {
  const replacer = app.get('json replacer') as Parameters<typeof JSON.stringify>[1]
  const text = JSON.stringify(body, replacer, app.get('json spaces') as string | number | undefined)
  if (app.get('json escape') !== true) return text
  return text.replace(/[<>&]/g, (character) => `\\u00${character.charCodeAt(0).toString(16)}`)
}
