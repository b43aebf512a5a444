import { execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import {
  closeSync,
  constants,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir, userInfo } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import type { StoredRecord } from '../../src/contract/store.js'
import { fingerprintOf } from '../../src/core/fingerprint.js'
import { answerOf } from '../../src/http/http-answer.js'
import { outcomeOfResponse } from '../../src/http/response-outcome.js'
import { createIdempotency } from '../../src/index.js'
import { redisStore } from '../../src/stores/redis.js'
import { sealedStore } from '../../src/stores/sealed.js'
import { HOUR } from '../../src/testing/store-fixtures.js'
import { startFaultProxy } from '../../src/testing/test-kit.js'
import {
  hasTerminals,
  ONCEKEY,
  type ProgramRun,
  runOncekeyIn,
  typeAtTerminal,
} from '../support/oncekey-program.js'
import {
  aCompleted,
  anUnknown,
  aRunning,
  type OperatedRecord,
  type OperatedStore,
  operatedStore,
} from '../support/operated-store.js'
import { startRedisServer } from '../support/redis-server.js'
import { describeWith } from '../support/services.js'

const PAID = ['--status=201', '--body={"id":"p-1"}']

for (const kind of ['redis', 'postgres'] as const)
  describeWith([kind], `what an operator ends in ${kind}`, () => {
    let operated: OperatedStore
    let folder: string
    beforeAll(async () => {
      operated = await operatedStore(kind)
      folder = mkdtempSync(join(tmpdir(), 'oncekey-endings-'))
    })
    afterAll(async () => {
      await operated.close()
      rmSync(folder, { recursive: true })
    })

    const run = (...args: readonly string[]): Promise<ProgramRun> =>
      runOncekeyIn(operated.environment, ...args, operated.flag)
    const stuck = (): Promise<OperatedRecord> => anUnknown(operated.store)
    const now = (id: string): Promise<StoredRecord | undefined> => operated.store.find(id)
    const answerNow = async (id: string) => {
      const record = await now(id)
      if (record?.status !== 'completed') return expect.fail(`it is ${record?.status}`)
      const { outcome, expiresInMs } = record
      const found = answerOf(outcome)
      if (!found.kept) return { status: found.status, body: null, headers: {}, expiresInMs }
      const { status, headers, body } = found.answer
      return { status, headers: Object.fromEntries(headers), body: String(body ?? ''), expiresInMs }
    }

    it('settles an unknown operation with the answer that it is given', async () => {
      const { id, key } = await stuck()
      const { code, out } = await run(
        'settle',
        key,
        '--scope=shared',
        ...PAID,
        '--header=Location: /p/1',
        '--yes',
      )
      expect(out).toBe(
        `Settled: retries of "${key}" of POST /payments are answered with 201, 12 bytes, for 1d.\n`,
      )
      expect(code).toBe(0)
      expect(await answerNow(id)).toMatchObject({
        status: 201,
        headers: { location: '/p/1', 'content-type': 'application/json; charset=utf-8' },
        body: '{"id":"p-1"}',
      })
    })

    it('keeps a settled answer for as long as it is told, and never shorter than the record would have lived', async () => {
      const first = await stuck()
      await run('settle', `--id=${first.id}`, ...PAID, '--ttl=7d', '--yes')
      expect((await answerNow(first.id)).expiresInMs).toBeGreaterThan(6.9 * 24 * HOUR)
      const longer = await anUnknown(operated.store, { ttlMs: 7 * 24 * HOUR })
      await run('settle', `--id=${longer.id}`, ...PAID, '--yes')
      expect((await answerNow(longer.id)).expiresInMs).toBeGreaterThan(6.9 * 24 * HOUR)
      const usual = await stuck()
      await run('settle', `--id=${usual.id}`, ...PAID, '--yes')
      const { expiresInMs } = await answerNow(usual.id)
      expect(expiresInMs).toBeGreaterThan(23.9 * HOUR)
      expect(expiresInMs).toBeLessThanOrEqual(24 * HOUR)
    })

    it('says how long it keeps a settled answer, also where that is longer than it was told', async () => {
      const { id } = await anUnknown(operated.store, { ttlMs: 7 * 24 * HOUR })
      const { out, err } = await run('settle', `--id=${id}`, ...PAID, '--ttl=1h', '--yes')
      expect(err).toMatch(/It is settled as done: .*, for 6d 23h\.\n/)
      expect(out).toMatch(/^Settled: .*, for 6d 23h\.\n$/)
      expect((await answerNow(id)).expiresInMs).toBeGreaterThan(6.9 * 24 * HOUR)
    })

    it('takes bodies of other kinds, byte for byte, and none', async () => {
      const bytes = randomBytes(300)
      const file = join(folder, 'receipt.pdf')
      writeFileSync(file, bytes)
      const pdf = await stuck()
      await run(
        ...[
          'settle',
          `--id=${pdf.id}`,
          '--status=200',
          `--body=@${file}`,
          '--header=Content-Type: application/pdf',
        ],
        '--yes',
      )
      const record = await now(pdf.id)
      expect(record?.status === 'completed' && Buffer.from(record.outcome.body ?? []).equals(bytes)).toBe(
        true,
      )
      const empty = await stuck()
      await run('settle', `--id=${empty.id}`, '--status=204', '--yes')
      expect(await answerNow(empty.id)).toMatchObject({ status: 204, body: '' })
    })

    it('takes headers that are called like what every object has', async () => {
      const { id } = await stuck()
      const headers = ['constructor: a', '__proto__: b', '__proto__: c', 'toString: d']
      const flags = headers.map((header) => `--header=${header}`)
      await run('settle', `--id=${id}`, ...PAID, ...flags, '--yes')
      const record = await now(id)
      const kept = record?.status === 'completed' ? answerOf(record.outcome) : undefined
      expect(kept?.kept && kept.answer.headers).toEqual([
        ['constructor', 'a'],
        ['__proto__', ['b', 'c']],
        ['tostring', 'd'],
        ['content-type', 'application/json; charset=utf-8'],
      ])
    })

    it('settles as a tombstone, which tells retries that the answer is not kept', async () => {
      const { id } = await stuck()
      const { code, out } = await run('settle', `--id=${id}`, '--tombstone', '--status=201', '--yes')
      expect(out).toContain('refused with 409')
      expect(await answerNow(id)).toMatchObject({ status: 201, body: null })
      expect(code).toBe(0)
    })

    it('settles a function with its value, which run() gives then', async () => {
      const fingerprint = fingerprintOf({ method: 'RUN', path: 'send-invoice', body: undefined })
      const { key } = await anUnknown(operated.store, { route: 'send-invoice', fingerprint })
      const { code } = await run('settle', key, '--scope=shared', '--value={"sent":5}', '--yes')
      expect(code).toBe(0)
      const idempotency = createIdempotency({ store: operated.store, sweep: false })
      const work = vi.fn(() => ({ sent: 0 }))
      expect(await idempotency.run({ scope: 'shared', key, name: 'send-invoice' }, work)).toEqual({ sent: 5 })
      expect(work).not.toHaveBeenCalled()
      await idempotency.close()
    })

    it.each([
      [
        'an HTTP request with a value',
        'POST /payments',
        ['--value=1'],
        'this is an HTTP request, POST /payments',
      ],
      ['a function with a status', 'send-invoice', ['--status=200'], 'this is a function, "send-invoice"'],
      ['a function that begins with capitals', 'PAY invoice', ['--status=200'], 'this is a function'],
      ['an attempt at a message', 'message ledger', ['--value=1'], 'this is an attempt at a message'],
    ])('refuses to settle %s', async (_, route, flags, message) => {
      const { id } = await anUnknown(operated.store, { route })
      const { code, err } = await run('settle', `--id=${id}`, ...flags, '--yes')
      expect(err).toContain(message)
      expect(code).toBe(2)
      expect((await now(id))?.status).toBe('unknown')
    })

    it('releases an unknown operation, and says what a retry does then', async () => {
      const { id, key } = await stuck()
      const { code, out, err } = await run('release', `--id=${id}`, '--yes')
      expect(err).toContain('If it did happen, it happens twice.')
      expect(out).toBe(`Released: a retry of "${key}" of POST /payments runs it.\n`)
      expect(await now(id)).toBeUndefined()
      expect(code).toBe(0)
    })

    it('shows what would be done and refuses to do it, where nobody can be asked', async () => {
      const { id, key } = await stuck()
      for (const args of [['settle', ...PAID], ['release']]) {
        const { code, out, err } = await run(...args, `--id=${id}`)
        expect(err).toContain(key)
        expect(err).toContain('nothing was changed: there is no terminal to ask at. Say --yes')
        expect({ code, out }).toEqual({ code: 2, out: '' })
      }
      expect((await now(id))?.status).toBe('unknown')
    })

    it.each([
      ['running', async () => aRunning(operated.store)],
      ['completed', async () => aCompleted(operated.store, outcomeOfResponse({ status: 202 }))],
    ])('leaves alone what is %s, and shows it', async (state, make) => {
      const { id } = await make()
      const before = await now(id)
      for (const args of [['settle', ...PAID], ['release']]) {
        const { code, out, err } = await run(...args, `--id=${id}`, '--yes')
        expect(err).toContain('Nothing was changed: only what is unknown')
        expect(err).toMatch(new RegExp(`^state +${state}: `, 'm'))
        expect({ code, out }).toEqual({ code: 1, out: '' })
      }
      expect((await now(id))?.status).toBe(before?.status)
    })

    it('ends with 1 where there is no such record', async () => {
      expect(await run('settle', 'nobody', '--scope=shared', ...PAID, '--yes')).toMatchObject({
        code: 1,
        out: '',
      })
      expect(await run('release', 'nobody', '--scope=shared', '--yes')).toMatchObject({ code: 1, out: '' })
    })

    it('tells programs as JSON what was done', async () => {
      const { id } = await stuck()
      const settled = await run('settle', `--id=${id}`, ...PAID, '--yes', '--json')
      expect(JSON.parse(settled.out)).toMatchObject({
        format: 1,
        done: 'settled',
        record: { id, state: 'completed', outcome: { status: 201 } },
      })
      const again = await run('settle', `--id=${id}`, ...PAID, '--yes', '--json')
      expect(JSON.parse(again.out)).toMatchObject({
        format: 1,
        done: 'nothing',
        record: { state: 'completed' },
      })
      expect(again.code).toBe(1)
      const released = await run('release', `--id=${(await stuck()).id}`, '--yes', '--json')
      expect(JSON.parse(released.out)).toEqual({ format: 1, done: 'released', record: null })
    })

    it('lets one of two operators settle, and tells the other', async () => {
      const { id } = await stuck()
      const bodies = ['{"by":"ada"}', '{"by":"bob"}']
      const runs = await Promise.all(
        bodies.map((body) => run('settle', `--id=${id}`, '--status=201', `--body=${body}`, '--yes')),
      )
      expect(runs.map(({ code }) => code).sort()).toEqual([0, 1])
      expect((await answerNow(id)).body).toBe(bodies[runs.findIndex(({ code }) => code === 0)])
    })

    if (kind === 'redis' && process.platform === 'linux')
      it('lets the store decide, to the last moment, and writes down no change that it refused', async () => {
        const server = await startRedisServer()
        const client = new Redis(server.port)
        const store = redisStore(client)
        const { id, token } = await anUnknown(store)
        // A pipe that is full holds the command where it announces the change: after its last look, before the change.
        const pipe = join(folder, 'held.log')
        execFileSync('mkfifo', [pipe])
        const descriptor = openSync(pipe, constants.O_RDWR | constants.O_NONBLOCK)
        untilRefused(() => writeSync(descriptor, Buffer.alloc(4096)))
        await client.config('RESETSTAT')
        const environment = { ONCEKEY_STORE: server.url }
        const settling = runOncekeyIn(
          environment,
          'settle',
          `--id=${id}`,
          ...PAID,
          '--yes',
          `--audit-log=${pipe}`,
        )
        const looks = async () => /cmdstat_evalsha:calls=(\d+)/.exec(await client.info('commandstats'))?.[1]
        // One to show it, one that looks for sealed outcomes, and the last one.
        await expect.poll(looks, { timeout: 20_000 }).toBe('3')
        expect(await store.complete(id, token, outcomeOfResponse({ status: 202 }), HOUR)).toBe(true)
        const read = Buffer.alloc(65_536)
        let written = ''
        const drain = () => {
          const bytes = readSync(descriptor, read)
          written += read.toString('utf8', 0, bytes)
        }
        untilRefused(drain)
        const { code, out, err } = await settling
        untilRefused(drain)
        const now = await store.find(id)
        closeSync(descriptor)
        client.disconnect()
        await server.stop()
        expect(err).toContain('Nothing was changed: only what is unknown')
        expect({ code, out }).toEqual({ code: 1, out: '' })
        expect(now?.status === 'completed' && answerOf(now.outcome)).toMatchObject({
          answer: { status: 202 },
        })
        expect(written).toContain('"event":"settling"')
        expect(written + err).not.toContain('"event":"settled"')
      })

    it('says that nobody knows whether it was done, where the answer of the store is lost', async () => {
      const { id } = await stuck()
      const { hostname, port } = new URL(operated.url)
      const proxy = await startFaultProxy({ target: { host: hostname, port: Number(port) } })
      const lost = proxy.arm({
        kind: 'drop-answer',
        match: kind === 'redis' ? /\r\nrelease\r\n/ : /delete from/,
      })
      const file = join(folder, 'lost.log')
      const environment = { ONCEKEY_STORE: proxy.through(operated.url) }
      const args = ['release', `--id=${id}`, '--yes', `--audit-log=${file}`]
      const { code, out, err } = await runOncekeyIn(environment, ...args, operated.flag)
      expect(lost.timesFired).toBe(1)
      await proxy.stop()
      expect(err).toContain(`Whether it was done is not known: "npx oncekey show --id=${id}" says`)
      expect({ code, out }).toEqual({ code: 3, out: '' })
      expect(await now(id)).toBeUndefined()
      expect(readFileSync(file, 'utf8')).toMatch(/^\{.*"event":"releasing".*\}\n$/)
      rmSync(file)
    })

    it.runIf(hasTerminals)('asks at a terminal, and takes everything but a yes for a no', async () => {
      const { id } = await stuck()
      const command = `npx oncekey settle --id=${id} --status=201 ${operated.flag}`
      for (const answer of ['n\n', '\n', 'yep\n', '\u0004', '\u0003']) {
        const { code, screen } = await typeAtTerminal(operated.environment, command, answer)
        expect(screen).toContain('Did it happen, and is this its answer? [y/N]')
        expect(screen).toContain('Nothing was changed.')
        expect(code).toBe(1)
      }
      expect((await now(id))?.status).toBe('unknown')
      expect(await typeAtTerminal(operated.environment, command, 'YES\n')).toMatchObject({ code: 0 })
      expect((await now(id))?.status).toBe('completed')
    })

    it.runIf(hasTerminals)('settles nothing that has ended while somebody thought about it', async () => {
      const { id, token } = await stuck()
      const late = outcomeOfResponse({ status: 201, body: { late: true } })
      const command = `npx oncekey settle --id=${id} --status=500 ${operated.flag}`
      const { code, screen } = await typeAtTerminal(operated.environment, command, 'y\n', async () => {
        expect(await operated.store.complete(id, token, late, HOUR)).toBe(true)
      })
      expect(screen).toContain('Nothing was changed: only what is unknown')
      expect(code).toBe(1)
      expect(await answerNow(id)).toMatchObject({ status: 201, body: '{"late":true}' })
    })

    it.runIf(hasTerminals)('settles no other attempt than the one that was shown', async () => {
      const { id, key } = await stuck()
      const command = `npx oncekey settle --id=${id} --status=201 ${operated.flag}`
      const { code, screen } = await typeAtTerminal(operated.environment, command, 'y\n', async () => {
        // Another operator released it, and the retry that ran then is unknown too.
        await operated.store.settle(id, 'release', 0)
        await anUnknown(operated.store, { key, firstSeenAt: Date.now() + 1 })
      })
      expect(screen).toContain('another attempt than the one that was shown')
      expect(code).toBe(1)
      expect((await now(id))?.status).toBe('unknown')
    })

    it('writes an audit line for each change, to standard error and to the file', async () => {
      const { id } = await stuck()
      const file = join(folder, 'audit.log')
      writeFileSync(file, 'before\n')
      const args = ['settle', `--id=${id}`, ...PAID, '--yes', '--by=ada', `--audit-log=${file}`]
      const { err } = await run(...args)
      const [before, announced, done] = readFileSync(file, 'utf8').split('\n')
      expect(before).toBe('before')
      const line = {
        audit: 'oncekey',
        id,
        route: 'POST /payments',
        fence: 1,
        status: 201,
        by: 'ada',
        level: 40,
      }
      expect(JSON.parse(announced ?? '')).toMatchObject({ ...line, event: 'settling' })
      expect(JSON.parse(done ?? '')).toMatchObject({ ...line, event: 'settled' })
      expect(JSON.parse(done ?? '').key).toMatch(/^sha256:/)
      expect(JSON.parse(err.split('\n').find((one) => one.startsWith('{')) ?? '')).toMatchObject({
        ...line,
        event: 'settled',
      })
      await run(...args)
      expect(readFileSync(file, 'utf8').trimEnd().split('\n')).toHaveLength(3)

      const next = await stuck()
      const environment = { ...operated.environment, ONCEKEY_AUDIT_LOG: file }
      await runOncekeyIn(environment, 'release', `--id=${next.id}`, '--yes', operated.flag)
      const events = readFileSync(file, 'utf8').trimEnd().split('\n').slice(3)
      expect(events.map((one) => JSON.parse(one))).toMatchObject([
        { event: 'releasing', id: next.id, by: userInfo().username },
        { event: 'released', id: next.id, by: userInfo().username },
      ])
    })

    it('ends as it has ended, where nobody reads standard error', async () => {
      const { id } = await stuck()
      const file = join(folder, 'unread.log')
      const args = ['settle', `--id=${id}`, ...PAID, '--yes', `--audit-log=${file}`, operated.flag]
      const child = spawn(process.execPath, [ONCEKEY, ...args], {
        env: { ...process.env, ...operated.environment },
        stdio: ['ignore', 'pipe', 'pipe'],
      })
      // As `2>&1 | head -1` does, for both.
      child.stderr.destroy()
      child.stdout.destroy()
      expect(await new Promise((resolve) => child.once('close', resolve))).toBe(0)
      expect((await now(id))?.status).toBe('completed')
      expect(readFileSync(file, 'utf8')).toContain('"event":"settled"')
    })

    it('knows who does it, and takes no empty name for that', async () => {
      const { id } = await stuck()
      for (const by of ['', ' ']) {
        const { code, out, err } = await run('release', `--id=${id}`, '--yes', `--by=${by}`)
        expect(err).toContain('--by is the name of whoever does it')
        expect({ code, out }).toEqual({ code: 2, out: '' })
      }
      expect((await now(id))?.status).toBe('unknown')
    })

    it('takes settings that are empty in the environment for none', async () => {
      const { id } = await stuck()
      const environment = { ...operated.environment, ONCEKEY_AUDIT_LOG: '', ONCEKEY_SEALING_KEYS: '' }
      const args = ['settle', `--id=${id}`, ...PAID, '--yes', operated.flag]
      expect(await runOncekeyIn(environment, ...args)).toMatchObject({ code: 0 })
      const record = await now(id)
      expect(record?.status === 'completed' && answerOf(record.outcome)).toMatchObject({ kept: true })
    })

    it.each([
      ['is no file', () => folder],
      ['takes no line', () => '/dev/full'],
    ])('changes nothing where the audit file %s', async (_, file) => {
      const { id } = await stuck()
      for (const args of [['settle', ...PAID], ['release']]) {
        const { code, err } = await run(...args, `--id=${id}`, '--yes', `--audit-log=${file()}`)
        expect(err).toMatch(/nothing was changed: .* cannot be written/)
        expect(code).toBe(2)
      }
      expect((await now(id))?.status).toBe('unknown')
    })

    it('seals what it settles where outcomes are sealed, and settles nothing without the key', async () => {
      const sealed = await operatedStore(kind)
      const key = randomBytes(32).toString('hex')
      const application = sealedStore(sealed.store, { keys: [key] })
      await aCompleted(application, outcomeOfResponse({ status: 200 }))
      const { id } = await anUnknown(application)
      const args = ['settle', `--id=${id}`, ...PAID, '--yes', sealed.flag]
      const without = await runOncekeyIn(sealed.environment, ...args)
      expect(without.err).toContain('outcomes are sealed in this store')
      expect(without.code).toBe(2)
      expect((await application.find(id))?.status).toBe('unknown')
      const withKey = await runOncekeyIn({ ...sealed.environment, ONCEKEY_SEALING_KEYS: key }, ...args)
      expect(withKey.code).toBe(0)
      const record = await application.find(id)
      expect(record?.status === 'completed' && String(record.outcome.body)).toBe('{"id":"p-1"}')
      await sealed.close()
    })

    it('finds sealed outcomes among others, and settles with no key that does not open them', async () => {
      const sealed = await operatedStore(kind)
      const [key, other] = [randomBytes(32).toString('hex'), randomBytes(32).toString('hex')]
      const application = sealedStore(sealed.store, { keys: [key], acceptUnsealed: true })
      for (let count = 0; count < 12; count += 1)
        await aCompleted(sealed.store, outcomeOfResponse({ status: 200 }))
      await aCompleted(application, outcomeOfResponse({ status: 200 }))
      const { id } = await anUnknown(application)
      const args = ['settle', `--id=${id}`, ...PAID, '--yes', sealed.flag]
      const without = await runOncekeyIn(sealed.environment, ...args)
      expect(without.err).toContain('outcomes are sealed in this store')
      expect(without.code).toBe(2)
      const wrong = await runOncekeyIn({ ...sealed.environment, ONCEKEY_SEALING_KEYS: other }, ...args)
      expect(wrong.err).toContain('ONCEKEY_SEALING_KEYS does not open the outcomes')
      expect(wrong.err).not.toContain(other)
      expect({ code: wrong.code, out: wrong.out }).toEqual({ code: 2, out: '' })
      expect((await application.find(id))?.status).toBe('unknown')
      const both = { ...sealed.environment, ONCEKEY_SEALING_KEYS: `${key},${other}` }
      expect(await runOncekeyIn(both, ...args)).toMatchObject({ code: 0 })
      const record = await application.find(id)
      expect(record?.status === 'completed' && String(record.outcome.body)).toBe('{"id":"p-1"}')
      await sealed.close()
    })

    it('says that it knows nothing of sealing, where nothing is completed and no key was given', async () => {
      const empty = await operatedStore(kind)
      const { id } = await anUnknown(empty.store)
      const args = ['settle', `--id=${id}`, ...PAID, empty.flag]
      const nothing = 'no completed record was found to tell whether outcomes are sealed here'
      expect((await runOncekeyIn(empty.environment, ...args)).err).toContain(nothing)
      const withKey = { ...empty.environment, ONCEKEY_SEALING_KEYS: randomBytes(32).toString('hex') }
      expect((await runOncekeyIn(withKey, ...args)).err).not.toContain(nothing)
      await aCompleted(empty.store, outcomeOfResponse({ status: 200 }))
      expect((await runOncekeyIn(empty.environment, ...args)).err).not.toContain(nothing)
      await empty.close()
    })

    // The command line is read before any store is.
    if (kind === 'redis')
      it.each([
        ['without an outcome', [], 'say what it was answered with'],
        ['with a body alone', ['--body={}'], 'say the status of the answer too'],
        ['with a status that is none', ['--status=99'], 'from 200 to 599'],
        ['with a body that is no JSON', ['--status=201', '--body=paid'], 'the body is no JSON'],
        ['with a body where there can be none', ['--status=204', '--body={}'], '204 has no body'],
        ['with a file that is not there', ['--status=201', '--body=@/nowhere'], '/nowhere cannot be read'],
        ['with a header that is none', ['--status=201', '--header=x'], "'Name: value'"],
        ['with a header of two lines', ['--status=201', '--header=a: b\r\nc: d'], "'Name: value'"],
        ['with a cookie', ['--status=201', '--header=Set-Cookie: a=b'], 'the header Set-Cookie is not kept'],
        ['with a tombstone that has a body', ['--tombstone', '--status=201', '--body={}'], 'keeps no answer'],
        ['with a value and a status', ['--value=1', '--status=201'], '--value is of a function'],
        ['with a value that is no JSON', ['--value=x'], '--value is JSON'],
        ['with a length of time that is none', [...PAID, '--ttl=long'], '--ttl is a length of time'],
      ])('ends with 2 %s, and changes nothing', async (_, flags, message) => {
        const { id } = await stuck()
        const { code, out, err } = await run('settle', `--id=${id}`, ...flags, '--yes')
        expect(err).toContain(message)
        expect(err).not.toContain('    at ')
        expect({ code, out }).toEqual({ code: 2, out: '' })
        expect((await now(id))?.status).toBe('unknown')
      })
  })

/** Repeats a step until a pipe has no room, or nothing, for another. */
function untilRefused(step: () => unknown): void {
  try {
    for (;;) step()
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
  }
}
