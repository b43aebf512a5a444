import { type Context, Hono, type MiddlewareHandler, type Next } from 'hono'
import { routePath } from 'hono/route'
import { memoryStore, saysNothingHappened } from 'oncekey'
import { idempotency, idempotencyOf, type WebPolicyOptions } from 'oncekey/web'

const once = idempotency({
  store: memoryStore(), // one of a server, as soon as there are two processes
  scope: (_request, c: Context) => c.get('account'),
  route: (_request, c: Context) => routePath(c, -1),
})

/** Protects the handlers that come after it in a route. */
function protect(options?: WebPolicyOptions): MiddlewareHandler {
  const rest = once(async (request: Request, c: Context, next: Next) => {
    await next()
    // Hono has caught what the handler threw, and `onError` has answered.
    if (saysNothingHappened(c.error)) idempotencyOf(request).forget()
    return c.res
  }, options)

  return async (c, next) => {
    // Asked for once, so that Hono adds what earlier middleware has set to every answer, replays too.
    void c.res
    const response = await rest(c.req.raw, c, next)
    c.res = response
    for (const [name, value] of response.headers) if (name !== 'set-cookie') c.res.headers.set(name, value)
  }
}

export const app = new Hono<{ Variables: { account: string } }>()

app.use(async (c, next) => {
  c.set('account', c.req.header('x-account') ?? 'nobody') // who the caller is, once you have authenticated it
  await next()
})

let payments = 0
app.post('/payments', protect({ required: true, ttl: '7d' }), async (c) => {
  const { amount } = await c.req.json<{ amount: number }>()
  return c.json({ id: `p-${++payments}`, amount, fence: idempotencyOf(c.req.raw).fence }, 201)
})
