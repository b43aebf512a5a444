import { idempotency, idempotencyOf } from 'oncekey/web'
import { store } from './store.js'

const once = idempotency({
  store,
  scope: (request) => request.headers.get('x-account') ?? '', // who the caller is, once you have authenticated it
  route: '/accounts/[id]/payments',
})

interface Context {
  readonly params: Promise<{ readonly id: string }>
}

export const POST = once(
  async (request: Request, { params }: Context) => {
    const { amount } = (await request.json()) as { amount: number }
    const { id } = await params
    return Response.json({ from: id, amount, attempt: idempotencyOf(request).fence }, { status: 201 })
  },
  { required: true, ttl: '7d' },
)
