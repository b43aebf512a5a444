import { afterAll, beforeAll, expect, it } from 'vitest'
import { createInbox, type Inbox } from '../../src/messages/inbox.js'
import {
  hasTerminals,
  type ProgramRun,
  runOncekeyIn,
  typeAtTerminal,
  typeInShell,
} from '../support/oncekey-program.js'
import { type OperatedStore, operatedStore } from '../support/operated-store.js'
import { describeWith } from '../support/services.js'

for (const kind of ['redis', 'postgres'] as const)
  describeWith([kind], `what an operator does about dead messages in ${kind}`, () => {
    let operated: OperatedStore
    let inbox: Pick<Inbox, 'giveUp' | 'processOnce' | 'close'>
    beforeAll(async () => {
      operated = await operatedStore(kind)
      inbox = createInbox({ store: operated.store, consumer: 'ledger', sweep: false })
    })
    afterAll(async () => {
      await inbox.close()
      await operated.close()
    })

    const run = (...args: readonly string[]): Promise<ProgramRun> =>
      runOncekeyIn(operated.environment, ...args, operated.flag)
    const die = (key: string) => inbox.giveUp({ source: 'payments', key }, new Error('no such account'))

    it('lists them, and names the command that redrives one', async () => {
      expect(await run('messages', '--consumer=nobody')).toMatchObject({ code: 1, out: '' })
      await die('evt-1')
      const { code, out, err } = await run('messages', '--consumer=ledger')
      expect(out).toMatch(
        /^DIED +AGE +ATTEMPTS +SOURCE +KEY +ERROR\n\S+Z .* payments +evt-1 +.*no such account/,
      )
      expect(code).toBe(0)
      const redriving = /npx oncekey redrive .+/.exec(err)?.[0] ?? ''
      const redriven = await typeInShell(operated.environment, `${redriving} --yes --by=ada`)
      expect(redriven.out).toBe('Redriven: "evt-1" of "payments" is processed when it is delivered again.\n')
      const line = redriven.err.split('\n').find((one) => one.startsWith('{'))
      expect(JSON.parse(line ?? '')).toMatchObject({
        ...{ event: 'message-redriven', by: 'ada', consumer: 'ledger', topic: 'payments' },
      })
      expect(await inbox.processOnce({ source: 'payments', key: 'evt-1' }, () => {})).toBe('processed')
    })

    it('tells programs a line for each', async () => {
      await die('evt-2')
      const { out } = await run('messages', '--consumer=ledger', '--source=payments', '--json')
      expect(JSON.parse(out)).toMatchObject({
        ...{ format: 1, source: 'payments', key: 'evt-2', died: expect.stringMatching(/Z$/) },
        error: expect.stringContaining('no such account'),
      })
    })

    it('redrives only what is dead, and only when somebody says yes', async () => {
      await die('evt-3')
      const args = ['redrive', '--consumer=ledger', '--source=payments']
      expect(await run(...args, '--key=evt-9', '--yes')).toMatchObject({ code: 1, out: '' })
      expect(await run(...args, '--key=evt-3')).toMatchObject({ code: 2, out: '' })
      expect(await run(...args, '--key=evt-3', '--yes', '--audit-log=/dev/full')).toMatchObject({
        code: 2,
        out: '',
      })
      if (hasTerminals) {
        const typed = `npx oncekey ${args.join(' ')} --key=evt-3 ${operated.flag}`
        expect(await typeAtTerminal(operated.environment, typed, 'n\n')).toMatchObject({ code: 1 })
      }
      expect(await inbox.processOnce({ source: 'payments', key: 'evt-3' }, () => {})).toBe('dead')
    })

    if (kind === 'redis')
      it.each([
        ['messages without a consumer', ['messages'], 'name the consumer'],
        ['redrive without a consumer', ['redrive', '--key=a'], 'name the consumer'],
        ['redrive without a key', ['redrive', '--consumer=a'], 'name the message'],
      ])('ends with 2 for %s', async (_, args, message) => {
        const { code, out, err } = await run(...args)
        expect(err).toContain(message)
        expect({ code, out }).toEqual({ code: 2, out: '' })
      })
  })
