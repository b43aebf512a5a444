import { createReadStream } from 'node:fs'
import { Readable } from 'node:stream'
import compress from '@fastify/compress'
import Fastify, { type RouteHandlerMethod } from 'fastify'
import idempotency from '../../../src/adapters/fastify.js'
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

const HANDLERS: Readonly<Partial<Record<KindName, RouteHandlerMethod>>> = {
  json: () => ({ a: 1 }),
  bigJson: () => BIG_JSON,
  text: () => 'Grüße',
  latin1: (_, reply) => reply.type('text/plain; charset=iso-8859-1').send(LATIN_1),
  bytes: () => ALL_BYTES,
  empty: (_, reply) => reply.send(''),
  noContent: (_, reply) => reply.code(204).send(),
  notModified: (_, reply) => reply.code(304).header('etag', '"1"').send(),
  redirect: (_, reply) => reply.redirect('/elsewhere', 303),
  statusAlone: (_, reply) => reply.code(202).send(),
  created: (_, reply) =>
    reply
      .code(201)
      .headers({ location: '/payments/p-1', etag: '"7"', 'x-many': ['1', '2'] })
      .header('link', ['</a>; rel="a"', '</b>; rel="b"'])
      .send({ id: 'p-1' }),
  chunks: (_, reply) => {
    reply.hijack()
    reply.raw.writeHead(201, { 'content-type': 'text/plain' })
    reply.raw.write('one ')
    setImmediate(() => {
      reply.raw.write('two ')
      reply.raw.end('three')
    })
  },
  stream: (_, reply) => reply.send(Readable.from([ALL_BYTES, ALL_BYTES])),
  webStream: () => new Blob([ALL_BYTES]).stream(),
  response: () => new Response('hello', { status: 202, headers: { 'x-own': 'yes' } }),
  file: (_, reply) => reply.type('text/plain').send(createReadStream(FILE)),
  download: (_, reply) =>
    reply
      .header('content-disposition', 'attachment; filename="the receipt.txt"')
      .type('text/plain')
      .send(createReadStream(FILE)),
  compressed: () => ({ text: LONG_TEXT }),
  finalFailure: (_, reply) => reply.code(402).send({ error: 'declined' }),
  problem: () => {
    throw new Unprocessable()
  },
  thrown: () => {
    throw new Error('boom')
  },
  thrownLater: () => Promise.reject(new Error('boom')),
  notFound: (_, reply) => void reply.callNotFound(),
  patch: () => ({ patched: true }),
  put: () => 'put',
}

/** Fastify 5, with the plugin and `@fastify/compress`. */
export const fastify: Framework = {
  name: 'Fastify',
  lacks: ['page', 'jsonp'],
  async start({ onEffect }) {
    const app = Fastify()
    await app.register(compress, { threshold: 1024 })
    await app.register(idempotency, { scope: 'shared', methods: ['POST', 'PATCH', 'PUT'] })
    app.setErrorHandler((error, _request, reply) => {
      if (!(error instanceof Unprocessable)) return reply.send(error)
      return reply
        .code(422)
        .type('application/problem+json; charset=utf-8')
        .send(JSON.stringify({ title: 'Unprocessable' }))
    })
    for (const [kind, handler] of Object.entries(HANDLERS))
      app.route({
        method: ['POST', 'PATCH', 'PUT'],
        url: `/${kind}`,
        handler(request, reply) {
          const effect = String(onEffect(kind as KindName))
          // Fastify's own headers are no part of a hijacked reply.
          if (kind === 'chunks') reply.raw.setHeader('x-effect', effect)
          else reply.header('x-effect', effect)
          return handler.call(this, request, reply)
        },
      })
    return { url: await app.listen({ port: 0, host: '127.0.0.1' }), close: () => app.close() }
  },
}
