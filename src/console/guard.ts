import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { isIdempotencyError, OptionsError } from '../contract/errors.js'
import type { Authorized, ConsoleSettings, Operator } from './console-options.js'
import { type Frame, messagePage } from './page.js'
import { foreignness } from './same-origin.js'

/** What every answer of the console says to browsers. */
const HEADERS = {
  'content-security-policy':
    "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
  'x-frame-options': 'DENY',
  'x-content-type-options': 'nosniff',
  // Not `no-referrer`: with it browsers send `Origin: null` along with forms. Other sites are told nothing by this one.
  'referrer-policy': 'same-origin',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'cache-control': 'no-store',
} as const

/** What an application that lets other sites read its API must not say of these pages. */
const FOR_OTHER_SITES = ['access-control-allow-origin', 'access-control-allow-credentials']

/** The longest form: an answer that somebody types is short. */
const MAX_FORM_BYTES = 256 * 1024

/** Who is at a request of the console. */
export interface Guard {
  /** The person of a request that has passed. */
  operatorOf(request: FastifyRequest): Operator
  frameOf(request: FastifyRequest): Frame
}

/**
 * Stands before everything in a context of its own: asks who it is, refuses forms of other sites, reads forms and nothing
 * else, and answers errors with pages that say no more than they must.
 */
export function guard(app: FastifyInstance, { authorize, actions, origin }: ConsoleSettings): Guard {
  const operators = new WeakMap<FastifyRequest, Operator | undefined>()
  const frameOf = (request: FastifyRequest): Frame => {
    const operator = operators.get(request)
    return {
      root: rootOf(request, app.prefix),
      by: operator?.by,
      mayAct: actions && operator?.mayChange === true,
    }
  }

  app.addHook('onRequest', async (request, reply) => {
    // From here on the console answers. What the application's hooks have answered before is theirs.
    operators.set(request, undefined)
    const operator = await authorize(request)
    if (!isOperator(operator)) return show(reply.code(403), messagePage(frameOf(request), FORBIDDEN))
    operators.set(request, operator)
    const problem = request.method === 'POST' ? foreignness(request, origin) : undefined
    if (problem === undefined) return
    request.log.warn(
      { reason: problem },
      'oncekey console: a form that may come from another site was refused',
    )
    return show(
      reply.code(403),
      messagePage(frameOf(request), { title: 'Not from here', text: `This form was refused. ${problem}` }),
    )
  })

  // The last to speak: a hook of the application may have set headers for pages of its own.
  app.addHook('onSend', async (request, reply) => {
    if (!operators.has(request)) return
    for (const name of FOR_OTHER_SITES) reply.removeHeader(name)
    reply.headers(HEADERS)
  })

  // A page of another site can send JSON as text, so forms are all that is read. The application's parsers stay its own.
  app.removeAllContentTypeParsers()
  app.addContentTypeParser(
    'application/x-www-form-urlencoded',
    { parseAs: 'string', bodyLimit: MAX_FORM_BYTES },
    (_request, body, done) => done(null, new URLSearchParams(String(body))),
  )

  app.setErrorHandler((error: FastifyError, request, reply) => {
    const { status, title, text } = explained(error)
    if (status >= 500) request.log.error({ err: error }, 'oncekey console: a page could not be shown')
    return show(reply.code(status), messagePage(frameOf(request), { title, text }))
  })

  return {
    frameOf,
    operatorOf(request) {
      const operator = operators.get(request)
      if (operator === undefined) throw new Error('Nobody was let in')
      return operator
    },
  }
}

/** Sends a page. */
export function show(reply: FastifyReply, page: string): FastifyReply {
  return reply.type('text/html; charset=utf-8').send(page)
}

/** The fields of the form that was sent. */
export function fieldsOf({ body }: FastifyRequest): URLSearchParams {
  return body instanceof URLSearchParams ? body : new URLSearchParams()
}

/** The path of a request, as this process sees it. */
export function pathOf({ url }: FastifyRequest): string {
  return url.split(/[?#]/, 1)[0] ?? ''
}

const FORBIDDEN = { title: 'Not for you', text: 'You are not allowed to see this console.' }

/**
 * The way from a page to the overview. Only the depth below the prefix counts: what a proxy has put before it, or taken
 * away, does not.
 */
function rootOf(request: FastifyRequest, prefix: string): string {
  const depth = slashes(pathOf(request)) - slashes(prefix === '/' ? '' : prefix)
  return depth <= 1 ? './' : '../'.repeat(depth - 1)
}

function slashes(path: string): number {
  return path.split('/').length - 1
}

function isOperator(given: Authorized): given is Operator {
  if (given === false || given === undefined || given === null) return false
  if (typeof given.by === 'string' && given.by !== '') return true
  // Let in, and nobody would know who changed what: rather nobody is let in.
  throw new OptionsError('oncekey/console: "authorize" must give { by: the name of the person }, or false')
}

function explained(error: FastifyError): {
  readonly status: number
  readonly title: string
  readonly text: string
} {
  if (isIdempotencyError(error)) {
    if (error.code === 'IDEMPOTENCY_OUTCOME_UNREADABLE')
      return {
        status: 500,
        title: 'This record cannot be opened',
        text: 'It is there, and its answer is sealed with a key that this service does not have, or was changed.',
      }
    if (error.statusCode === 503)
      return {
        status: 503,
        title: 'The store is away',
        text: 'The store could not be reached, failed, or did not answer in time. If you were changing something, it may have been done: look at the record before you try again. The log of this service has the reason.',
      }
  }
  const status = error.statusCode ?? 500
  if (status >= 400 && status < 500)
    return { status, title: 'Not like that', text: REFUSALS[status] ?? 'This request was refused.' }
  return { status: 500, title: 'Something failed', text: 'The log of this service has the reason.' }
}

const REFUSALS: Readonly<Record<number, string>> = {
  413: 'What you sent is too long for this console.',
  415: 'This console reads its own forms, and nothing else.',
}
