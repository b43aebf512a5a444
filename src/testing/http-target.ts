import { z } from 'zod'
import { type Duration, durationMs } from '../contract/duration.js'
import { OptionsError } from '../contract/errors.js'

/**
 * The body of a request: bytes or text as they are sent, or a value that is sent as JSON. In text and in values,
 * `{{n}}` stands for the number of the operation and `{{uuid}}` for a random text, so that no two operations send the
 * same. `"{{n}}"`, with nothing else between the quotes, becomes a number. A function is called once an operation, with that number.
 */
export type HttpTargetBody = BodyValue | ((n: number) => BodyValue)

type BodyValue =
  | string
  | Uint8Array
  | number
  | boolean
  | null
  | readonly unknown[]
  | { readonly [name: string]: unknown }

/** Headers by their names. */
export type HttpTargetHeaders = Readonly<Record<string, string>>

/** A request that the server under test may be sent. What it leaves out is as in the target; a body goes with its URL. */
export interface HttpTargetOperation {
  /** Absolute, or relative to the target's. */
  readonly url?: string
  readonly method?: string
  readonly headers?: HttpTargetHeaders
  readonly body?: HttpTargetBody
}

/** Operations that only some servers offer. Checks that need one which is not named are skipped, by that name. */
export type HttpTargetOperationName =
  /** Takes at least a second, so that a second request can meet the first one running. */
  | 'slow'
  /** With the method PATCH, unless it names another. */
  | 'patch'
  /** Runs, and ends in a final failure of the client, such as 402 or 409: a card that is declined. */
  | 'clientError'
  /** Runs, and ends in a 500. */
  | 'serverError'
  /** Is refused with 4xx before it begins, by validation or authentication. */
  | 'invalid'
  /** Is answered with bytes that are no text. */
  | 'binary'
  /** Is answered without a body: 204. */
  | 'empty'
  /** Is answered with a stream. */
  | 'streamed'
  /** Is answered with a large body: 256 KiB, or whatever is large for the server. */
  | 'large'

/** A server under test, as a client sees it. */
export interface HttpTarget extends HttpTargetOperation {
  /** The endpoint of a protected operation: http or https. */
  readonly url: string

  /** @default 'POST' */
  readonly method?: string

  /** Sent with every request, also with the one for the number of effects. A caller's go before, an operation's before both. */
  readonly headers?: HttpTargetHeaders

  /** @default { n: '{{n}}' } */
  readonly body?: HttpTargetBody

  /**
   * The header that carries the key.
   *
   * @default 'Idempotency-Key'
   */
  readonly keyHeader?: string

  /** What makes two callers of a request: each one's headers. The first is the caller of all other checks. */
  readonly callers?: readonly [HttpTargetHeaders, HttpTargetHeaders]

  /**
   * How many effects there have been: a URL that answers GET with a number, or with `{"effects": number}`, or a
   * function. Every run of an operation must count, also one that ends in a failure, before it is answered. Nobody else
   * may have effects while the checks run.
   */
  readonly effects?: string | (() => number | Promise<number>)

  /**
   * What in an answer is another one for every effect, where there is no `effects`: a header (`'location'`) or a
   * JSON pointer into the body (`'/id'`).
   *
   * @default what is found to differ between the answers to two operations: Location, id, the body
   */
  readonly effectId?: string

  /** Whether the operation refuses a request without a key. Leave it out where you do not know. */
  readonly required?: boolean

  /**
   * What becomes of a duplicate while the first request runs: `'held'` where it waits for the first one's answer.
   *
   * @default 'refused'
   */
  readonly duplicates?: 'refused' | 'held'

  readonly operations?: Partial<Readonly<Record<HttpTargetOperationName, HttpTargetOperation>>>

  /**
   * How many duplicates a race has.
   *
   * @default 10
   */
  readonly parallel?: number

  /**
   * How long one answer may take, and how long a running operation is waited for.
   *
   * @default '30s'
   */
  readonly timeout?: Duration
}

/** A target whose options are checked, with its defaults. */
export interface ResolvedTarget {
  readonly main: ResolvedOperation
  readonly operations: Partial<Readonly<Record<HttpTargetOperationName, ResolvedOperation>>>
  readonly headers: HttpTargetHeaders
  readonly keyHeader: string
  readonly callers: HttpTarget['callers']
  readonly effects: URL | (() => number | Promise<number>) | undefined
  readonly effectId: string | undefined
  readonly required: boolean | undefined
  readonly duplicates: 'refused' | 'held'
  readonly parallel: number
  readonly timeoutMs: number
}

