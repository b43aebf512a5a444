import { type IdempotencyError, ResponseNotKeptError } from '../contract/errors.js'

/** A refusal as HTTP tells it (RFC 9457). It says nothing about the request that the key was first used for. */
export interface Problem {
  /** Names the kind of problem: the docs page of the application with the code, or a URN. */
  readonly type: string
  readonly title: string
  readonly status: number
  readonly detail: string
  /** Stable, for programs. */
  readonly code: string
  /** Whether the same request, sent again later, may succeed. */
  readonly retryable: boolean
  /** The status of the answer that was not kept, where it is known. */
  readonly originalStatus?: number
}

/** A problem with the headers that go with it. */
export interface ProblemReply {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

interface Wording {
  readonly title: string
  readonly detail: string
}

const WORDING: Readonly<Record<string, Wording>> = {
  IDEMPOTENCY_KEY_MISSING: {
    title: 'Idempotency key missing',
    detail: 'This operation requires an idempotency key. Send one that is new for every operation.',
  },
  IDEMPOTENCY_KEY_INVALID: {
    title: 'Idempotency key invalid',
    detail: 'Send the key once, with 1 to 255 characters: a quoted string or a bare value.',
  },
  IDEMPOTENCY_KEY_REUSED: {
    title: 'Idempotency key reused',
    detail: 'This key stands for a different request. Send a new key for a new operation.',
  },
  IDEMPOTENCY_KEY_IN_PROGRESS: {
    title: 'Operation in progress',
    detail: 'The first request with this key has not ended. Send the same request again later.',
  },
  IDEMPOTENCY_OUTCOME_UNKNOWN: {
    title: 'Outcome unknown',
    detail: 'An earlier attempt stopped before it said how it ended. Find out before you send a new key.',
  },
  IDEMPOTENCY_RESPONSE_NOT_KEPT: {
    title: 'Response not kept',
    detail: 'The operation has ended, and its answer was not kept. Do not send it again under a new key.',
  },
  IDEMPOTENCY_OUTCOME_UNREADABLE: {
    title: 'Outcome unreadable',
    detail: 'The operation has ended, and its answer cannot be read. Do not send it again under a new key.',
  },
  IDEMPOTENCY_STORE_UNAVAILABLE: {
    title: 'Idempotency store unavailable',
    detail: 'What is known of this operation cannot be read now. Send the same request again later.',
  },
  IDEMPOTENCY_COMMIT_UNDECIDED: {
    title: 'Outcome not known yet',
    detail: 'It is being found out whether this operation happened. Send the same request again later.',
  },
  IDEMPOTENCY_CLAIM_LOST: {
    title: 'Overtaken',
    detail: 'Another run of this operation took its place. Send the same request again for its answer.',
  },
  IDEMPOTENCY_TRANSACTION_MISSING: {
    title: 'Idempotency misconfigured',
    detail:
      'The server ran this operation in a way that it cannot protect. Find out before you send a new key.',
  },
  IDEMPOTENCY_STORE_FULL: {
    title: 'Idempotency store full',
    detail: 'Nothing was done for this request. Send the same request again later.',
  },
  IDEMPOTENCY_REQUEST_TOO_LARGE: {
    title: 'Request too large',
    detail: 'The request is too large to be compared with its retries. Nothing was done for it.',
  },
  IDEMPOTENCY_NOTHING_HAPPENED: {
    title: 'Nothing happened',
    detail: 'Nothing was done for this request. Send the same request again later.',
  },
  IDEMPOTENCY_FINGERPRINT_FAILED: {
    title: 'Request not comparable',
    detail: 'The request cannot be compared with its retries. Nothing was done for it.',
  },
}

const SERVER_FAULT: Wording = {
  title: 'Idempotency misconfigured',
  detail: 'The server cannot protect this operation. Nothing was done for this request.',
}

const RETRY_AFTER_SECONDS = '1'

/** The problem that an error becomes. `docsUrl` is the page that documents the codes, where the application has one. */
export function problemOf(error: IdempotencyError, docsUrl: string | undefined): Problem {
  const { code, statusCode: status, retryable } = error
  const type = docsUrl === undefined ? `urn:oncekey:problem:${code}` : `${docsUrl}#${code}`
  const problem = { type, ...(WORDING[code] ?? SERVER_FAULT), status, code, retryable }
  if (!(error instanceof ResponseNotKeptError) || error.originalStatus === undefined) return problem
  return { ...problem, originalStatus: error.originalStatus }
}

/** A problem as it goes over the wire. */
export function problemReply(problem: Problem, docsUrl: string | undefined): ProblemReply {
  return {
    status: problem.status,
    headers: {
      'content-type': 'application/problem+json; charset=utf-8',
      'cache-control': 'no-store',
      ...(problem.retryable && { 'retry-after': RETRY_AFTER_SECONDS }),
      ...(docsUrl !== undefined && { link: `<${docsUrl}>; rel="describedby"` }),
    },
    body: JSON.stringify(problem),
  }
}
