import { z } from 'zod'
import { OptionsError } from '../contract/errors.js'
import type { Outcome } from '../contract/store.js'
import { type EngineOptions, engineShape } from '../core/engine-options.js'
import { fn, parseOptions, wholeNumber } from '../core/parse-options.js'
import {
  type OnUnknown,
  type Policy,
  type PolicyOptions,
  policyShape,
  resolvePolicy,
} from '../core/policy.js'
import {
  type AnswerHeaders,
  createHeaderFilter,
  type HeaderFilter,
  type HeaderRules,
} from './kept-headers.js'
import type { HeaderLines } from './key-header.js'
import type { Problem, ProblemReply } from './problems.js'
import { outcomeOfResponse, type PlainResponse } from './response-outcome.js'

/** An answer of the handler, before anybody has decided whether it is kept. */
export interface FinishedResponse {
  readonly status: number
  readonly headers: AnswerHeaders
  /** The body; `undefined` where there is none, or where it is longer than `maxBodyBytes`. */
  readonly body: Uint8Array | undefined
}

/** How the routes of an HTTP service are protected. All of it may be given again for a single route. */
export interface HttpPolicyOptions<TRequest> extends PolicyOptions<PlainResponse> {
  /**
   * The methods that are protected. Others pass through.
   *
   * @default ['POST', 'PATCH']
   */
  readonly methods?: readonly string[]
  /**
   * The header, or headers, that hold the key.
   *
   * @default 'Idempotency-Key'
   */
  readonly header?: string | readonly string[]
  /** Takes the key from the request instead of a header; `undefined` where it has none. */
  readonly key?: (request: TRequest) => string | undefined
  /**
   * Whether a request without a key is refused. Otherwise it runs without protection.
   *
   * @default false
   */
  readonly required?: boolean
  /**
   * Which part of the request a key stands for, beside method and path: `'body'` as the handler sees it, `'raw'` for
   * the received bytes, a function that chooses the fields that matter, or `false` to check nothing at all.
   *
   * @default 'body'
   */
  readonly fingerprint?: 'body' | 'raw' | ((request: TRequest) => unknown) | false
  /**
   * Whether an answer is kept for retries. A refused one releases the key, and a retry runs the handler again: only
   * for answers that say that nothing was done. 401, 403, 407, 408, 425, 429 and 503 are never kept.
   *
   * @default every other answer, final failures and 500 too
   */
  readonly keep?: (response: FinishedResponse) => boolean
  /** Which headers are kept, beyond the usual ones. */
  readonly headers?: HeaderRules
  /**
   * The longest body that is kept, in bytes. A longer one goes to the client, and a retry is told that the operation
   * ended and its answer was not kept.
   *
   * @default 1_048_576 (1 MiB)
   */
  readonly maxBodyBytes?: number
  /** Shapes the application's own refusals. What it returns takes the place of the problem's parts. */
  readonly onProblem?: (problem: Problem, request: TRequest) => Partial<ProblemReply> | undefined
  /** The application's page about these problems: their `type`, and a `Link` to it. */
  readonly docsUrl?: string
}

/** What registers protection for a whole HTTP service. */
export interface HttpOptions<TRequest> extends EngineOptions, HttpPolicyOptions<TRequest> {
  /**
   * Who the caller is: tenant, user, account. Two scopes never see each other's keys. `'shared'` is for a service with
   * a single tenant only: there, whoever guesses a key sees the answer.
   */
  readonly scope: ((request: TRequest) => string | Promise<string>) | 'shared'
}

/** The options of one route, checked and complete. */
export interface HttpSettings<TRequest> {
  readonly policy: Policy
  readonly scope: ((request: TRequest) => string | Promise<string>) | 'shared'
  readonly methods: readonly string[]
  readonly headerNames: readonly string[]
  /** The same in lower case, as Node names them. */
  readonly headerKeys: readonly string[]
  readonly key: ((request: TRequest) => string | undefined) | undefined
  readonly required: boolean
  readonly fingerprint: 'body' | 'raw' | ((request: TRequest) => unknown) | false
  readonly keep: ((response: FinishedResponse) => boolean) | undefined
  readonly keptHeaders: HeaderFilter
  readonly maxBodyBytes: number
  readonly onProblem: ((problem: Problem, request: TRequest) => Partial<ProblemReply> | undefined) | undefined
  readonly docsUrl: string | undefined
}

const headerName = z
  .string('must be a header name')
  .regex(/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/, 'must be a header name')
const headerNames = z.array(headerName, 'must be a list of header names')

const httpPolicyShape = {
  ...policyShape,
  methods: z
    .array(z.string().regex(/^[A-Z]+$/), `must be a list of methods such as ['POST', 'PATCH']`)
    .min(1, 'must name at least one method')
    .optional(),
  header: z.union([headerName, headerNames.min(1)], 'must be a header name, or a list of them').optional(),
  key: fn<never>('a function of the request').optional(),
  required: z.boolean('must be true or false').optional(),
  fingerprint: z
    .union([z.literal(false), z.literal('body'), z.literal('raw'), fn<never>('a function')], {
      error: `must be 'body', 'raw', false or a function of the request`,
    })
    .optional(),
  keep: fn<(response: FinishedResponse) => boolean>('a function of the response').optional(),
  headers: z
    .strictObject(
      { drop: headerNames.optional(), keep: headerNames.optional() },
      'must be { drop: [...], keep: [...] }',
    )
    .optional(),
  maxBodyBytes: wholeNumber(0).optional(),
  onProblem: fn<never>('a function of the problem and the request').optional(),
  docsUrl: z.url('must be an absolute URL').optional(),
}

