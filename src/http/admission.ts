import { FingerprintError, KeyInvalidError, KeyMissingError, ScopeMissingError } from '../contract/errors.js'
import { keyProblem } from '../contract/key.js'
import type { Engine } from '../core/engine.js'
import { fingerprintInSlices } from '../core/fingerprint.js'
import { createExchange, type Exchange } from './exchange.js'
import { type GivenAnswer, refusalOf, replayOf } from './given-answer.js'
import { factsOf } from './http-answer.js'
import type { HttpSettings, IncomingOperation } from './http-options.js'
import { keyFromHeaders } from './key-header.js'

/** What happens with a request that has a key: its handler runs, or it is answered at once. */
export type Admission =
  | { readonly kind: 'run'; readonly exchange: Exchange }
  | { readonly kind: 'answer'; readonly answer: GivenAnswer }

/** One protected route. */
export interface Guard<TRequest> {
  readonly engine: Engine
  readonly settings: HttpSettings<TRequest>
}

/**
 * The key of a request: `undefined` where it has none and needs none, and then nothing more is to be done.
 *
 * @throws {KeyMissingError | KeyInvalidError}
 */
export function keyOf<TRequest>(
  guard: Guard<TRequest>,
  incoming: Pick<IncomingOperation<TRequest>, 'request' | 'raw'>,
): string | undefined {
  const { settings } = guard
  const key =
    settings.key === undefined
      ? keyFromHeaders(incoming.raw, settings.headerNames)
      : settings.key(incoming.request)
  if (key !== undefined) {
    const problem = keyProblem(key)
    if (problem !== undefined) throw new KeyInvalidError(problem)
    return key
  }
  if (settings.required) throw new KeyMissingError(settings.headerNames.join(' or '))
  return undefined
}

/** Asks the engine what becomes of a request with a key. Never rejects with an error of this library. */
export async function admit<TRequest>(
  guard: Guard<TRequest>,
  key: string,
  incoming: IncomingOperation<TRequest>,
): Promise<Admission> {
  const { engine, settings } = guard
  const refusal = (error: unknown): GivenAnswer => refusalOf(error, settings, incoming.request)
  try {
    const scope = scopeOf(settings, incoming.request)
    const knownScope = typeof scope === 'string' ? scope : await scope
    const fingerprint = requestFingerprint(settings, incoming)
    const begun = await engine.begin({
      scope: knownScope,
      key,
      // Only that of a large body is waited for.
      fingerprint: typeof fingerprint === 'object' ? await fingerprint : fingerprint,
      route: incoming.route,
      policy: settings.policy,
      reads: factsOf,
    })
    if (begun.kind === 'replay') return { kind: 'answer', answer: replayOf(begun.outcome, key) }
    const { execution } = begun
    const { route } = incoming
    return { kind: 'run', exchange: createExchange({ key, route, execution, settings, refusal }) }
  } catch (error) {
    return { kind: 'answer', answer: refusal(error) }
  }
}

function scopeOf<TRequest>(settings: HttpSettings<TRequest>, request: TRequest): string | Promise<string> {
  if (settings.scope === 'shared') return 'shared'
  try {
    const scope: unknown = settings.scope(request)
    if (typeof scope === 'string') return scope
    return Promise.resolve(scope).then(assertScope, refuseScope)
  } catch (cause) {
    return refuseScope(cause)
  }
}

function assertScope(scope: unknown): string {
  // An empty one is refused by the engine, for every adapter alike.
  if (typeof scope !== 'string') throw new ScopeMissingError()
  return scope
}

function refuseScope(cause: unknown): never {
  throw new ScopeMissingError({ cause })
}

function requestFingerprint<TRequest>(
  { fingerprint }: HttpSettings<TRequest>,
  incoming: IncomingOperation<TRequest>,
): string | Promise<string> | undefined {
  if (fingerprint === false) return undefined
  const { method, url: path } = incoming
  if (fingerprint === 'body') return fingerprintInSlices({ method, path, body: incoming.body })
  if (fingerprint === 'raw') return fingerprintInSlices({ method, path, body: incoming.rawDigest })
  return fingerprintInSlices({ method, path, body: chosenPart(fingerprint, incoming.request) })
}

function chosenPart<TRequest>(choose: (request: TRequest) => unknown, request: TRequest): unknown {
  try {
    return choose(request)
  } catch (cause) {
    throw new FingerprintError('The fingerprint function failed', 500, { cause })
  }
}
