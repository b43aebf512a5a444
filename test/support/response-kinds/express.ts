import { Readable } from 'node:stream'
import compression from 'compression'
import type { NextFunction, Request, Response } from 'express'
import helmet from 'helmet'
import { idempotency } from '../../../src/adapters/express.js'
import { memoryStore } from '../../../src/stores/memory.js'
import { type ExpressVersion, listening } from '../express-versions.js'
import {
  ALL_BYTES,
  BIG_JSON,
  FILE,
  type Framework,
  type KindName,
  LATIN_1,
  LONG_TEXT,
  Unprocessable,
} from './kinds.js'

type Handler = (request: Request, response: Response, next: NextFunction) => unknown

const HANDLERS: Readonly<Partial<Record<KindName, Handler>>> = {
  json: (_, res) => res.json({ a: 1 }),
  bigJson: (_, res) => res.json(BIG_JSON),
  text: (_, res) => res.send('Grüße'),
  latin1: (_, res) => {
    res.setHeader('content-type', 'text/plain; charset=iso-8859-1')
    res.end(LATIN_1)
  },
  bytes: (_, res) => res.send(ALL_BYTES),
  empty: (_, res) => res.send(''),
  noContent: (_, res) => res.status(204).end(),
  notModified: (_, res) => res.status(304).set('etag', '"1"').end(),
  redirect: (_, res) => res.redirect(303, '/elsewhere'),
  statusAlone: (_, res) => res.sendStatus(202),
  created: (_, res) =>
    res
      .status(201)
      .location('/payments/p-1')
      .set({ etag: '"7"', 'x-many': ['1', '2'] })
      .links({ a: '/a', b: '/b' })
      .json({ id: 'p-1' }),
  chunks: (_, res) => {
    res.writeHead(201, { 'content-type': 'text/plain' })
    res.write('one ')
    setImmediate(() => {
      res.write('two ')
      res.end('three')
    })
  },
  stream: (_, res) => Readable.from([ALL_BYTES, ALL_BYTES]).pipe(res),
  file: (_, res) => res.sendFile(FILE),
  download: (_, res) => res.download(FILE, 'the receipt.txt'),
  page: (_, res) => res.render('greeting', { name: 'Ada' }),
  jsonp: (_, res) => res.jsonp({ a: 1 }),
  compressed: (_, res) => res.json({ text: LONG_TEXT }),
  finalFailure: (_, res) => res.status(402).json({ error: 'declined' }),
  problem: (_req, _res, next) => next(new Unprocessable()),
  thrown: () => {
    throw new Error('boom')
  },
  // Express 4 knows nothing of promises: its handlers hand errors on themselves.
  thrownLater: (_req, _res, next) => void Promise.reject(new Error('boom')).catch(next),
  notFound: (_req, _res, next) => next(),
  patch: (_, res) => res.json({ patched: true }),
  put: (_, res) => res.send('put'),
}

/** Express of a version, with the middleware, `compression` and `helmet`. */
export function expressOf({ name, express }: ExpressVersion): Framework {
  return {
    name,
    // A handler of Express pipes what is not a Node stream after it has made one of it.
    lacks: ['webStream', 'response'],
    start({ onEffect }) {
      const app = express()
      app.engine('txt', (_path, options, callback) => {
        callback(null, `<p>Hello, ${(options as { name?: string }).name}</p>`)
      })
      app.set('view engine', 'txt')
      app.set('views', new URL('views', import.meta.url).pathname)
      // The errors of these tests are meant to be.
      app.set('env', 'test')
      app.use(helmet(), compression(), express.json())
      const once = idempotency({ store: memoryStore(), scope: 'shared', methods: ['POST', 'PATCH', 'PUT'] })
      for (const [kind, handler] of Object.entries(HANDLERS))
        app.all(`/${kind}`, once(), (request, response, next) => {
          response.set('x-effect', String(onEffect(kind as KindName)))
          handler(request, response, next)
        })
      app.use((error: unknown, _request: Request, response: Response, next: NextFunction) => {
        if (!(error instanceof Unprocessable)) return next(error)
        response.status(422).set('content-type', 'application/problem+json; charset=utf-8')
        response.send(JSON.stringify({ title: 'Unprocessable' }))
      })
      return listening(app)
    },
  }
}
