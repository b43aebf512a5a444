import type { FastifyInstance } from 'fastify'
import type { Redis } from 'ioredis'
import { NothingHappenedError } from 'oncekey'

/** An answer as the code of before keeps it, under `idem:KEY`. While it runs, it keeps the word `running` there. */
interface OldAnswer {
  readonly status: number
  readonly body: unknown
}

const OLD_TTL_SECONDS = 86_400

/** `POST /payments` while processes of the old version still serve, and until their last key has expired. */
export function addPayments(
  app: FastifyInstance,
  redis: Redis,
  pay: (body: unknown) => Promise<OldAnswer>,
): void {
  app.post('/payments', { config: { idempotency: { required: true } } }, async (request, reply) => {
    const { key } = request.idempotency
    const old = `idem:${key}`
    // Whoever sets it first runs, an old process or a new one.
    if ((await redis.set(old, 'running', 'EX', OLD_TTL_SECONDS, 'NX')) === null) {
      const kept = await redis.get(old)
      // 503, and the key is free: a later retry looks again.
      if (kept === null || kept === 'running') throw new NothingHappenedError('an old process is at it')
      // What it answered becomes our own answer, and is replayed from now on.
      const { status, body } = JSON.parse(kept) as OldAnswer
      return reply.code(status).send(body)
    }
    const answer = await pay(request.body)
    // For retries that come to an old process.
    await redis.set(old, JSON.stringify(answer), 'EX', OLD_TTL_SECONDS)
    return reply.code(answer.status).send(answer.body)
  })
}
