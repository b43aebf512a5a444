import { IncomingMessage } from 'node:http'
import { Socket } from 'node:net'
import { vi } from 'vitest'
import { isIdempotencyError } from '../../src/contract/errors.js'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { fingerprintOf } from '../../src/core/fingerprint.js'
import type { PolicyOptions } from '../../src/core/policy.js'
import type { CapturedAnswer } from '../../src/http/exchange.js'
import type { HttpAnswer } from '../../src/http/http-answer.js'
import type { IdempotencyListener } from '../../src/index.js'
import type { HandlerEnd, Reply } from './key-ledger.js'

/** The library as one process has loaded it: with timers of its own. */
export interface Library {
  readonly main: typeof import('../../src/index.js')
  readonly admission: typeof import('../../src/http/admission.js')
  readonly httpOptions: typeof import('../../src/http/http-options.js')
}

/** Loads the library once more, beside the copies that are there. */
export async function loadLibrary(): Promise<Library> {
  vi.resetModules()
  return {
    main: await import('../../src/index.js'),
    admission: await import('../../src/http/admission.js'),
    httpOptions: await import('../../src/http/http-options.js'),
  }
}

/** What the library gives to the handler of a request. */
export interface Run {
  readonly fence: number
  readonly signal: AbortSignal
  forget(): void
  transaction(work: (client: unknown) => Promise<unknown>): Promise<unknown>
}

/** How a handler ends: with its effect, with its effect and a failure, or without any effect. */
export type HandlerResult = 'paid' | 'failed' | 'nothing'

/** Says how the handler ends, before the library hears of it. @returns what the library is to be given as its answer. */
export type SayEnd = (result: HandlerResult, mark: string) => unknown

/** A request as it is sent to a service, and who handles it. */
export interface Handling {
  readonly key: string
  /** What it says. Another input is another request. */
  readonly input: string
  /** Handles it, and gives what `sayEnd` gave. */
  handle(run: Run, sayEnd: SayEnd): Promise<unknown>
  ended(end: HandlerEnd): void
}

/** A service that protects its handler with the library. */
export interface ModelledService {
  readonly name: string
  /** The fingerprint of a request that says this. */
  fingerprint(input: string): string
  /** Starts it in a process. */
  start(library: Library, options: ServiceOptions): Serve
}

/** Answers a request. */
export type Serve = (handling: Handling, policy: PolicyOptions) => Promise<Reply>

/** What a service is started with. */
export interface ServiceOptions {
  readonly store: IdempotencyStore
  readonly storeTimeoutMs: number
  readonly listener: IdempotencyListener
}

const NAME = 'POST /payments'

/** Functions that are run once. */
export const functions: ModelledService = {
  name: 'run()',
  fingerprint: (input) => fingerprintOf({ method: 'RUN', path: NAME, body: input }),
  start({ main }, { listener, ...options }) {
    const idempotency = startEngine(main, options, listener)
    return async ({ key, input, handle, ended }, policy) => {
      const options = { scope: 'acme', key, name: NAME, input, ...policy }
      try {
        const value = await idempotency.run(options, async (run) => {
          const answer = await handle(run, sayEnd)
          if (answer instanceof Error) throw answer
          if (answer === NOTHING) run.forget()
          return answer
        })
        return { kind: 'answer', text: JSON.stringify(value) }
      } catch (error) {
        if (error instanceof main.OperationFailedError)
          return { kind: 'answer', text: failureText(error.originalName, error.message) }
        if (isIdempotencyError(error)) return { kind: 'refusal', code: error.code }
        const { name, message } = error as Error
        return { kind: 'answer', text: failureText(name, message) }
      }

      function sayEnd(result: HandlerResult, mark: string): unknown {
        const answer =
          result === 'failed' ? new RangeError(mark) : result === 'nothing' ? NOTHING : { by: mark }
        const text = answer instanceof Error ? failureText(answer.name, mark) : JSON.stringify(answer)
        ended({ text, mark, didNothing: result === 'nothing' })
        return answer
      }
    }
  },
}

