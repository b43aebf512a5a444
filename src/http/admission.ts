import { FingerprintError, KeyMissingError, ScopeMissingError } from '../contract/errors.js'
import { isPromise, type MaybePromise } from '../contract/maybe-promise.js'
import type { Begun, Engine } from '../core/engine.js'
import { fingerprintInSlices } from '../core/fingerprint.js'
import { createExchange, type Exchange } from './exchange.js'
import { cachedReplayOf, type GivenAnswer, refusalOf, replayOf } from './given-answer.js'
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
    settings.key === undefined ? keyFromHeaders(incoming.raw, settings) : settings.key(incoming.request)
  // What a key may be the engine knows.
  if (key !== undefined) return key
  if (settings.required) throw new KeyMissingError(settings.headerNames.join(' or '))
  return undefined
}

/**
 * Asks the engine what becomes of a request with a key. There is a promise only where there is something to wait for.
 *
 * @throws what is not an error of this library, which may come as a rejected promise too.
 */
export function admit<TRequest>(
  guard: Guard<TRequest>,
  key: string,
  incoming: IncomingOperation<TRequest>,
): MaybePromise<Admission> {
  try {
    const scope = scopeOf(guard.settings, incoming.request)
    const begun =
      typeof scope === 'string'
        ? begin(guard, key, incoming, scope)
        : scope.then((found) => begin(guard, key, incoming, found))
    return isPromise(begun)
      ? admitLater(guard, key, incoming, begun)
      : admissionOf(guard, key, incoming, begun)
  } catch (error) {
    return refused(guard, incoming, error)
  }
}

// Arguments one by one, since every protected request comes by: each object that only hands them on is one to be collected.

function begin<TRequest>(
  guard: Guard<TRequest>,
  key: string,
  incoming: IncomingOperation<TRequest>,
  scope: string,
): MaybePromise<Begun> {
  const fingerprint = requestFingerprint(guard.settings, incoming)
  const { route } = incoming
  // Only that of a large body is waited for.
  return typeof fingerprint === 'object'
    ? fingerprint.then((found) => ask(guard, key, route, scope, found))
    : ask(guard, key, route, scope, fingerprint)
}

function ask<TRequest>(
  { engine, settings }: Guard<TRequest>,
  key: string,
  route: string,
  scope: string,
  fingerprint: string | undefined,
): MaybePromise<Begun> {
  return engine.beginNow({
    scope,
    key,
    fingerprint,
    route,
    policy: settings.policy,
    reads: factsOf,
  })
}

async function admitLater<TRequest>(
  guard: Guard<TRequest>,
  key: string,
  incoming: IncomingOperation<TRequest>,
  begun: Promise<Begun>,
): Promise<Admission> {
  try {
    return admissionOf(guard, key, incoming, await begun)
  } catch (error) {
    return refused(guard, incoming, error)
  }
}

function admissionOf<TRequest>(
  { settings }: Guard<TRequest>,
  key: string,
  { route, request }: IncomingOperation<TRequest>,
  begun: Begun,
): Admission {
  if (begun.kind === 'replay') {
    const { outcome, from } = begun
    return {
      kind: 'answer',
      answer: from === 'cache' ? cachedReplayOf(outcome, key) : replayOf(outcome, key),
    }
  }
  const { execution } = begun
  return { kind: 'run', exchange: createExchange({ key, route, execution, settings, request }) }
}

function refused<TRequest>(
  { settings }: Guard<TRequest>,
  { request }: IncomingOperation<TRequest>,
  error: unknown,
): Admission {
  return { kind: 'answer', answer: refusalOf(error, settings, request) }
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
