import type { IncomingMessage, ServerResponse } from 'node:http'
import type { RequestIdempotency } from '../http/request-idempotency.js'

declare global {
  // Where the types of Express 4 and 5, and of middleware, say what a request has.
  namespace Express {
    interface Request {
      /** This request's operation, where the middleware ran. Without a key it is inert. */
      readonly idempotency: RequestIdempotency
    }
  }
}

// biome-ignore lint/suspicious/noExplicitAny: what the application's parsers and routes make of it, as Express has it
type Loose = any

/** The part of an Express request that is used, of version 4 and 5 alike. */
export interface ExpressRequest extends IncomingMessage, Express.Request {
  readonly originalUrl: string
  readonly baseUrl: string
  readonly ip?: string | undefined
  readonly body?: Loose
  readonly params: Loose
  readonly query: Loose
  readonly route?: Loose
  /** Set by `connect-timeout`, when it has answered in the place of a handler. */
  readonly timedout?: boolean
  get(name: string): string | undefined
}

/** The part of an Express response that is used, of version 4 and 5 alike. */
export interface ExpressResponse extends ServerResponse {
  readonly app: { get(name: string): unknown }
  json(body?: Loose): unknown
  send(body?: Loose): unknown
}

/** A middleware of Express 4 and 5. It says nothing of parameters and bodies, so that those of its route keep their types. */
export type ExpressHandler = (
  request: IncomingMessage,
  response: ExpressResponse,
  next: (error?: unknown) => void,
) => void