const NOTHING = { didNothing: true }

function failureText(name: string, message: string): string {
  return `threw ${name}: ${message}`
}

/** Requests over HTTP, as the adapters handle them: admitted, handled, and ended before the answer goes. */
export const requests: ModelledService = {
  name: 'HTTP',
  fingerprint: (input) => fingerprintOf({ method: 'POST', path: '/payments', body: input }),
  start({ main, admission, httpOptions }, { listener, ...options }) {
    const engine = startEngine(main, options, listener)
    const { settings } = httpOptions.parseHttpOptions({ scope: 'shared' }, engine.policy, 'the model')
    return async ({ key, input, handle, ended }, policy) => {
      const guard = { engine, settings: httpOptions.parseRouteOptions(policy, settings, 'the model') }
      const admitted = await admission.admit(guard, key, {
        request: {},
        raw: NO_MESSAGE,
        method: 'POST',
        url: '/payments',
        route: NAME,
        body: input,
        rawDigest: undefined,
      })
      if (admitted.kind === 'answer') return replyOf(admitted.answer)
      const { exchange } = admitted
      const run: Run = {
        fence: exchange.fence,
        signal: exchange.signal,
        forget: () => exchange.forget(),
        transaction: (work) => exchange.transaction(work, (answer) => answer as CapturedAnswer),
      }
      const captured = await handle(run, sayEnd).then((answer) => answer as CapturedAnswer, failure)
      const given = await exchange.end(captured)
      if (given !== undefined) return replyOf(given)
      const { committed } = exchange
      return committed === undefined || committed === 'too-long' ? own(captured) : replyOf(committed)

      function own({ status, headers, body }: CapturedAnswer): Reply {
        return replyOf({
          status,
          headers: settings.keptHeaders(headers),
          body: body === 'too-long' ? undefined : body,
          isText: true,
        })
      }

      function sayEnd(result: HandlerResult, mark: string): CapturedAnswer {
        const answer = answerWith(STATUSES[result], mark)
        const reply = own(answer)
        ended({ text: textOf(reply), mark, didNothing: result === 'nothing' })
        return answer
      }
    }
  },
}

/** Admission hands the message on to the application, and reads nothing of it. */
const NO_MESSAGE = new IncomingMessage(new Socket())

/** 500 after an effect is kept, 503 says that nothing was done. */
const STATUSES: Readonly<Record<HandlerResult, number>> = { paid: 201, failed: 500, nothing: 503 }

function answerWith(status: number, mark: string): CapturedAnswer {
  return {
    status,
    headers: { 'content-type': 'application/json', location: `/payments/${mark}` },
    body: Buffer.from(JSON.stringify({ by: mark })),
    isText: true,
  }
}

/** What a framework answers with when a handler throws. */
function failure(error: unknown): CapturedAnswer {
  const { statusCode = 500, message } = error as { readonly statusCode?: number; readonly message: string }
  return answerWith(statusCode, message)
}

function replyOf({ status, headers, body }: HttpAnswer): Reply {
  const isProblem = headers.some(([, value]) => String(value).startsWith('application/problem+json'))
  const text = Buffer.from(body ?? []).toString('latin1')
  if (isProblem) return { kind: 'refusal', code: (JSON.parse(text) as { code: string }).code }
  const kept = headers.filter(([name]) => name !== 'idempotent-replayed')
  return { kind: 'answer', text: `${status} ${JSON.stringify(kept)} ${text}` }
}

/** An answer, or the code of a refusal. */
export function textOf(reply: Reply): string {
  return reply.kind === 'answer' ? reply.text : reply.code
}

function startEngine(
  main: Library['main'],
  { store, storeTimeoutMs }: Omit<ServiceOptions, 'listener'>,
  listener: IdempotencyListener,
): ReturnType<Library['main']['createIdempotency']> {
  const idempotency = main.createIdempotency({ store, storeTimeout: storeTimeoutMs, sweep: false })
  idempotency.on(listener)
  return idempotency
}
