import { createReadStream } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { Readable } from 'node:stream'
import { type ServerType, serve } from '@hono/node-server'
import { Hono } from 'hono'
import { compress } from 'hono/compress'
import { idempotency } from '../../../src/adapters/web.js'
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

const text = { 'content-type': 'text/plain' }
const streamed = (source: Readable) => Readable.toWeb(source) as ReadableStream

const RESPONSES: Readonly<Partial<Record<KindName, () => Response | Promise<Response>>>> = {
  json: () => Response.json({ a: 1 }),
  bigJson: () => Response.json(BIG_JSON),
  text: () => new Response('Grüße'),
  latin1: () => new Response(LATIN_1, { headers: { 'content-type': 'text/plain; charset=iso-8859-1' } }),
  bytes: () => new Response(ALL_BYTES),
  empty: () => new Response(''),
  noContent: () => new Response(null, { status: 204 }),
  notModified: () => new Response(null, { status: 304, headers: { etag: '"1"' } }),
  redirect: () => new Response(null, { status: 303, headers: { location: '/elsewhere' } }),
  statusAlone: () => new Response(null, { status: 202 }),
  created: () => {
    const headers = new Headers({ location: '/payments/p-1', etag: '"7"' })
    for (const name of ['a', 'b']) headers.append('link', `</${name}>; rel="${name}"`)
    for (const value of ['1', '2']) headers.append('x-many', value)
    return Response.json({ id: 'p-1' }, { status: 201, headers })
  },
  chunks: () =>
    new Response(streamed(Readable.from(['one ', 'two ', 'three'].map(Buffer.from))), {
      status: 201,
      headers: text,
    }),
  stream: () => new Response(streamed(Readable.from([ALL_BYTES, ALL_BYTES]))),
  webStream: () => new Response(new Blob([ALL_BYTES]).stream()),
  response: () => new Response('hello', { status: 202, headers: { 'x-own': 'yes' } }),
  file: () => new Response(streamed(createReadStream(FILE)), { headers: text }),
  download: () =>
    new Response(streamed(createReadStream(FILE)), {
      headers: { ...text, 'content-disposition': 'attachment; filename="the receipt.txt"' },
    }),
  compressed: () => Response.json({ text: LONG_TEXT }),
  finalFailure: () => Response.json({ error: 'declined' }, { status: 402 }),
  problem: () => {
    throw new Unprocessable()
  },
  thrown: () => {
    throw new Error('boom')
  },
  thrownLater: () => Promise.reject(new Error('boom')),
  notFound: () => new Response('There is no such thing', { status: 404 }),
  patch: () => Response.json({ patched: true }),
  put: () => new Response('put'),
}

function answerTo(error: unknown): Response {
  if (!(error instanceof Unprocessable)) return Response.json({ error: 'boom' }, { status: 500 })
  return new Response(JSON.stringify({ title: 'Unprocessable' }), {
    status: 422,
    headers: { 'content-type': 'application/problem+json; charset=utf-8' },
  })
}

/** Handlers of web requests and responses, in Hono on Node's own http, with its compression. */
export const web: Framework = {
  name: 'web',
  lacks: ['page', 'jsonp'],
  async start({ onEffect }) {
    const once = idempotency({
      scope: 'shared',
      methods: ['POST', 'PATCH', 'PUT'],
      log: { warn: () => {}, error: () => {} },
      onError: answerTo,
    })
    const app = new Hono()
    app.use(compress({ threshold: 1024 }))
    for (const [kind, make] of Object.entries(RESPONSES)) {
      const handler = once(async () => {
        const effect = String(onEffect(kind as KindName))
        const response = await make()
        response.headers.set('x-effect', effect)
        return response
      })
      app.on(['POST', 'PATCH', 'PUT'], `/${kind}`, (c) => handler(c.req.raw))
    }
    const server = await new Promise<ServerType>((resolve) => {
      const made = serve({ fetch: app.fetch, port: 0, hostname: '127.0.0.1' }, () => resolve(made))
    })
    return {
      url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      close() {
        if ('closeAllConnections' in server) server.closeAllConnections()
        return new Promise((resolve) => server.close(() => resolve()))
      },
    }
  },
}
