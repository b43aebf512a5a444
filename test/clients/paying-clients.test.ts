import { readFileSync } from 'node:fs'
import Fastify from 'fastify'
import { describe, expect, it, onTestFinished } from 'vitest'
import { prepareForStripe } from '../../examples/clients/stripe-server.js'
import { startFaultProxy } from '../../src/testing/fault-proxy.js'
import { gate } from '../support/gate.js'
import { aStripe, curl, type PayingClient, packagedClients, runCurl } from '../support/paying-clients.js'
import {
  PAYMENTS_PATH,
  type PaymentsApi,
  type PaymentsApiOptions,
  startFastifyPayments,
} from '../support/payments-api.js'
import { describeWith } from '../support/services.js'

/** The frameworks that the clients meet. */
const servers = [{ framework: 'Fastify', start: startFastifyPayments }]

type StartServer = (options?: PaymentsApiOptions) => Promise<PaymentsApi>

/** A server behind a network that loses the answer to the first payment that goes through it. */
async function aLossyServer(
  start: StartServer,
  options?: PaymentsApiOptions,
): Promise<PaymentsApi & { answersLost(): number }> {
  const server = await start(options)
  const proxy = await startFaultProxy({ target: { host: '127.0.0.1', port: server.port } })
  const loss = proxy.arm({ kind: 'drop-answer', match: 'POST /' })
  onTestFinished(async () => {
    await proxy.stop()
    await server.close()
  })
  return { ...server, port: proxy.port, answersLost: () => loss.timesFired }
}

/** A server on a network that loses nothing. */
async function aServer(start: StartServer, options?: PaymentsApiOptions): Promise<PaymentsApi> {
  const server = await start(options)
  onTestFinished(server.close)
  return server
}

function keysOf({ requests }: PaymentsApi): readonly string[] {
  return [...new Set(requests.map(({ key }) => key))]
}

function paysOnce(start: StartServer, client: PayingClient): void {
  it('pays once, and is told so, where the first answer is lost', async () => {
    const server = await aLossyServer(start)
    expect(await client.pay(server.port)).toEqual({ status: 201, isReplay: true, id: 'pi_1' })
    expect([server.answersLost(), server.requests.length]).toEqual([1, 2])
    expect(keysOf(server)).toEqual([expect.stringMatching(/^[\w-]{36,}$/)])
    expect(server.payments).toEqual(keysOf(server))
  })

  it('pays once where it gives up waiting, and asks again while the first request runs', async () => {
    const { opened, open } = gate()
    const server = await aServer(start, {
      afterPayment: () => opened,
      // The payment ends once another request was told that it is running.
      onAnswer: (status) => {
        if (status === 409) open()
      },
    })
    expect(await client.pay(server.port, 2000)).toEqual({ status: 201, isReplay: true, id: 'pi_1' })
    expect(keysOf(server)).toHaveLength(1)
    expect(server.payments).toHaveLength(1)
  })

  it('pays once, and is told of the failure, where the server fails after its payment', async () => {
    const server = await aServer(start, {
      afterPayment() {
        throw new Error('out of ink')
      },
    })
    expect(await client.pay(server.port)).toEqual({ status: 500, isReplay: true, id: undefined })
    expect(server.requests.length).toBeGreaterThan(1)
    expect(server.payments).toHaveLength(1)
  })

  it('pays twice where the server ignores its key', async () => {
    const server = await aLossyServer(start, { isProtected: false })
    expect(await client.pay(server.port)).toEqual({ status: 201, isReplay: false, id: 'pi_2' })
    expect(server.payments).toHaveLength(2)
  })
}

describe.each(servers)('a server on $framework', ({ start }) => {
  describe.each(packagedClients)('with $name', (client) => paysOnce(start, client))

  describeWith(['curl'], 'with curl', () => {
    paysOnce(start, curl)

    it('is not asked again by --retry alone where the connection broke', async () => {
      const server = await aLossyServer(start)
      expect(await runCurl(server.port, undefined, ['--retry', '5'])).toEqual({
        status: 0,
        isReplay: false,
        id: undefined,
      })
      expect(server.requests).toHaveLength(1)
    })
  })

  describe('with stripe', () => {
    const intent = { amount: 500, currency: 'eur' }

    it('knows a retry by its form, whatever headers come with it', async () => {
      const server = await aLossyServer(start)
      const stripe = aStripe(server.port)
      const [first, second] = [
        await stripe.paymentIntents.create(intent),
        await stripe.paymentIntents.create(intent),
      ]
      expect([first.id, second.id]).toEqual(['pi_1', 'pi_2'])
      expect(server.requests.map(({ contentType }) => contentType)).toEqual(
        Array(3).fill('application/x-www-form-urlencoded'),
      )
      // The measurements of the first call are a header of the second one.
      expect(server.requests.map(({ telemetry }) => telemetry !== undefined)).toEqual([false, false, true])
      expect(keysOf(server)).toEqual([
        expect.stringMatching(/^stripe-node-retry-/),
        expect.stringMatching(/^stripe-node-retry-/),
      ])
    })

    it('has a refusal taken for a payment where it names no error', async () => {
      const server = await aServer(start)
      const stripe = aStripe(server.port)
      await stripe.paymentIntents.create(intent, { idempotencyKey: 'k1' })
      const misread = await stripe.paymentIntents.create({ ...intent, amount: 600 }, { idempotencyKey: 'k1' })
      expect(misread).toMatchObject({ status: 422, code: 'IDEMPOTENCY_KEY_REUSED' })
      expect(server.payments).toEqual(['k1'])
    })
  })
})

describe('examples/clients/stripe-server', () => {
  it('has its refusals thrown by stripe, and its answers replayed', async () => {
    const app = Fastify({ forceCloseConnections: true })
    await prepareForStripe(app)
    let payments = 0
    app.post<{ Body: { amount: string } }>(PAYMENTS_PATH, async ({ body }) => ({
      id: `pi_${++payments}`,
      amount: Number(body.amount),
    }))
    const address = await app.listen({ port: 0, host: '127.0.0.1' })
    onTestFinished(() => app.close())
    const stripe = aStripe(Number(new URL(address).port))
    const pay = (amount: number) =>
      stripe.paymentIntents.create({ amount, currency: 'eur' }, { idempotencyKey: 'k1' })
    expect(await pay(500)).toMatchObject({ id: 'pi_1', amount: 500 })
    expect(await pay(500)).toMatchObject({ id: 'pi_1', amount: 500 })
    await expect(pay(600)).rejects.toMatchObject({
      type: 'StripeIdempotencyError',
      code: 'IDEMPOTENCY_KEY_REUSED',
      statusCode: 400,
    })
    expect(payments).toBe(1)
  })

  it('is what docs/other-clients.md shows', () => {
    const [page, file] = ['docs/other-clients.md', 'examples/clients/stripe-server.ts'].map((name) =>
      readFileSync(new URL(`../../${name}`, import.meta.url), 'utf8'),
    )
    const [, block] = page?.match(/```ts\n(.*?)```/s) ?? []
    expect(file).toBe(block)
  })
})
