import { randomUUID } from 'node:crypto'
import { Pool } from 'pg'
import { afterEach, beforeAll, describe, expect, inject, it } from 'vitest'
import { postgresStore } from '../../src/stores/postgres.js'
import type { PaymentServerOptions } from '../programs/payment-server.js'
import { aLedger, type Ledger, type PaymentServer, startPaymentServer } from '../support/payment-server.js'
import { describeWith } from '../support/services.js'

const { redisUrl, postgresUrl } = inject('services')
const running: { kill(): Promise<void> }[] = []
const ledgers: Ledger[] = []
afterEach(async () => {
  await Promise.all(running.splice(0).map((server) => server.kill()))
  for (const ledger of ledgers.splice(0)) ledger.remove()
})

async function start(options: PaymentServerOptions): Promise<PaymentServer> {
  const server = await startPaymentServer(options)
  running.push(server)
  return server
}

function newLedger(): Ledger {
  const ledger = aLedger()
  ledgers.push(ledger)
  return ledger
}

for (const store of ['redis', 'postgres'] as const) {
  describeWith([store], `server processes on one ${store}`, () => {
    const url = store === 'redis' ? redisUrl : postgresUrl
    beforeAll(async () => {
      if (store === 'redis') return
      const pool = new Pool({ connectionString: url })
      await postgresStore(pool).migrate()
      await pool.end()
    })

    it('run 1,000 parallel requests with one key once, and answer all alike or 409', async () => {
      const ledger = newLedger()
      const servers = await Promise.all([1, 2].map(() => start({ store, url, ledger: ledger.file })))
      const key = randomUUID()
      const answers = await Promise.all(
        Array.from({ length: 1000 }, (_, index) => servers[index % 2]?.pay(key) ?? expect.fail()),
      )
      expect(ledger.effectsOf(key)).toEqual(['1'])
      const paid = answers.filter(({ status }) => status === 201)
      expect(paid.filter(({ isReplay }) => !isReplay)).toHaveLength(1)
      expect(new Set(paid.map(({ body }) => JSON.stringify(body))).size).toBe(1)
      const refused = answers.filter(({ status }) => status !== 201)
      for (const { status, body } of refused)
        expect([status, body.code]).toEqual([409, 'IDEMPOTENCY_KEY_IN_PROGRESS'])
      for (const server of servers)
        expect(await server.pay(key)).toMatchObject({ status: 201, isReplay: true, body: paid[0]?.body })
    })

    describe('when one is killed between the effect and the answer', () => {
      /** The key of a payment whose process died after the effect, and the ledger that saw it. */
      async function killed(): Promise<{ readonly key: string; readonly ledger: Ledger }> {
        const ledger = newLedger()
        const dying = await start({ store, url, ledger: ledger.file, plugin: { lease: '500ms' } })
        const key = randomUUID()
        const lost = dying.pay(key, { 'x-hold': '1' }).catch((error: unknown) => error)
        await expect.poll(() => ledger.effectsOf(key), { timeout: 10_000 }).toEqual(['1'])
        await dying.kill()
        expect(await lost).toBeInstanceOf(Error)
        return { key, ledger }
      }

      const lapses = { timeout: 10_000, interval: 50 }

      it('refuse the retry as unknown after the lease, and never run it again', async () => {
        const { key, ledger } = await killed()
        const living = await start({ store, url, ledger: ledger.file, plugin: { lease: '500ms' } })
        const codes = new Set<unknown>()
        await expect
          .poll(async () => {
            const { body } = await living.pay(key)
            codes.add(body.code)
            return body.code
          }, lapses)
          .toBe('IDEMPOTENCY_OUTCOME_UNKNOWN')
        for (let retry = 0; retry < 5; retry += 1)
          expect(await living.pay(key)).toMatchObject({
            status: 409,
            body: { code: 'IDEMPOTENCY_OUTCOME_UNKNOWN' },
          })
        for (const code of codes)
          expect(['IDEMPOTENCY_KEY_IN_PROGRESS', 'IDEMPOTENCY_OUTCOME_UNKNOWN']).toContain(code)
        expect(ledger.effectsOf(key)).toEqual(['1'])
      })

      it("take over once, with fence 2, where the route says 'rerun'", async () => {
        const { key, ledger } = await killed()
        const plugin = { lease: '500ms', onUnknown: 'rerun' } as const
        const servers = await Promise.all(
          [1, 2].map(() => start({ store, url, ledger: ledger.file, plugin })),
        )
        await expect
          .poll(async () => {
            const answers = await Promise.all(servers.map((server) => server.pay(key)))
            return answers.map(({ status }) => status)
          }, lapses)
          .toEqual([201, 201])
        expect(ledger.effectsOf(key)).toEqual(['1', '2'])
        expect(await servers[0]?.pay(key)).toMatchObject({ isReplay: true, body: { fence: 2 } })
      })

      it('answer what the application finds out, where it can', async () => {
        const { key, ledger } = await killed()
        const reconciled = { id: 'found at the provider' }
        const living = await start({ store, url, ledger: ledger.file, reconciled })
        await expect.poll(async () => (await living.pay(key)).body, lapses).toEqual(reconciled)
        expect(await living.pay(key)).toMatchObject({ status: 201, isReplay: true, body: reconciled })
        expect(ledger.effectsOf(key)).toEqual(['1'])
      })
    })
  })
}
