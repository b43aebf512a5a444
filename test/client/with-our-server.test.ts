import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import { describe, expect, it, onTestFinished } from 'vitest'
import idempotency, { type FastifyIdempotencyOptions } from '../../src/adapters/fastify.js'
import { createFetch, deriveFrom } from '../../src/client/create-fetch.js'
import { memoryStore } from '../../src/stores/memory.js'
import { aWire, failureOf, QUICK } from '../support/client-fixtures.js'
import { gate } from '../support/gate.js'
import type { Fate } from '../support/unreliable-wire.js'

const INIT = { method: 'POST', body: '{"amount":5}', headers: { 'content-type': 'application/json' } }

/** A bank whose payments really cost something, and what it answered. */
interface Bank {
  readonly app: FastifyInstance
  readonly url: string
  readonly port: number
  readonly payments: string[]
  readonly answers: string[]
}

async function aBank(
  pay: (bank: Bank, request: FastifyRequest) => unknown = () => {},
  options: Partial<FastifyIdempotencyOptions> = {},
): Promise<Bank> {
  const app = Fastify({ forceCloseConnections: true })
  await app.register(idempotency, { store: memoryStore(), scope: 'shared', ...options })
  const bank = { app, url: '', port: 0, payments: [] as string[], answers: [] as string[] }
  app.addHook('onResponse', async (_request, reply) => {
    bank.answers.push(
      `${reply.statusCode}${reply.getHeader('idempotent-replayed') === 'true' ? ' replayed' : ''}`,
    )
  })
  app.post('/payments', { config: { idempotency: { required: true } } }, async (request, reply) => {
    bank.payments.push(request.idempotency.key ?? '')
    await pay(bank, request)
    return reply.code(201).send({ number: bank.payments.length })
  })
  bank.url = `${await app.listen({ port: 0, host: '127.0.0.1' })}/payments`
  bank.port = Number(new URL(bank.url).port)
  onTestFinished(() => app.close())
  return bank
}

