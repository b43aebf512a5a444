import type { HttpSettings } from './http-options.js'
import { BARE_KEY_PATTERN, QUOTED_KEY_PATTERN } from './key-header.js'

/** A JSON schema. */
export type JsonSchema = Readonly<Record<string, unknown>>

/** How an API description tells of a protected route. */
export interface ProtectionSchema {
  /** The headers that may hold the key: by name. */
  readonly headers: Readonly<Record<string, JsonSchema>>
  /** The header that must be there, where there is one. */
  readonly requiredHeader: string | undefined
  /** Our own answers: by status. */
  readonly answers: Readonly<Record<number, ProblemSchema>>
}

/** One of our own answers. */
export interface ProblemSchema {
  readonly description: string
  readonly headers: Readonly<Record<string, JsonSchema>>
  /** Of the body; `undefined` where the application shapes its own. */
  readonly body: JsonSchema | undefined
}

/** Describes what a route's protection adds to it: for API descriptions, and never for validation. */
export function protectionSchema<TRequest>(
  settings: HttpSettings<TRequest>,
  isRequired: boolean,
): ProtectionSchema {
  const { headerNames, key, fingerprint, onProblem } = settings
  const isInHeader = key === undefined
  const isReused = fingerprint !== false
  const answers = Object.entries(ANSWERS).filter(([status]) => status !== '422' || isReused)
  return {
    headers: isInHeader ? Object.fromEntries(headerNames.map((name) => [name, keySchema(headerNames)])) : {},
    // Of several, one is enough: that cannot be said of any of them.
    requiredHeader: isInHeader && isRequired && headerNames.length === 1 ? headerNames[0] : undefined,
    answers: Object.fromEntries(
      answers.map(([status, { description, codes, isRetryable }]) => [
        status,
        {
          description,
          headers: isRetryable ? { 'Retry-After': RETRY_AFTER } : {},
          body: onProblem === undefined ? problemSchema(Number(status), codes) : undefined,
        },
      ]),
    ),
  }
}

const ANSWERS: Readonly<
  Record<
    number,
    { readonly description: string; readonly codes: readonly string[]; readonly isRetryable?: true }
  >
> = {
  400: {
    description: 'The idempotency key is missing or invalid. Nothing was done.',
    codes: ['IDEMPOTENCY_KEY_MISSING', 'IDEMPOTENCY_KEY_INVALID', 'IDEMPOTENCY_FINGERPRINT_FAILED'],
  },
  409: {
    description:
      'The first request with this key has not ended, or it is not known how it ended, or its answer was not kept.',
    codes: [
      'IDEMPOTENCY_KEY_IN_PROGRESS',
      'IDEMPOTENCY_OUTCOME_UNKNOWN',
      'IDEMPOTENCY_RESPONSE_NOT_KEPT',
      'IDEMPOTENCY_CLAIM_LOST',
    ],
    isRetryable: true,
  },
  422: {
    description: 'The idempotency key stands for a different request. Nothing was done for this one.',
    codes: ['IDEMPOTENCY_KEY_REUSED'],
  },
  503: {
    description: 'What is known of this operation cannot be read now. Send the same request again later.',
    codes: ['IDEMPOTENCY_STORE_UNAVAILABLE', 'IDEMPOTENCY_STORE_FULL', 'IDEMPOTENCY_COMMIT_UNDECIDED'],
    isRetryable: true,
  },
}

const RETRY_AFTER: JsonSchema = {
  type: 'integer',
  minimum: 0,
  description: 'Seconds to wait before the same request is sent again. Absent where a retry cannot help.',
}

function keySchema(names: readonly string[]): JsonSchema {
  const alternatives = names.length > 1 ? ` One of ${names.join(', ')} is enough.` : ''
  return {
    type: 'string',
    pattern: `^(?:${BARE_KEY_PATTERN}{1,255}|${QUOTED_KEY_PATTERN})$`,
    description: `Names one operation: a value that is new for every operation, and the same in every retry of it. 1 to 255 characters, bare or as a quoted string.${alternatives}`,
  }
}

function problemSchema(status: number, codes: readonly string[]): JsonSchema {
  return {
    type: 'object',
    required: ['type', 'title', 'status', 'detail', 'code', 'retryable'],
    properties: {
      type: { type: 'string', format: 'uri' },
      title: { type: 'string' },
      status: { type: 'integer', enum: [status] },
      detail: { type: 'string' },
      code: { type: 'string', enum: codes },
      retryable: {
        type: 'boolean',
        description: 'Whether the same request, sent again later, may succeed.',
      },
      ...(status === 409 && {
        originalStatus: { type: 'integer', description: 'The status of the answer that was not kept.' },
      }),
    },
  }
}