const routeSchema = z.strictObject(httpPolicyShape)
const scopeSchema = z.custom<never>(
  (value) => value === 'shared' || typeof value === 'function',
  `must be a function of the request that names the caller, or 'shared' for a service with a single tenant`,
)
const registrationSchema = z.strictObject({ ...engineShape, ...httpPolicyShape, scope: scopeSchema })

type ParsedHttpPolicy = z.output<typeof routeSchema>

/** What `parseHttpOptions` gives: the options of the engine, and the settings of every route that says nothing itself. */
export interface ParsedHttpOptions<TRequest> {
  readonly engine: EngineOptions
  readonly settings: HttpSettings<TRequest>
}

/**
 * Checks the options of a registration.
 *
 * @throws {OptionsError} naming the option, its value and what would be right.
 */
export function parseHttpOptions<TRequest>(
  options: HttpOptions<TRequest>,
  defaults: Policy,
  where: string,
): ParsedHttpOptions<TRequest> {
  if (typeof options !== 'object' || options === null || options.scope === undefined)
    throw new OptionsError(
      `${where}: option "scope" is required: a function of the request that names the caller, such as (request) => request.user.id, or 'shared' for a service with a single tenant`,
    )
  const { store, namespace, storeTimeout, replayCache, sweep, secret, scope, ...policy } = parseOptions(
    registrationSchema,
    options,
    where,
  )
  const engine: EngineOptions = {
    ...(store !== undefined && { store }),
    ...(namespace !== undefined && { namespace }),
    ...(storeTimeout !== undefined && { storeTimeout }),
    ...(options.replayCache !== undefined &&
      replayCache !== undefined && { replayCache: options.replayCache }),
    ...(sweep !== undefined && { sweep }),
    ...(secret !== undefined && { secret }),
  }
  const base: HttpSettings<TRequest> = {
    policy: defaults,
    scope,
    methods: ['POST', 'PATCH'],
    headerNames: ['Idempotency-Key'],
    headerKeys: ['idempotency-key'],
    key: undefined,
    required: false,
    fingerprint: 'body',
    keep: undefined,
    keptHeaders: createHeaderFilter(),
    maxBodyBytes: 1024 * 1024,
    onProblem: undefined,
    docsUrl: undefined,
  }
  return { engine, settings: merged(base, policy) }
}

/**
 * Checks the options of one route, and completes them from those of the registration.
 *
 * @throws {OptionsError} naming the route, the option, its value and what would be right.
 */
export function parseRouteOptions<TRequest>(
  options: unknown,
  defaults: HttpSettings<TRequest>,
  where: string,
): HttpSettings<TRequest> {
  return merged(defaults, parseOptions(routeSchema, options, where))
}

function merged<TRequest>(base: HttpSettings<TRequest>, own: ParsedHttpPolicy): HttpSettings<TRequest> {
  const { header } = own
  const headerNames = header === undefined ? base.headerNames : typeof header === 'string' ? [header] : header
  return {
    policy: resolvePolicy(own, base.policy, responseOnUnknown(own.onUnknown)),
    scope: base.scope,
    methods: own.methods ?? base.methods,
    headerNames,
    headerKeys: headerNames.map((name) => name.toLowerCase()),
    key: own.key ?? base.key,
    required: own.required ?? base.required,
    fingerprint: own.fingerprint ?? base.fingerprint,
    keep: own.keep ?? base.keep,
    keptHeaders:
      own.headers === undefined ? base.keptHeaders : createHeaderFilter(own.headers as HeaderRules),
    maxBodyBytes: own.maxBodyBytes ?? base.maxBodyBytes,
    onProblem: own.onProblem ?? base.onProblem,
    docsUrl: own.docsUrl ?? base.docsUrl,
  }
}

/** Lets an application's `onUnknown` speak of responses, where the engine speaks of outcomes. */
function responseOnUnknown(onUnknown: OnUnknown<never> | undefined): OnUnknown<Outcome> | undefined {
  if (typeof onUnknown !== 'function') return onUnknown
  return async (operation) => {
    const answer = await onUnknown(operation)
    return typeof answer === 'string' ? answer : { outcome: outcomeOfResponse(answer.outcome) }
  }
}

/** A request as the HTTP adapters hand it on. */
export interface IncomingOperation<TRequest> {
  /** The framework's request: what the application's functions get. */
  readonly request: TRequest
  /** The headers that name keys. */
  readonly raw: HeaderLines
  readonly method: string
  /** Path with query as the client sent it. */
  readonly url: string
  /** Method and route pattern, for operators. */
  readonly route: string
  readonly body: unknown
  /** SHA-256 of the received bytes, where `fingerprint` is `'raw'` and there was a body. */
  readonly rawDigest: Uint8Array | undefined
}
