import type { FastifyInstance, FastifyPluginAsync, FastifyRequest } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import { OptionsError, StoreUnavailableError } from '../contract/errors.js'
import { logEvents } from '../http/event-log.js'
import { createHttpEngine } from '../http/http-engine.js'
import type { HttpOptions, HttpPolicyOptions } from '../http/http-options.js'
import type { RequestIdempotency } from '../http/request-idempotency.js'
import type { Idempotency } from '../index.js'
import { REQUEST_STATE, requestIdempotency } from './fastify-request.js'
import { createRouteProtection } from './fastify-route.js'

export type { FinishedResponse } from '../http/http-options.js'
export type { HeaderRules } from '../http/kept-headers.js'
export type { Problem, ProblemReply } from '../http/problems.js'
export type { RequestIdempotency } from '../http/request-idempotency.js'
export type { PlainResponse } from '../http/response-outcome.js'
export { type DescribedRoute, type DescriptionTransform, openApiTransform } from './fastify-openapi.js'

/** What a single route may say, in `config.idempotency`. */
export type FastifyRouteIdempotency = HttpPolicyOptions<FastifyRequest>

/** What the plugin takes. */
export interface FastifyIdempotencyOptions extends HttpOptions<FastifyRequest> {
  /**
   * Whether every route with a protected method is protected. `false` makes protection opt-in, by
   * `config: { idempotency: true }` or an object of options.
   *
   * @default true
   */
  readonly global?: boolean
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Options of this route, `true` to opt in, `false` to turn protection off. */
    idempotency?: boolean | FastifyRouteIdempotency
  }
  interface FastifyRequest {
    /** This request's operation. Without a key, or on a route without protection, it is inert. */
    readonly idempotency: RequestIdempotency
  }
  interface FastifyInstance {
    /** The engine: its events, its check, and `run` for plain functions. */
    readonly idempotency: Idempotency
  }
}

const WHERE = 'oncekey/fastify'

const plugin: FastifyPluginAsync<FastifyIdempotencyOptions> = async (app, options) => {
  if (Object.hasOwn(app, 'idempotency'))
    throw new OptionsError(
      `${WHERE}: the plugin is registered already in this context. Give single routes their options in config.idempotency, or register it in a context of its own`,
    )
  const { global: isGlobal = true, ...httpOptions } = options
  if (typeof isGlobal !== 'boolean')
    throw new OptionsError(`${WHERE}: option "global" must be true or false; got ${String(isGlobal)}`)
  const { idempotency, settings } = createHttpEngine<FastifyRequest>(httpOptions, WHERE)

  logEvents(idempotency, app.log)
  if (options.store === undefined)
    app.log.warn('oncekey: no store was given, so keys are known to this process only, and until it ends')
  warnAboutEarlierRoutes(app, settings.methods)

  app.decorate('idempotency', idempotency)
  if (!app.hasRequestDecorator('idempotency')) {
    app.decorateRequest(REQUEST_STATE, null)
    app.decorateRequest('idempotency', {
      getter() {
        return requestIdempotency(this as FastifyRequest)
      },
    })
  }
  app.addHook('onRoute', createRouteProtection({ engine: idempotency, settings, isGlobal, where: WHERE }))
  app.addHook('onReady', () => checkStore(app, idempotency))
  app.addHook('onClose', () => idempotency.close())
}

async function checkStore(app: FastifyInstance, idempotency: Idempotency): Promise<void> {
  try {
    await idempotency.check()
  } catch (error) {
    // A store that is away may be back before the first request, and is checked again then. One that is unfit is not.
    if (!(error instanceof StoreUnavailableError)) throw error
    app.log.warn({ err: error }, 'oncekey: the store could not be reached at start')
  }
}

/** A route that was there before the plugin never passes its `onRoute` hook: it would be unprotected without a word. */
function warnAboutEarlierRoutes(app: FastifyInstance, methods: readonly string[]): void {
  // In an inner context the routes that are listed may be another's, and unprotected on purpose.
  const isRoot = Object.getPrototypeOf(app) === Object.prototype
  if (!isRoot) return
  const routes = app.printRoutes({ commonPrefix: false })
  const listed = new RegExp(`\\((?:[^)]*, )?(?:${methods.join('|')})(?:,[^)]*)?\\)`)
  if (!listed.test(routes)) return
  process.emitWarning(
    `${WHERE}: routes that were added before the plugin are not protected by it. Write "await app.register(...)", and add routes after it`,
    { type: 'OncekeyWarning', code: 'ONCEKEY_ROUTES_BEFORE_PLUGIN' },
  )
}

/**
 * Makes the routes of a Fastify application safe to retry: a request with an `Idempotency-Key` has one effect and one
 * answer. Applies to the context it is registered in, and to routes that are added after it.
 *
 * @throws {OptionsError} at registration, naming the option that is wrong, its value and what would be right.
 * @throws {StoreUnfitError} at start, when the store would lose records.
 */
export default fastifyPlugin(plugin, { name: 'oncekey', fastify: '5.x' })
