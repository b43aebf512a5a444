import formbody from '@fastify/formbody'
import Fastify from 'fastify'
import idempotency from '../../src/adapters/fastify.js'
import { memoryStore } from '../../src/stores/memory.js'

/** A server that takes payments from whatever client, in JSON or as a form. */
export interface PaymentsApi {
  readonly port: number
  /** What came: the key of each request, and what else may differ between two attempts of one call. */
  readonly requests: readonly ApiRequest[]
  /** The keys of all payments. One that was made twice is there twice. */
  readonly payments: readonly string[]
  close(): Promise<void>
}

/** A request, in the parts that matter here. */
export interface ApiRequest {
  readonly key: string
  readonly contentType: string
  readonly telemetry: string | undefined
}

/** How the server is set up. */
export interface PaymentsApiOptions {
  /** `false` for a server that ignores keys. */
  readonly isProtected?: boolean
  /** Runs once a payment has been made, before it is answered. What it throws is answered instead. */
  readonly afterPayment?: () => unknown
  /** Is told of each answer before it is sent. */
  readonly onAnswer?: (status: number) => void
}

/** Where a payment is made. */
export const PAYMENTS_PATH = '/v1/payment_intents'

/** Starts the server on Fastify. Other frameworks may stand beside it, under the same tests. */
export async function startFastifyPayments({
  isProtected = true,
  afterPayment = () => {},
  onAnswer = () => {},
}: PaymentsApiOptions = {}): Promise<PaymentsApi> {
  const requests: ApiRequest[] = []
  const payments: string[] = []
  const app = Fastify({ forceCloseConnections: true })
  await app.register(formbody)
  app.addHook('onRequest', async ({ headers }) => {
    requests.push({
      key: String(headers['idempotency-key']),
      contentType: String(headers['content-type']),
      telemetry: headers['x-stripe-client-telemetry'] as string | undefined,
    })
  })
  app.addHook('onSend', async (_request, reply) => {
    // Stripe's client sends measurements along, as soon as a request has had an id.
    reply.header('request-id', `req_${requests.length}`)
    onAnswer(reply.statusCode)
  })
  await app.register(idempotency, {
    store: memoryStore(),
    scope: (request) => String(request.headers.authorization),
  })
  app.post<{ Body: { amount: number | string } }>(
    PAYMENTS_PATH,
    { config: { idempotency: isProtected && { required: true } } },
    async (request, reply) => {
      payments.push(String(request.headers['idempotency-key']))
      const id = `pi_${payments.length}`
      await afterPayment()
      return reply.code(201).send({ id, object: 'payment_intent', amount: Number(request.body.amount) })
    },
  )
  const address = await app.listen({ port: 0, host: '127.0.0.1' })
  return { port: Number(new URL(address).port), requests, payments, close: () => app.close() }
}
