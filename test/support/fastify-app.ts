import { randomUUID } from 'node:crypto'
import Fastify, { type FastifyInstance, type InjectOptions } from 'fastify'
import idempotency, { type FastifyIdempotencyOptions } from '../../src/adapters/fastify.js'
import { memoryStore } from '../../src/stores/memory.js'

/** What an injected request was answered with. */
export interface Answered {
  readonly status: number
  readonly headers: Readonly<Record<string, unknown>>
  readonly bytes: Buffer
  readonly isReplay: boolean
  /** The problem's code, where the answer is one. */
  readonly code: string | undefined
}

/** An application under test. */
export interface TestApp {
  readonly app: FastifyInstance
  /** Sends a request with a key, and gives what it was answered with. */
  send(url: string, given?: Partial<InjectOptions> & { readonly key?: string | undefined }): Promise<Answered>
}

/** An application with the plugin and the routes that `define` adds. */
export async function anApp(
  define: (app: FastifyInstance) => void | Promise<void>,
  options: Partial<FastifyIdempotencyOptions> = {},
): Promise<TestApp> {
  const app = Fastify()
  await app.register(idempotency, {
    store: memoryStore(),
    scope: (request) => String(request.headers['x-tenant'] ?? 'acme'),
    ...options,
  })
  await define(app)
  return { app, send: (url, given = {}) => send(app, url, given) }
}

/** Sends one request to an application, as `TestApp.send` does. */
export async function send(
  app: FastifyInstance,
  url: string,
  given: Partial<InjectOptions> & { readonly key?: string | undefined } = {},
): Promise<Answered> {
  const { key, headers, ...rest } = given
  const answer = await app.inject({
    method: 'POST',
    url,
    payload: { amount: 5 },
    ...rest,
    headers: { ...(key !== undefined && { 'idempotency-key': key }), ...headers },
  })
  const isProblem = String(answer.headers['content-type']).startsWith('application/problem+json')
  return {
    status: answer.statusCode,
    headers: answer.headers,
    bytes: answer.rawPayload,
    isReplay: answer.headers['idempotent-replayed'] === 'true',
    code: isProblem ? (answer.json() as { code: string }).code : undefined,
  }
}

/** A key that no other request has. */
export function aKey(): string {
  return randomUUID()
}
