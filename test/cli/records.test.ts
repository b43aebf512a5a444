import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { Redis } from 'ioredis'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type RecordView, recordText, recordView } from '../../src/cli/record-view.js'
import { recordId } from '../../src/contract/key.js'
import { outcomeOfResponse } from '../../src/http/response-outcome.js'
import { redisStore } from '../../src/stores/redis.js'
import { sealedStore } from '../../src/stores/sealed.js'
import { aClaim, until } from '../../src/testing/store-fixtures.js'
import { ONCEKEY, type ProgramRun, runOncekeyIn, typeInShell } from '../support/oncekey-program.js'
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

const MINUTE = 60_000
const created = outcomeOfResponse({ status: 201, headers: { location: '/p/1' }, body: { id: 'p-1' } })

for (const kind of ['redis', 'postgres'] as const)
  describeWith([kind], `what an operator sees of ${kind}`, () => {
    let operated: OperatedStore
    let unknown: OperatedRecord
    let running: OperatedRecord
    let completed: OperatedRecord
    let tombstone: OperatedRecord
    beforeAll(async () => {
      operated = await operatedStore(kind)
      const { store } = operated
      unknown = await anUnknown(store, { key: 'stuck', firstSeenAt: Date.now() - 20 * MINUTE })
      running = await aRunning(store, { key: 'busy', scope: 'acme', namespace: 'shop' })
      completed = await aCompleted(store, created, { route: 'POST /orders' })
      tombstone = await aCompleted(store, { ...created, body: null }, { route: 'POST /orders' })
    })
    afterAll(() => operated.close())

    const run = (...args: readonly string[]): Promise<ProgramRun> =>
      runOncekeyIn(operated.environment, ...args, operated.flag)
    const listed = async (...args: readonly string[]): Promise<readonly string[]> => {
      const { out } = await run('list', '--json', ...args)
      return out
        .split('\n')
        .filter((line) => line !== '')
        .map((line) => (JSON.parse(line) as RecordView).id)
        .sort()
    }

    it('lists records as a table, the oldest first, and names the command that goes on', async () => {
      const { code, out, err } = await run('list')
      const lines = out.trimEnd().split('\n')
      expect(lines).toHaveLength(5)
      expect(lines[0]).toMatch(/^STATE +STATUS +FIRST SEEN +AGE +ROUTE +KEY +ID$/)
      expect(lines[1]).toMatch(/^unknown +- +\d{4}-\S+Z +20m( \d+s)? +POST \/payments +stuck +[\w-]{43}$/)
      expect(new Set(lines.slice(1).map((line) => line.length - 43)).size).toBe(1)
      expect(err).toContain(`npx oncekey show --id=${unknown.id} ${operated.flag}`)
      expect(code).toBe(0)
    })

    it('lists those that are asked for', async () => {
      const { id } = unknown
      expect(await listed()).toEqual([unknown.id, running.id, completed.id, tombstone.id].sort())
      expect(await listed('--status=unknown')).toEqual([id])
      expect(await listed('--status=running')).toEqual([running.id])
      expect(await listed('--status=tombstone')).toEqual([tombstone.id])
      expect(await listed('--status=completed')).toEqual([completed.id])
      expect(await listed('--route=POST /orders')).toEqual([completed.id, tombstone.id].sort())
      expect(await listed('--key=busy')).toEqual([running.id])
      expect(await listed('--scope=acme', '--namespace=shop')).toEqual([running.id])
      expect(await listed('--scope=acme')).toEqual([])
      expect(await listed('--limit=3')).toHaveLength(3)
    })

    it('ends with 1 where there is none, and says when there are more than it shows', async () => {
      expect(await run('list', '--key=nobody')).toMatchObject({ code: 1, out: '' })
      expect(await run('list', '--limit=2')).toMatchObject({
        code: 0,
        err: expect.stringContaining('There are more than these 2'),
      })
    })

    if (kind === 'postgres')
      it('looks at the age that the database knows', async () => {
        expect(await listed('--older-than=1h')).toEqual([])
        expect(await listed('--older-than=0s')).toHaveLength(4)
      })

    if (kind === 'redis')
      it('looks at the age that a record says', async () => {
        expect(await listed('--older-than=10m')).toEqual([unknown.id])
      })

    it('shows an unknown record, and every way to go on from there', async () => {
      const { code, out, err } = await run('show', 'stuck', '--scope=shared')
      expect(out).toMatch(/^key +stuck\nstate +unknown: /)
      expect(out).toMatch(/^route +POST \/payments$/m)
      expect(out).toMatch(/^first seen +\S+Z, 20m.* ago$/m)
      expect(out).toMatch(/^fence +1$/m)
      expect(out).toMatch(/^forgotten +\S+Z, in 59m \d+s; a retry after that runs it again$/m)
      expect(out).toMatch(new RegExp(`^id +${unknown.id}$`, 'm'))
      for (const command of ['settle', 'release'])
        expect(err).toContain(`npx oncekey ${command} --id=${unknown.id}`)
      expect(code).toBe(0)
    })

    it('finds a key by its scope and namespace, and says what it was looked for with where there is none', async () => {
      const found = await run('show', 'busy', '--scope=acme', '--namespace=shop')
      expect(found.out).toMatch(/^state +running: .*\n(.*\n)*lease left +59m/m)
      expect(found.err).toBe('')
      const missed = await run('show', 'busy', '--scope=acme')
      expect(missed).toMatchObject({ code: 1, out: '' })
      expect(missed.err).toContain('There is no record of key "busy" in scope "acme", without a namespace')
      expect(missed.err).toContain('npx oncekey list --key=KEY')
    })

    it('keeps the answer to itself, unless it is asked for', async () => {
      const usual = await run('show', `--id=${completed.id}`)
      expect(usual.out).toMatch(/^outcome +201, 12 bytes$/m)
      expect(usual.out).not.toContain('p-1')
      const asked = await run('show', `--id=${completed.id}`, '--body')
      expect(asked.out).toMatch(/\nlocation: \/p\/1\ncontent-type: .*\n\n\{"id":"p-1"\}\n$/)
      expect((await run('show', `--id=${tombstone.id}`, '--body')).out).toContain('The answer was not kept.')
    })

    it('writes a record as JSON', async () => {
      const { out } = await run('show', `--id=${completed.id}`, '--json')
      expect(JSON.parse(out)).toEqual({
        format: 1,
        id: completed.id,
        state: 'completed',
        key: completed.key,
        route: 'POST /orders',
        scopeHash: expect.stringMatching(/^[\w-]{22}$/),
        firstSeen: expect.stringMatching(/Z$/),
        ageMs: expect.any(Number),
        fence: 1,
        fingerprint: 'Zmlyc3Q',
        leaseLeftMs: null,
        expiresInMs: expect.any(Number),
        outcome: { result: 'succeeded', status: 201, bytes: 12, sealed: false, ageMs: expect.any(Number) },
      })
      const { outcome } = JSON.parse((await run('show', `--id=${completed.id}`, '--json', '--body')).out)
      expect(outcome.body).toMatchObject({ encoding: 'utf8', text: '{"id":"p-1"}' })
      expect(outcome.body.headers).toContainEqual(['location', '/p/1'])
    })

    it('counts by state and route, and names the oldest unknown one', async () => {
      const { out, err, code } = await run('stats')
      expect(out).toMatch(/^ROUTE +RUNNING +UNKNOWN +COMPLETED +TOMBSTONE +TOTAL\n/)
      expect(out).toMatch(/^POST \/payments +1 +1 +0 +0 +2$/m)
      expect(out).toMatch(/^POST \/orders +0 +0 +1 +1 +2$/m)
      expect(out).toMatch(/^all +1 +1 +1 +1 +4$/m)
      expect(out).toMatch(/^oldest unknown +\S+Z, 20m.* ago$/m)
      expect(err).toContain(`show --id=${unknown.id}`)
      expect(code).toBe(0)
      const json = JSON.parse((await run('stats', '--json')).out)
      expect(json).toMatchObject({
        ...{ format: 1, total: 4, running: 1, unknown: 1, completed: 1, tombstone: 1 },
        oldestUnknown: { id: unknown.id },
        expired: kind === 'redis' ? null : 0,
      })
      expect(json.routes).toHaveLength(2)
    })

    it('lets no control character of a key, a route or a body reach the terminal', async () => {
      const evil = 'a\u009b2Jb\u202ec'
      const escaped = 'a\\u009b2Jb\\u202ec'
      const body = outcomeOfResponse({ status: 200, body: `x\u001b[2J\u0007\ny` })
      const { id } = await aCompleted(operated.store, body, { key: evil, route: 'POST /\u001b]0;x' })
      const texts = await Promise.all([
        run('list', '--key', evil),
        run('list', '--json', '--key', evil),
        run('show', `--id=${id}`, '--body'),
        run('show', evil, '--scope=nobody'),
        run('stats'),
      ])
      // Of control characters, only line feeds.
      for (const { out, err } of texts)
        expect((out + err).replaceAll('\n', '')).not.toMatch(/[\p{Cc}\u202e]/u)
      expect(texts[0]?.out).toContain(escaped)
      expect((JSON.parse(texts[1]?.out ?? '') as RecordView).key).toBe(evil)
      expect(texts[2]?.out).toContain('x\\u001b[2J\\u0007\ny\n')
      expect(texts[3]?.err).toContain(escaped)
      await operated.store.remove?.(id)
    })

    // Redis gives only what has the form of an id.
    if (kind === 'postgres')
      it('shows ids that are none as harmless words', async () => {
        const odd = await operatedStore(kind)
        const id = "a\u001b]0;x\u0007'$(echo gone)"
        await odd.store.claim(aClaim({ id, leaseMs: 1 }))
        await until(odd.store, id, (found) => found?.status === 'unknown')
        const [list, stats] = await Promise.all(
          ['list', 'stats'].map((name) => runOncekeyIn(odd.environment, name, odd.flag)),
        )
        for (const { out, err } of [list, stats].filter((one) => one !== undefined)) {
          expect((out + err).replaceAll('\n', '')).not.toMatch(/\p{Cc}/u)
          const again = await typeInShell(odd.environment, /npx oncekey show .+/.exec(err)?.[0] ?? '')
          expect(again.err).toContain('an id has 43 characters')
          expect(err).toContain(`--id='a\\u001b]0;x\\u0007'\\''$(echo gone)'`)
        }
        expect(recordText({ ...recordView((await odd.store.find(id)) ?? expect.fail()) })).not.toContain(
          '\u001b',
        )
        await odd.close()
      })

    it('shows that an outcome is sealed, and opens it with the key', async () => {
      const key = randomBytes(32).toString('base64')
      const { id } = await aCompleted(sealedStore(operated.store, { keys: [key] }), created)
      const closed = await run('show', `--id=${id}`, '--body')
      expect(closed.out).toMatch(/^outcome +succeeded, \d+ bytes, sealed$/m)
      expect(closed.out).toContain('ONCEKEY_SEALING_KEYS')
      const withKey = { ...operated.environment, ONCEKEY_SEALING_KEYS: key }
      const opened = await runOncekeyIn(withKey, 'show', `--id=${id}`, '--body', operated.flag)
      expect(opened.out).toContain('{"id":"p-1"}')
      expect(opened.out).not.toContain(key)
      const otherKey = { ...withKey, ONCEKEY_SEALING_KEYS: randomBytes(32).toString('base64') }
      expect((await runOncekeyIn(otherKey, 'show', `--id=${id}`, operated.flag)).out).toContain(', sealed')
      await operated.store.remove?.(id)
    })

    it('names commands that take an id that begins like an option', async () => {
      let key = ''
      while (!recordId({ namespace: '', scope: 'shared', key }).startsWith('-'))
        key = randomBytes(6).toString('hex')
      const { id } = await anUnknown(operated.store, { key })
      const { err } = await run('list', `--key=${key}`)
      const shown = await typeInShell(operated.environment, /npx oncekey show .+/.exec(err)?.[0] ?? '')
      expect(shown.out).toContain(id)
      const released = await typeInShell(
        operated.environment,
        `${/npx oncekey release .+/.exec(shown.err)?.[0]} --yes`,
      )
      expect(released.code).toBe(0)
    })

    if (kind === 'redis')
      it('stops reading when nobody reads on', async () => {
        const server = await startRedisServer()
        const client = new Redis(server.port)
        const store = redisStore(client)
        await Promise.all(Array.from({ length: 3000 }, () => aRunning(store)))
        await client.config('RESETSTAT')
        const child = spawn(process.execPath, [ONCEKEY, 'list', '--json'], {
          env: { ...process.env, ONCEKEY_STORE: server.url },
          stdio: ['ignore', 'pipe', 'pipe'],
        })
        let err = ''
        child.stderr.on('data', (bytes: Buffer) => {
          err += bytes.toString()
        })
        child.stdout.once('data', () => child.stdout.destroy())
        const code = await new Promise((resolve) => child.once('close', resolve))
        const reads = /cmdstat_evalsha:calls=(\d+)/.exec(await client.info('commandstats'))?.[1]
        client.disconnect()
        await server.stop()
        expect({ code, err }).toEqual({ code: 0, err: '' })
        expect(Number(reads)).toBeLessThan(2500)
      })
  })
