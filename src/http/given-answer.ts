import { asBuffer } from '../contract/as-buffer.js'
import { type IdempotencyError, isIdempotencyError, ResponseNotKeptError } from '../contract/errors.js'
import type { Outcome } from '../contract/store.js'
import { answerOf, type HttpAnswer } from './http-answer.js'
import type { HttpSettings } from './http-options.js'
import { problemOf, problemReply } from './problems.js'

/** An answer that no handler gave: a replay, or a refusal with the error behind it. */
export interface GivenAnswer extends HttpAnswer {
  readonly replayed: boolean
  /** The body of a replay as text, where it is text, and short. */
  readonly text?: string | undefined
  readonly error?: IdempotencyError
}

/** The marker of a replayed answer. */
const REPLAYED_HEADER = 'idempotent-replayed'

/**
 * A kept outcome as an answer, marked as a replay.
 *
 * @throws {ResponseNotKeptError} when the body was not kept.
 */
export function replayOf(outcome: Outcome, key: string): GivenAnswer {
  const found = answerOf(outcome)
  if (!found.kept) throw new ResponseNotKeptError(key, found.status)
  return {
    ...found.answer,
    headers: [...found.answer.headers, [REPLAYED_HEADER, 'true'] as const],
    replayed: true,
  }
}

/** The same, made once for all retries that the engine's cache answers with the same outcome. */
export function cachedReplayOf(outcome: Outcome, key: string): GivenAnswer {
  const known = replays.get(outcome)
  if (known !== undefined) return known
  const replay = replayOf(outcome, key)
  const { body, isText, headers } = replay
  // A list may be changed by whoever sends it, and then the next replay would have it changed.
  if (headers.some(([, value]) => typeof value !== 'string')) return replay
  const isShort = isText && body !== undefined && body.byteLength <= REMEMBERED_TEXT_BYTES
  const remembered = isShort ? { ...replay, text: textOf(body) } : replay
  replays.set(outcome, remembered)
  return remembered
}

const replays = new WeakMap<Outcome, GivenAnswer>()

/** The text of a long one would double what the replay cache may hold. */
const REMEMBERED_TEXT_BYTES = 4096

/** A body as text. */
export function textOf(body: Uint8Array): string {
  return asBuffer(body).toString()
}

/** What this request itself has kept as its answer; `undefined` when the body was not kept. */
export function keptOf(outcome: Outcome): GivenAnswer | undefined {
  const found = answerOf(outcome)
  return found.kept ? { ...found.answer, replayed: false } : undefined
}

/**
 * An error of this library as an answer.
 *
 * @throws what is not an error of this library.
 */
export function refusalOf<TRequest>(
  error: unknown,
  settings: HttpSettings<TRequest>,
  request: TRequest,
): GivenAnswer {
  if (!isIdempotencyError(error)) throw error
  const problem = problemOf(error, settings.docsUrl)
  const reply = { ...problemReply(problem, settings.docsUrl), ...settings.onProblem?.(problem, request) }
  return {
    status: reply.status,
    headers: Object.entries(reply.headers),
    body: Buffer.from(reply.body),
    isText: true,
    replayed: false,
    error,
  }
}
