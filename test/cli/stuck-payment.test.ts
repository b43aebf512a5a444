import { randomUUID } from 'node:crypto'
import { Client } from 'pg'
import { afterEach, expect, inject, it } from 'vitest'
import { hasTerminals, runOncekeyIn, typeAtTerminal, typeInShell } from '../support/oncekey-program.js'
import { aLedger, type PaymentServer, startPaymentServer } from '../support/payment-server.js'
import { startRedisServer } from '../support/redis-server.js'
import { describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')

/** What is to be undone after a test, the last first. */
const undo: (() => Promise<void> | void)[] = []
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step()
})

/** A server that nobody else uses: an operator finds what is stuck there, and no other test's. */
async function ownRedis(): Promise<string> {
  const server = await startRedisServer()
  undo.push(() => server.stop())
  return `redis://127.0.0.1:${server.port}`
}

async function ownDatabase(): Promise<string> {
  const name = `stuck_${randomUUID().replaceAll('-', '')}`
  const admin = async (statement: string): Promise<void> => {
    const client = new Client({ connectionString: postgresUrl })
    await client.connect()
    await client.query(statement)
    await client.end()
  }
  await admin(`create database ${name}`)
  undo.push(() => admin(`drop database ${name} with (force)`))
  const url = new URL(postgresUrl)
  url.pathname = `/${name}`
  return url.href
}

/** The command that a text tells to go on with. */
function toldIn(text: string, command: RegExp): string {
  return command.exec(text)?.[0] ?? expect.fail(`nothing like ${command} in:\n${text}`)
}

for (const store of ['redis', 'postgres'] as const)
  describeWith(
    [store],
    `an operator who knows only "npx oncekey --help", with a payment stuck in ${store}`,
    () => {
      it.runIf(hasTerminals)(
        'finds it, settles it, and the retry of its client gets that answer: the money has moved once',
        { timeout: 90_000 },
        async () => {
          const url = store === 'redis' ? await ownRedis() : await ownDatabase()
          const environment = { ONCEKEY_STORE: url }
          if (store === 'postgres') expect((await runOncekeyIn(environment, 'migrate', '--yes')).code).toBe(0)

          // A payment has moved its money, and its process is gone before it could say so.
          const ledger = aLedger()
          undo.push(ledger.remove)
          const serve = async (): Promise<PaymentServer> => {
            const server = await startPaymentServer({
              store,
              url,
              ledger: ledger.file,
              plugin: { lease: '500ms' },
            })
            undo.push(server.kill)
            return server
          }
          const key = randomUUID()
          const dying = await serve()
          const lost = dying.pay(key, { 'x-hold': '1' }).catch((error: unknown) => error)
          await expect.poll(() => ledger.effectsOf(key), { timeout: 10_000 }).toEqual(['1'])
          await dying.kill()
          expect(await lost).toBeInstanceOf(Error)
          const living = await serve()
          await expect
            .poll(async () => (await living.pay(key)).body.code, { timeout: 10_000 })
            .toBe('IDEMPOTENCY_OUTCOME_UNKNOWN')

          // From here on, every command is one that the output before it names.
          const help = await typeInShell(environment, 'npx oncekey --help')
          const finding = toldIn(help.out, /oncekey list --status=unknown/)
          const found = await typeInShell(environment, `npx ${finding}`)
          expect(found.out).toContain(key)
          const shown = await typeInShell(environment, toldIn(found.err, /npx oncekey show .+/))
          expect(shown.out).toMatch(new RegExp(`^key +${key}$`, 'm'))
          expect(shown.out).toMatch(/^state +unknown:/m)

          // It looks into its books, and finds the payment there.
          expect(ledger.effectsOf(key)).toEqual(['1'])
          const settling = toldIn(shown.err, /npx oncekey settle .+--body.+/).replace(
            '...',
            `payment of ${key}`,
          )
          const settled = await typeAtTerminal(environment, settling, 'y\n')
          expect(settled.screen).toContain('Settled: retries of')
          expect(settled.code).toBe(0)

          const retried = await living.pay(key)
          expect(retried).toEqual({ status: 201, isReplay: true, body: { id: `payment of ${key}` } })
          expect(ledger.effectsOf(key)).toEqual(['1'])
        },
      )
    },
  )
