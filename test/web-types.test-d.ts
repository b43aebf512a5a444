import { expectTypeOf } from 'vitest'
import { idempotency, idempotencyOf, type WebIdempotency } from '../src/adapters/web.js'

interface NextRequest extends Request {
  readonly cookies: ReadonlyMap<string, string>
}
interface Context {
  readonly params: Promise<{ readonly id: string }>
}

const once = idempotency({ scope: (request) => request.headers.get('x-account') ?? '' })

const wrapped = once((_request: Request, _context: Context) => new Response())
expectTypeOf(wrapped).toEqualTypeOf<(request: Request, _context: Context) => Promise<Response>>()

// A framework's own request, and options that know it.
const next = once((_request: NextRequest) => new Response(), {
  route: (request) => request.cookies.get('route') ?? '*',
  onError: (error, request) => {
    expectTypeOf(error).toBeUnknown()
    expectTypeOf(request).toEqualTypeOf<NextRequest>()
    return undefined
  },
})
expectTypeOf(next).parameters.toEqualTypeOf<[request: NextRequest]>()

const ofNext = idempotency<NextRequest>({ scope: (request) => request.cookies.get('user') ?? '' })
expectTypeOf(ofNext).parameter(0).parameter(0).toEqualTypeOf<NextRequest>()

// @ts-expect-error a handler gives a Response
once(() => ({ status: 200 }))
// @ts-expect-error a scope is required
idempotency({})

expectTypeOf(idempotencyOf(new Request('http://x'))).toEqualTypeOf<WebIdempotency>()
expectTypeOf<WebIdempotency['transaction']>().returns.toEqualTypeOf<Promise<Response>>()
// @ts-expect-error what a transaction gives is a Response
idempotencyOf(new Request('http://x')).transaction(async () => 'text')
