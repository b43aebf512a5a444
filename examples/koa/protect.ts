import { STATUS_CODES } from 'node:http'
import { Readable } from 'node:stream'
import type { ReadableStream as NodeReadableStream } from 'node:stream/web'
import type { Context, Middleware, Next } from 'koa'
import { memoryStore, saysNothingHappened } from 'oncekey'
import { idempotency, idempotencyOf, type WebIdempotency, type WebPolicyOptions } from 'oncekey/web'

const once = idempotency({
  store: memoryStore(), // one of a server, as soon as there are two processes
  scope: (_request, ctx: Context) => ctx.state.account,
  route: (_request, ctx: Context) => String(ctx._matchedRoute ?? '*'),
})

/** Protects the middleware that comes after it in a route. Its operation is `ctx.state.idempotency`. */
export function protect(options?: WebPolicyOptions): Middleware<{ idempotency: WebIdempotency }> {
  const rest = once(async (request: Request, ctx: Context, next: Next) => {
    ctx.state.idempotency = idempotencyOf(request)
    try {
      await next()
    } catch (error) {
      if (saysNothingHappened(error)) ctx.state.idempotency.forget()
      answerTo(error, ctx)
    }
    return responseOf(ctx)
  }, options)
  return async (ctx, next) => give(ctx, await rest(requestOf(ctx), ctx, next))
}

/** The request as the library reads it: its body is what a parser has read before. */
function requestOf(ctx: Context): Request {
  const headers = new Headers()
  const { rawHeaders } = ctx.req
  for (let at = 0; at + 1 < rawHeaders.length; at += 2)
    headers.append(rawHeaders[at] as string, rawHeaders[at + 1] as string)
  const { rawBody } = ctx.request as { readonly rawBody?: string }
  const hasBody = Number(ctx.get('content-length')) > 0 || ctx.get('transfer-encoding') !== ''
  const body = hasBody ? (rawBody ?? unreadable()) : undefined
  return new Request(ctx.href, {
    method: ctx.method,
    headers,
    ...(body !== undefined && { body, duplex: 'half' }),
  })
}

/** No parser has kept this body. Whoever compares it must fail, or all such bodies would be alike. */
function unreadable(): ReadableStream<Uint8Array> {
  return new ReadableStream({
    pull: (controller) => controller.error(new Error('Let a body parser that keeps rawBody come first')),
  })
}

/** As Koa answers what `ctx.throw` throws, and reports it. A status of any other error may be another service's. */
function answerTo(error: unknown, ctx: Context): void {
  ctx.app.emit('error', error, ctx)
  const { expose, status, message } = error as { expose?: boolean; status?: number; message?: string }
  ctx.status = saysNothingHappened(error) ? 503 : expose !== undefined && status !== undefined ? status : 500
  ctx.type = 'text'
  ctx.body = expose === true ? message : STATUS_CODES[ctx.status]
}

function responseOf(ctx: Context): Response {
  const headers = new Headers()
  for (const [name, value] of Object.entries(ctx.response.headers))
    for (const one of [value].flat()) if (one !== undefined) headers.append(name, String(one))
  return new Response(bodyOf(ctx.body), { status: ctx.status, headers })
}

function bodyOf(body: unknown): ReadableStream | Blob | Uint8Array | string | null {
  // Then Koa writes the name of the status, this time and every time.
  if (body === null || body === undefined) return null
  if (typeof body === 'string' || body instanceof Uint8Array || body instanceof Blob) return body
  if (body instanceof Readable) return Readable.toWeb(body) as ReadableStream
  if (body instanceof ReadableStream) return body
  return body instanceof Response ? body.body : JSON.stringify(body)
}

/** What other middleware has set before stays, where the answer says nothing of it. */
function give(ctx: Context, response: Response): void {
  ctx.status = response.status
  if (response.body !== null) ctx.body = Readable.fromWeb(response.body as NodeReadableStream)
  if (!response.headers.has('content-type')) ctx.remove('content-type')
  for (const [name, value] of response.headers) if (name !== 'set-cookie') ctx.set(name, value)
  const cookies = response.headers.getSetCookie()
  if (cookies.length > 0) ctx.set('set-cookie', cookies)
}
