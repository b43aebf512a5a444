import { randomInt } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import type { Redis } from 'ioredis'

/** Sends text messages, and knows a repeated one by its key. */
export interface TextMessages {
  send(phone: string, text: string, options: { readonly idempotencyKey: string }): Promise<void>
}

const VALID_SECONDS = 300

/** KEYS[1] the code of an operation, KEYS[2] that of a phone. ARGV[1] a new code, ARGV[2] seconds. Returns the operation's code. */
const VALID_FROM_THE_FIRST_RUN = `
local known = redis.call('get', KEYS[1])
if known then return known end
redis.call('set', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('set', KEYS[2], ARGV[1], 'EX', ARGV[2])
return ARGV[1]
`

/** `POST /codes` sends one code for a key, however often it is asked. `POST /codes/check` spends a code once. */
export function addCodes(app: FastifyInstance, redis: Redis, messages: TextMessages): void {
  app.post<{ Body: { readonly phone: string } }>(
    '/codes',
    // As long as the code is valid: after that the same key asks for a new one.
    { config: { idempotency: { required: true, ttl: '5m', onUnknown: 'rerun', whenBusy: { wait: '5s' } } } },
    async (request, reply) => {
      const { phone } = request.body
      const fresh = String(randomInt(1_000_000)).padStart(6, '0')
      // A run that died may have sent its code: this one sends the same, no second message, and does not make a code
      // good again that was spent meanwhile.
      const operation = `code-of:${request.idempotency.deriveKey('code')}`
      const code = await redis.eval(
        VALID_FROM_THE_FIRST_RUN,
        2,
        operation,
        `code:${phone}`,
        fresh,
        VALID_SECONDS,
      )
      const idempotencyKey = request.idempotency.deriveKey('message')
      await messages.send(phone, `Your code is ${code}`, { idempotencyKey })
      // What is answered is kept for retries: never the code.
      return reply.code(202).send({ validSeconds: VALID_SECONDS })
    },
  )

  app.post<{ Body: { readonly phone: string; readonly code: string } }>(
    '/codes/check',
    // A check is not repeated from memory: the second one must fail.
    { config: { idempotency: false } },
    async (request, reply) => {
      const { phone, code } = request.body
      const spent = await redis.eval(
        "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0",
        1,
        `code:${phone}`,
        code,
      )
      return reply.code(spent === 1 ? 204 : 403).send()
    },
  )
}