/** A request to be sent, but for its key. */
export interface ResolvedOperation {
  readonly url: URL
  readonly method: string
  /** Its own, beside those of the target and of the caller, and before them. */
  readonly headers: HttpTargetHeaders
  /** The body of the n-th operation. */
  readonly body: (n: number) => Buffer
}

const aText = z.string().min(1, 'must be a text that is not empty')
const someHeaders = z.record(z.string(), z.string())
const anOperation = z.strictObject({
  url: aText.optional(),
  method: z
    .string()
    .regex(/^[A-Z]+$/, 'must be a method in capital letters')
    .optional(),
  headers: someHeaders.optional(),
  body: z.unknown().optional(),
})
const SCHEMA = z.strictObject({
  ...anOperation.shape,
  url: aText,
  keyHeader: aText.optional(),
  callers: z.tuple([someHeaders, someHeaders]).optional(),
  effects: z.union([aText, z.custom<() => number>((value) => typeof value === 'function')]).optional(),
  effectId: aText.optional(),
  required: z.boolean().optional(),
  duplicates: z.enum(['refused', 'held']).optional(),
  operations: z
    .strictObject({
      slow: anOperation.optional(),
      patch: anOperation.optional(),
      clientError: anOperation.optional(),
      serverError: anOperation.optional(),
      invalid: anOperation.optional(),
      binary: anOperation.optional(),
      empty: anOperation.optional(),
      streamed: anOperation.optional(),
      large: anOperation.optional(),
    })
    .optional(),
  parallel: z.int().min(2).max(1000).optional(),
  timeout: z
    .unknown()
    .refine(
      (value) => value === undefined || (durationMs(value) ?? 0) > 0,
      "must be a duration such as '30s'",
    )
    .optional(),
})

const WHERE = 'httpConformance'

/**
 * Checks a target, and fills in what it leaves out.
 *
 * @throws {OptionsError} naming the option that is wrong.
 */
export function resolveTarget(target: HttpTarget): ResolvedTarget {
  const parsed = SCHEMA.safeParse(target)
  if (!parsed.success) {
    const issue = parsed.error.issues[0]
    const name = issue?.path.join('.') ?? ''
    throw new OptionsError(`${WHERE}: ${name === '' ? 'the target' : `option "${name}"`}: ${issue?.message}`)
  }
  const url = urlOf(target.url, 'url')
  const main = {
    url,
    method: target.method ?? 'POST',
    headers: {},
    body: bodyMaker(target.body === undefined ? { n: '{{n}}' } : target.body),
  }
  const named = Object.entries(target.operations ?? {}) as [HttpTargetOperationName, HttpTargetOperation][]
  return {
    main,
    operations: Object.fromEntries(named.map(([name, given]) => [name, resolveOperation(name, given, main)])),
    headers: target.headers ?? {},
    keyHeader: target.keyHeader ?? 'Idempotency-Key',
    callers: target.callers,
    effects: typeof target.effects === 'string' ? urlOf(target.effects, 'effects', url) : target.effects,
    effectId: target.effectId,
    required: target.required,
    duplicates: target.duplicates ?? 'refused',
    parallel: target.parallel ?? 10,
    timeoutMs: durationMs(target.timeout ?? '30s') ?? 30_000,
  }
}

function resolveOperation(
  name: HttpTargetOperationName,
  given: HttpTargetOperation,
  main: ResolvedOperation,
): ResolvedOperation {
  return {
    url: given.url === undefined ? main.url : urlOf(given.url, `operations.${name}.url`, main.url),
    method: given.method ?? (name === 'patch' ? 'PATCH' : main.method),
    headers: given.headers ?? {},
    body: given.body === undefined ? main.body : bodyMaker(given.body),
  }
}

function urlOf(text: string, option: string, base?: URL): URL {
  const url = URL.canParse(text, base?.href) ? new URL(text, base) : undefined
  if (url === undefined || !['http:', 'https:'].includes(url.protocol))
    throw new OptionsError(`${WHERE}: option "${option}" must be an http or https URL; got "${text}"`)
  return url
}

function bodyMaker(given: HttpTargetBody): (n: number) => Buffer {
  return (n) => {
    const value = typeof given === 'function' ? given(n) : given
    if (value instanceof Uint8Array) return Buffer.from(value)
    const text = typeof value === 'string' ? value : JSON.stringify(value)
    return Buffer.from(
      text
        .replaceAll('"{{n}}"', '{{n}}')
        .replaceAll('{{n}}', String(n))
        .replaceAll('{{uuid}}', crypto.randomUUID()),
    )
  }
}
