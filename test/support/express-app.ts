import { randomUUID } from 'node:crypto'
import type { Express } from 'express'
import { type ExpressOptions, idempotency, type Once } from '../../src/adapters/express.js'
import { memoryStore } from '../../src/stores/memory.js'
import { type ExpressVersion, listening } from './express-versions.js'
import { type RawAnswer, type RawRequest, rawRequest } from './raw-request.js'

/** An application under test, on a server of its own. */
export interface TestExpress {
  readonly url: string
  readonly once: Once
  /** What an operator would have read. */
  readonly log: readonly {
    readonly level: 'warn' | 'error'
    readonly message: string
    readonly details: object
  }[]
  send(path: string, given?: RawRequest): Promise<RawAnswer>
}

const running: { close(): Promise<void> }[] = []

/** Ends all applications of a test. For `afterEach`. */
export async function closeExpressApps(): Promise<void> {
  await Promise.all(running.splice(0).map((app) => app.close()))
}

/** An application with a body parser and whatever `define` adds. */
export async function anExpress(
  { express }: ExpressVersion,
  define: (app: Express, once: Once) => void,
  { parses = true, ...options }: Partial<ExpressOptions> & { readonly parses?: boolean } = {},
): Promise<TestExpress> {
  const app = express()
  // Express writes the errors that nobody has handled to the console otherwise.
  app.set('env', 'test')
  if (parses) app.use(express.json())
  const log: { level: 'warn' | 'error'; message: string; details: object }[] = []
  const once = idempotency({
    store: memoryStore(),
    scope: (request) => String(request.headers['x-tenant'] ?? 'acme'),
    log: {
      warn: (details, message) => void log.push({ level: 'warn', message, details }),
      error: (details, message) => void log.push({ level: 'error', message, details }),
    },
    ...options,
  })
  define(app, once)
  const server = await listening(app)
  running.push({
    async close() {
      await server.close()
      await once.engine.close()
    },
  })
  return { url: server.url, once, log, send: (path, given) => rawRequest(`${server.url}${path}`, given) }
}

/** A key that no other request has. */
export function aKey(): string {
  return randomUUID()
}
