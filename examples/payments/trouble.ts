import { setTimeout as pause } from 'node:timers/promises'
import type { FastifyReply, FastifyRequest, RouteShorthandOptions } from 'fastify'
import type { IdempotencyEvent } from 'oncekey'
import type { AttemptName, KeyEvent, Trouble } from './demo-events.js'
import type { Feed } from './feed.js'
import type { Transfer } from './ledger.js'

/** For the demo only: a bank that lets its callers choose what goes wrong, and tells everybody what it does. */
export interface TroubledBank {
  /** What a route takes, so that its replies can be lost, and its requests are told of. */
  readonly hooks: Pick<RouteShorthandOptions, 'onRequest' | 'onSend' | 'onResponse'>
  /** Stands before the effect of a handler. */
  beforeEffect(request: FastifyRequest): Promise<void>
  /** Stands between the effect of a handler and its answer. */
  afterEffect(request: FastifyRequest, transfer: Transfer): Promise<void>
}

/** @param slowness what a slow bank waits for before it moves money. Four seconds, where nobody says anything else. */
export function createTrouble(
  feed: Feed,
  slowness: () => Promise<unknown> = () => pause(4000),
): TroubledBank {
  return {
    hooks: {
      async onRequest(request) {
        const name = attemptOf(request)
        if (name) feed.tell({ type: 'arrived', ...name })
      },

      // After the plugin's own hook: the answer is kept, and then it is lost on its way.
      async onSend(request, reply, payload) {
        if (troubleOf(request) !== 'lose-reply') return payload
        request.raw.socket.destroy()
        const name = attemptOf(request)
        if (name) feed.tell({ type: 'reply-lost', ...name, ...answerOf(reply) })
        return payload
      },

      async onResponse(request, reply) {
        const name = attemptOf(request)
        if (!name || troubleOf(request) === 'lose-reply') return
        feed.tell({ type: 'answered', ...name, ...answerOf(reply) })
      },
    },

    async beforeEffect(request) {
      if (troubleOf(request) === 'slow') await slowness()
    },

    async afterEffect(request, transfer) {
      const name = attemptOf(request)
      if (name) feed.tell({ type: 'moved', ...name, transfer })
      else feed.tell({ type: 'ledger' })
      if (troubleOf(request) !== 'crash') return
      // A process that is killed here would take the page along. This handler never comes back: for everybody else it is the same.
      if (name) feed.tell({ type: 'crashed', ...name })
      request.raw.socket.destroy()
      await new Promise(() => {})
    },
  }
}

/** What the page is told of a key, or `undefined` where an event says nothing to a visitor. */
export function keyEventOf(event: IdempotencyEvent): KeyEvent | undefined {
  switch (event.type) {
    case 'claimed':
      return { type: 'key', key: event.operation.key, what: 'claimed', fence: event.fence }
    case 'completed':
      return {
        type: 'key',
        key: event.operation.key,
        what: 'completed',
        ms: event.runMs,
        status: event.facts().status,
      }
    case 'replayed':
      return {
        type: 'key',
        key: event.operation.key,
        what: 'replayed',
        ms: event.ageMs,
        from: event.from,
        status: event.facts().status,
      }
    case 'in-progress':
    case 'mismatch':
    case 'unknown':
    case 'released':
    case 'max-run':
      return { type: 'key', key: event.operation.key, what: event.type }
    default:
      return undefined
  }
}

function troubleOf(request: FastifyRequest): Trouble | undefined {
  return headerOf(request, 'x-demo-trouble') as Trouble | undefined
}

function answerOf(reply: FastifyReply): { readonly status: number; readonly replayed: boolean } {
  return { status: reply.statusCode, replayed: reply.getHeader('idempotent-replayed') === 'true' }
}

/** Requests that come from elsewhere, by `curl` say, name no attempt. */
function attemptOf(request: FastifyRequest): AttemptName | undefined {
  const [press, attempt] = headerOf(request, 'x-demo-attempt')?.split('/') ?? []
  return press && Number(attempt) > 0 ? { press, attempt: Number(attempt) } : undefined
}

/** The press of Pay that a request comes from, for the ledger's column of references. */
export function referenceOf(request: FastifyRequest): string {
  return attemptOf(request)?.press ?? ''
}

function headerOf(request: FastifyRequest, name: string): string | undefined {
  const value = request.headers[name]
  return typeof value === 'string' && /^[\w/-]{1,64}$/.test(value) ? value : undefined
}