describe('createFetch with our server', () => {
  it.each<Fate>(['lose-answer', 'cut-answer', 'reset'])(
    'pays once, and is told so, after: %s',
    async (fate) => {
      const bank = await aBank()
      const url = `${await aWire(bank, fate, fate)}/payments`
      const response = await createFetch(QUICK)(url, INIT)
      expect([response.status, await response.json()]).toEqual([201, { number: 1 }])
      expect(response.headers.get('idempotent-replayed')).toBe(fate === 'reset' ? null : 'true')
      expect(bank.payments).toHaveLength(1)
    },
  )

  it('pays once, and is told so, where the first attempt is given up while it runs', async () => {
    const done = gate()
    const bank = await aBank(() => done.opened)
    const fetch = createFetch({
      ...QUICK,
      timeout: '1s',
      // The first one ends once another was told that it is running.
      onAttempt: ({ response }) => {
        if (response?.status === 409) done.open()
      },
    })
    const response = await fetch(bank.url, INIT)
    expect([response.status, await response.json()]).toEqual([201, { number: 1 }])
    expect(response.headers.get('idempotent-replayed')).toBe('true')
    expect(bank.payments).toHaveLength(1)
    expect(bank.answers).toContain('409')
  })

  it('pays once for two clicks at once', async () => {
    const second = gate()
    const bank = await aBank(() => second.opened)
    const fetch = createFetch({
      ...QUICK,
      storage: new Map(),
      onAttempt: ({ response }) => {
        if (response?.status === 409) second.open()
      },
    })
    const click = async () => {
      const response = await fetch(bank.url, { ...INIT, idempotency: { operation: 'checkout-42' } })
      return response.json()
    }
    expect(await Promise.all([click(), click()])).toEqual([{ number: 1 }, { number: 1 }])
    expect(bank.payments).toHaveLength(1)
  })

  it('pays once over a reload whose first answer was lost', async () => {
    const bank = await aBank()
    const storage = new Map<string, string>()
    const pay = (url: string, retries: number) =>
      createFetch({ ...QUICK, storage, retries })(url, { ...INIT, idempotency: { operation: 'checkout-42' } })
    await failureOf(pay(`${await aWire(bank, 'lose-answer')}/payments`, 0))
    const response = await pay(bank.url, 5)
    expect([response.status, await response.json()]).toEqual([201, { number: 1 }])
    expect(bank.payments).toHaveLength(1)
  })

  it('gives a 500 of the handler, which is kept, after one look whether it is', async () => {
    const bank = await aBank(() => {
      throw new Error('out of ink')
    })
    const response = await createFetch(QUICK)(bank.url, INIT)
    expect([response.status, response.headers.get('idempotent-replayed')]).toEqual([500, 'true'])
    expect(bank.answers).toEqual(['500', '500 replayed'])
    expect(bank.payments).toHaveLength(1)
  })

  it('pays in the end where the handler had said that nothing was done', async () => {
    const bank = await aBank(({ payments }) => {
      if (payments.length < 3) throw Object.assign(new Error('not now'), { statusCode: 503 })
    })
    const response = await createFetch(QUICK)(bank.url, INIT)
    expect(response.status).toBe(201)
    expect(bank.answers).toEqual(['503', '503', '201'])
    expect(new Set(bank.payments).size).toBe(1)
  })

  it('throws where the key stands for another request', async () => {
    const bank = await aBank()
    const fetch = createFetch(QUICK)
    await fetch(bank.url, { ...INIT, idempotency: { key: 'k1' } })
    const error = await failureOf(
      fetch(bank.url, { ...INIT, body: '{"amount":6}', idempotency: { key: 'k1' } }),
    )
    expect(error).toMatchObject({ name: 'CallKeyReusedError', attempts: 1 })
    expect(bank.payments).toHaveLength(1)
  })

  it('throws where nobody knows how the operation ended', async () => {
    const store = memoryStore()
    const never = gate()
    const dying = await aBank(() => never.opened, { store, lease: '100ms', maxRun: '100ms' })
    const living = await aBank(undefined, { store })
    const init = { ...INIT, idempotency: { key: 'k1' } }
    await failureOf(createFetch({ retries: 0, timeout: '2s' })(dying.url, init))
    const error = await failureOf(createFetch(QUICK)(living.url, init))
    expect(error).toMatchObject({ name: 'CallOutcomeUnknownError', key: 'k1', response: { status: 409 } })
    expect([dying.payments, living.payments]).toEqual([['k1'], []])
    never.open()
  })

  it('throws where the answer is gone, with the status that it had', async () => {
    const bank = await aBank(undefined, { maxBodyBytes: 1 })
    const url = `${await aWire(bank, 'lose-answer')}/payments`
    const error = await failureOf(createFetch(QUICK)(url, INIT))
    expect(error).toMatchObject({
      name: 'CallAnswerNotKeptError',
      attempts: 2,
      problem: { originalStatus: 201 },
    })
    expect(bank.payments).toHaveLength(1)
  })

  it('gives what the application refuses', async () => {
    const bank = await aBank(() => {
      throw Object.assign(new Error('no money'), { statusCode: 402 })
    })
    expect((await createFetch(QUICK)(bank.url, INIT)).status).toBe(402)
    expect(bank.answers).toEqual(['402'])
  })

  it('is understood with its key in quotes', async () => {
    const bank = await aBank()
    const fetch = createFetch({ quoteKey: true })
    await fetch(bank.url, { ...INIT, idempotency: { key: 'k1' } })
    await fetch(bank.url, { ...INIT, idempotency: { key: 'a "b" \\ c' } })
    expect(bank.payments).toEqual(['k1', 'a "b" \\ c'])
  })

  it('asks a service behind a service once, whatever happens in between', async () => {
    const bank = await aBank()
    const fetch = createFetch(QUICK)
    const wire = `${await aWire(bank, 'lose-answer')}/payments`
    const shop = await aBank(
      async ({ payments }, request) => {
        const answer = await fetch(wire, { ...INIT, idempotency: deriveFrom(request.idempotency, 'payment') })
        expect(answer.status).toBe(201)
        // The first run stops here and says so: everything that it did goes by derived keys.
        if (payments.length < 2) request.idempotency.forget()
        if (payments.length < 2) throw Object.assign(new Error('stopped'), { statusCode: 500 })
      },
      { secret: 'a secret that is long enough' },
    )
    const url = `${await aWire(shop, 'lose-answer', 'lose-answer')}/payments`
    expect((await fetch(url, { ...INIT, idempotency: { key: 'order-42' } })).status).toBe(201)
    expect(shop.payments).toEqual(['order-42', 'order-42'])
    expect(bank.payments).toEqual([expect.stringMatching(/^[\w-]{43}$/)])
  })

  it('asks a service behind a service with one key for a request that has none', async () => {
    const bank = await aBank()
    const fetch = createFetch(QUICK)
    const app = Fastify({ forceCloseConnections: true })
    await app.register(idempotency, { scope: 'shared' })
    app.post('/orders', async (request) => {
      const pay = () => fetch(bank.url, { ...INIT, idempotency: deriveFrom(request.idempotency, 'payment') })
      return [(await pay()).status, (await pay()).headers.get('idempotent-replayed')]
    })
    onTestFinished(() => app.close())
    expect((await app.inject({ method: 'POST', url: '/orders' })).json()).toEqual([201, 'true'])
    expect((await app.inject({ method: 'POST', url: '/orders' })).json()).toEqual([201, 'true'])
    expect(bank.payments).toHaveLength(2)
  })
  it('makes a service answer 502, and keep it, where a service behind it does not answer', async () => {
    const shop = await aBank(async () => {
      const url = 'http://127.0.0.1:9/nobody-is-there'
      await createFetch({ ...QUICK, retries: 1 })(url, { ...INIT, idempotency: { key: 'k2' } })
    })
    const response = await createFetch(QUICK)(shop.url, INIT)
    expect([response.status, response.headers.get('idempotent-replayed')]).toEqual([502, 'true'])
    expect(shop.payments).toHaveLength(1)
  })
})
