import {
  CallAnswerNotKeptError,
  CallKeyReusedError,
  CallOutcomeUnknownError,
  type CallProgress,
} from './call-errors.js'

/** An answer, and what its body says where that is a problem. */
export interface Answered {
  readonly response: Response
  readonly problem: CallProgress['problem']
}

/** What an answer means for its call: it is final, the attempt failed, or the first request is still running. */
export type Meaning = 'final' | 'failed' | 'running'

/** Stripe's marker of a replayed answer, which is ours too, and its usual variants, in headers written line by line. */
const REPLAY_MARKER = /^(x-)?idempoten(t|cy)-replayed,true$/m

/**
 * Says what an answer means. Without a response there was none.
 *
 * @throws {CallError} where it is one that a caller must not miss.
 */
export function meaningOf(progress: CallProgress): Meaning {
  const { key, response, problem } = progress
  if (!response) return 'failed'
  const { status, headers } = response
  if (key) {
    switch (problem.code) {
      case 'IDEMPOTENCY_KEY_REUSED':
        throw new CallKeyReusedError(progress)
      case 'IDEMPOTENCY_OUTCOME_UNKNOWN':
        throw new CallOutcomeUnknownError(progress)
      case 'IDEMPOTENCY_RESPONSE_NOT_KEPT':
        throw new CallAnswerNotKeptError(progress)
    }
    // A replay is the answer, and stays it.
    if (problem.retryable === false || REPLAY_MARKER.test([...headers].join('\n'))) return 'final'
    // Other servers have no code of ours. An application's own conflict names no time.
    if (problem.code === 'IDEMPOTENCY_KEY_IN_PROGRESS' || (status === 409 && headers.has('retry-after')))
      return 'running'
  }
  return /408|425|429|5../.test(`${status}`) ? 'failed' : 'final'
}

/**
 * Whether an answer is the operation's own, so that its key has done its work. Who was denied may come back with the
 * same operation, a 500 does not say what was done, and a hidden redirect (`0`) says nothing.
 */
export function settles({ status }: Response): boolean {
  return !/^0|401|403|407|5../.test(`${status}`)
}

/**
 * Reads what must have come before an answer counts: failures always, and others where `isWhole`. The response stays
 * readable.
 *
 * @returns what a failure says, where it is a JSON object.
 */
export async function readAnswer(response: Response, isWhole: boolean): Promise<CallProgress['problem']> {
  const { status, headers } = response
  if (status >= 400) {
    const text = await response.clone().text()
    try {
      return Object(JSON.parse(text))
    } catch {
      // What is no JSON says nothing to us, and its status counts.
    }
  } else if (isWhole && !/event-stream/.test(`${headers.get('content-type')}`))
    await response.clone().arrayBuffer()
  return {}
}
