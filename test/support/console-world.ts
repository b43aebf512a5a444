import Fastify, { type FastifyInstance } from 'fastify'
import idempotency from '../../src/adapters/fastify.js'
import operatorConsole, { type ConsoleOptions, type Operator } from '../../src/console/console.js'
import { recordId } from '../../src/contract/key.js'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { memoryStore } from '../../src/stores/memory.js'
import { type Answered, send } from './fastify-app.js'

/** What a page of the console was. */
export interface ShownPage {
  readonly status: number
  readonly headers: Readonly<Record<string, unknown>>
  readonly text: string
  /** The hidden fields of the form that goes to a path that ends so. */
  hidden(action: string): Record<string, string>
}

/** A service with a payment route and a console, and a second process on its store that dies at will. */
export interface ConsoleWorld {
  readonly app: FastifyInstance
  readonly store: IdempotencyStore
  /** The keys of all payments that were made. */
  readonly payments: readonly string[]
  /** The lines of the audit log. */
  readonly audit: readonly Readonly<Record<string, unknown>>[]
  pay(key: string): Promise<Answered>
  /** Leaves a payment behind, whose process has died in the middle. Gives the id of its record. */
  orphan(key: string): Promise<string>
  get(path: string, headers?: Readonly<Record<string, string>>): Promise<ShownPage>
  /** Sends a form, as a browser does from a page of the console. */
  post(
    path: string,
    fields: Readonly<Record<string, string>>,
    headers?: Readonly<Record<string, string | undefined>>,
  ): Promise<ShownPage>
  close(): Promise<void>
}

/** Who may do what, by the header `x-operator`. Nobody else is let in. */
const OPERATORS: Readonly<Record<string, Operator>> = {
  ann: { by: 'ann', mayChange: true },
  'ann-elsewhere': { by: 'ann', mayChange: true, session: 'another' },
  eve: { by: 'eve', mayChange: true },
  bob: { by: 'bob' },
}

/** Makes such a service, with the console at `/console` and actions on. */
export async function aConsoleWorld(
  options: Partial<ConsoleOptions> = {},
  given: {
    readonly store?: IdempotencyStore
    readonly behind?: IdempotencyStore
    readonly app?: FastifyInstance
  } = {},
): Promise<ConsoleWorld> {
  const { store = memoryStore(), app = Fastify() } = given
  const { behind = store } = given
  const payments: string[] = []
  const audit: Record<string, unknown>[] = []
  await app.register(idempotency, { store, scope: () => 'acme' })
  app.post('/payments', (request, reply) => {
    payments.push(request.idempotency.key ?? '')
    return reply.code(201).send({ id: `p-${payments.length}` })
  })
  const note = (line: object): void => {
    audit.push(line as Record<string, unknown>)
  }
  await app.register(operatorConsole, {
    prefix: '/console',
    authorize: (request) => OPERATORS[String(request.headers['x-operator'])] ?? false,
    actions: true,
    logger: { info: note, warn: note },
    ...options,
  })

  const other = Fastify()
  await other.register(idempotency, { store: behind, scope: () => 'acme', lease: '100ms', maxRun: '100ms' })
  other.post('/payments', () => new Promise(() => {}))

  return {
    app,
    store,
    payments,
    audit,
    pay: (key) => send(app, '/payments', { key }),
    async orphan(key) {
      // Nobody will ever answer it.
      send(other, '/payments', { key }).catch(() => {})
      const id = recordId({ namespace: '', scope: 'acme', key })
      while ((await behind.find(id))?.status !== 'unknown')
        await new Promise((resolve) => setTimeout(resolve, 20))
      return id
    },
    get: (path, headers = {}) =>
      ask(app, { method: 'GET', url: path, headers: { 'x-operator': 'ann', ...headers } }),
    post: (path, fields, headers = {}) =>
      ask(app, {
        method: 'POST',
        url: path,
        payload: new URLSearchParams(fields).toString(),
        headers: {
          'x-operator': 'ann',
          'content-type': 'application/x-www-form-urlencoded',
          host: 'ops.example.com',
          origin: 'https://ops.example.com',
          'sec-fetch-site': 'same-origin',
          ...headers,
        },
      }),
    async close() {
      await Promise.all([app.close(), other.close()])
    },
  }
}

/** Settles or releases as a person does: with the page that asks in between. */
export async function change(
  world: ConsoleWorld,
  id: string,
  action: 'settle' | 'release',
  fields: Readonly<Record<string, string>> = {},
): Promise<{ readonly question: ShownPage; readonly result: ShownPage }> {
  const path = `/console/records/${id}/${action}`
  const record = await world.get(`/console/records/${id}`)
  const question = await world.post(path, { ...record.hidden(action), ...fields })
  const result = await world.post(path, question.hidden(action))
  return { question, result }
}

async function ask(
  app: FastifyInstance,
  request: {
    readonly method: 'GET' | 'POST'
    readonly url: string
    readonly headers: Readonly<Record<string, string | undefined>>
    readonly payload?: string
  },
): Promise<ShownPage> {
  const headers = Object.fromEntries(
    Object.entries(request.headers).filter(([, value]) => value !== undefined),
  )
  const answer = await app.inject({ ...request, headers: headers as Record<string, string> })
  const text = answer.payload
  return {
    status: answer.statusCode,
    headers: answer.headers,
    text,
    hidden(action) {
      const form = text.match(new RegExp(`<form[^>]*action="[^"]*${action}"[^]*?</form>`))?.[0] ?? ''
      const inputs = form.matchAll(/<input type="hidden" name="([^"]*)" value="([^"]*)">/g)
      return Object.fromEntries(Array.from(inputs, ([, name = '', value = '']) => [name, unescaped(value)]))
    },
  }
}

function unescaped(text: string): string {
  return text.replace(/&#(\d+);/g, (_, code) => String.fromCharCode(Number(code)))
}
