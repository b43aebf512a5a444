import { execFile } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { Cluster, Redis } from 'ioredis'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import { redisStore } from '../../src/stores/redis.js'
import { runOncekeyIn } from '../support/oncekey-program.js'
import { anUnknown, operatedStore } from '../support/operated-store.js'
import { startPostgresServer } from '../support/postgres-server.js'
import { startRedisServer } from '../support/redis-server.js'
import { startRedisCluster } from '../support/redis-topologies.js'
import { describeWith } from '../support/services.js'

const PASSWORD = 'correct-horse'
const { postgresUrl } = inject('services')

describe('oncekey, where the store is away', () => {
  let silent: Server
  const sockets = new Set<Socket>()
  beforeAll(async () => {
    // Accepts connections, and never says a word.
    silent = createServer((socket) => sockets.add(socket)).listen(0, '127.0.0.1')
    await new Promise((listening) => silent.once('listening', listening))
  })
  afterAll(() => {
    for (const socket of sockets) socket.destroy()
    silent.close()
  })

  it.each([
    ['redis', 'redis://ada:PASSWORD@127.0.0.1:1/0', 'redis://ada@127.0.0.1:1/0'],
    ['redis with TLS', 'rediss://ada:PASSWORD@127.0.0.1:1/0', 'rediss://ada@127.0.0.1:1/0'],
    ['postgres', 'postgres://ada:PASSWORD@127.0.0.1:1/bank', 'postgres://ada@127.0.0.1:1/bank'],
    [
      'postgresql',
      'postgresql://ada:PASSWORD@127.0.0.1:1/bank?x=PASSWORD',
      'postgresql://ada@127.0.0.1:1/bank',
    ],
  ])('ends with 3 and says so without the password: %s', async (_, url, shown) => {
    const given = url.replaceAll('PASSWORD', PASSWORD)
    for (const [environment, args] of [
      [{ ONCEKEY_STORE: given }, []],
      [{}, ['--store', given]],
    ] as const) {
      const { code, out, err } = await runOncekeyIn(environment, 'list', ...args)
      expect(err).toBe(`oncekey list: ${shown} cannot be reached: connect ECONNREFUSED 127.0.0.1:1\n`)
      expect({ code, out }).toEqual({ code: 3, out: '' })
    }
  })

  it.each(['redis', 'postgres'])('gives up a %s that does not answer within seconds', async (kind) => {
    const { port } = silent.address() as { port: number }
    const begun = Date.now()
    const { code, err } = await runOncekeyIn({ ONCEKEY_STORE: `${kind}://127.0.0.1:${port}/0` }, 'stats')
    expect(err).toContain('cannot be reached: ')
    expect(err).not.toContain('    at ')
    expect(code).toBe(3)
    expect(Date.now() - begun).toBeLessThan(12_000)
  })

  it.each([
    ['no store', {}, 'no store is named'],
    ['two that may be meant', { DATABASE_URL: 'postgres://a/b', REDIS_URL: 'redis://a' }, 'are both set'],
    [
      'something else',
      { ONCEKEY_STORE: `mysql://ada:${PASSWORD}@a/b` },
      'ONCEKEY_STORE is no URL of a store',
    ],
    ['no URL', { ONCEKEY_STORE: `ada:${PASSWORD}` }, 'ONCEKEY_STORE is no URL of a store'],
    ['a password with a #', { DATABASE_URL: `postgres://ada:12#${PASSWORD}@a/b` }, 'DATABASE_URL'],
    ['a password with a % alone', { ONCEKEY_STORE: `redis://:${PASSWORD}%zz@h` }, 'is written as %3A'],
    [
      'a password with a % alone',
      { DATABASE_URL: `postgres://a:${PASSWORD}%zz@h/b` },
      'DATABASE_URL has a %',
    ],
    ['a user with a % alone', { ONCEKEY_STORE: `redis://a%:${PASSWORD}@h` }, 'ONCEKEY_STORE has a %'],
    ['a password with a /', { DATABASE_URL: `postgres://ada:12/${PASSWORD}@a/b` }, 'has an @ after its host'],
  ])('ends with 2 where the environment names %s', async (_, environment, message) => {
    const { code, out, err } = await runOncekeyIn(environment as Record<string, string>, 'list')
    expect(err).toContain(message)
    expect(err).not.toContain(PASSWORD)
    expect({ code, out }).toEqual({ code: 2, out: '' })
  })
})

describe('oncekey, where the client of the store is not installed', () => {
  let folder: string
  beforeAll(() => {
    // The package as npm installs it, with what it brings and none of its peers.
    folder = mkdtempSync(join(tmpdir(), 'oncekey-bare-'))
    const installed = join(folder, 'node_modules', 'oncekey')
    mkdirSync(installed, { recursive: true })
    cpSync('dist', join(installed, 'dist'), { recursive: true })
    cpSync('package.json', join(installed, 'package.json'))
    for (const name of ['zod', 'lru-cache', 'fast-json-stable-stringify', 'fastify-plugin'])
      symlinkSync(resolve('node_modules', name), join(folder, 'node_modules', name))
  })
  afterAll(() => rmSync(folder, { recursive: true }))

  const run = (...args: readonly string[]): Promise<{ code: number; out: string; err: string }> =>
    new Promise((done) => {
      const file = join(folder, 'node_modules', 'oncekey', 'dist', 'cli', 'oncekey.js')
      execFile(process.execPath, [file, ...args], (error, out, err) =>
        done({ code: Number(error?.code ?? 0), out, err }),
      )
    })

  it.each([
    ['redis://127.0.0.1:1', 'ioredis'],
    ['postgres://127.0.0.1:1/x', 'pg'],
  ])('names the package that %s needs', async (url, name) => {
    const { code, out, err } = await run('list', '--store', url)
    expect(err).toContain(`the package ${name} is not installed here: run "npm install ${name}"`)
    expect({ code, out }).toEqual({ code: 2, out: '' })
  })

  it('prints the migrations all the same', async () => {
    const { code, out } = await run('migrate', '--print')
    expect(out).toContain('create table "oncekey_records"')
    expect(code).toBe(0)
  })
})

describeWith(['redis'], 'oncekey, where Redis refuses', () => {
  it('shows no password, neither a wrong one nor the right one, and works with the right one', async () => {
    const server = await startRedisServer()
    try {
      const admin = new Redis(server.port)
      await admin.config('SET', 'requirepass', PASSWORD)
      admin.disconnect()
      const at = `127.0.0.1:${server.port}`
      const wrong = await runOncekeyIn({ ONCEKEY_STORE: `redis://:not-${PASSWORD}@${at}` }, 'list')
      expect(wrong.err).toContain(`redis://${at} cannot be reached: WRONGPASS`)
      expect(wrong.code).toBe(3)
      const none = await runOncekeyIn({ ONCEKEY_STORE: `redis://${at}` }, 'list')
      expect(none.err).toContain('NOAUTH')
      expect(none.code).toBe(3)
      const right = await runOncekeyIn({}, 'stats', '--store', `redis://:${PASSWORD}@${at}`)
      expect(right.code).toBe(0)
      for (const { out, err } of [wrong, none, right]) expect(out + err).not.toContain(PASSWORD)
    } finally {
      await server.stop()
    }
  })

  it('says when a server refuses a change, as a replica does, and that nothing is known', async () => {
    const server = await startRedisServer()
    try {
      const environment = { ONCEKEY_STORE: `redis://127.0.0.1:${server.port}` }
      const client = new Redis(server.port)
      const { id } = await anUnknown(redisStore(client))
      await client.replicaof('127.0.0.1', 1)
      const { code, out, err } = await runOncekeyIn(environment, 'release', `--id=${id}`, '--yes')
      client.disconnect()
      expect(err).toContain('READONLY')
      expect(err).toContain(`Whether it was done is not known: "npx oncekey show --id=${id}" says`)
      expect({ code, out }).toEqual({ code: 3, out: '' })
    } finally {
      await server.stop()
    }
  })
})

describeWith(['redis-topologies'], 'oncekey on a cluster', () => {
  it('finds and settles what any of its masters has, by the address of one of its nodes', {
    timeout: 120_000,
  }, async () => {
    const cluster = await startRedisCluster()
    try {
      const client = new Cluster(cluster.startupNodes)
      const store = redisStore(client)
      const stuck = await Promise.all(Array.from({ length: 6 }, () => anUnknown(store)))
      const [node] = cluster.startupNodes
      const environment = { ONCEKEY_STORE: `redis://127.0.0.1:${node?.port}` }
      const { out } = await runOncekeyIn(environment, 'list', '--status=unknown')
      for (const { id } of stuck) {
        expect(out).toContain(id)
        const { code } = await runOncekeyIn(environment, 'settle', `--id=${id}`, '--status=204', '--yes')
        expect(code).toBe(0)
        expect((await store.find(id))?.status).toBe('completed')
      }
      client.disconnect()
    } finally {
      await cluster.stop()
    }
  })
})

describeWith(['postgres'], 'oncekey, where Postgres is not ready', () => {
  it('ends with 3 where there are no tables, and says what makes them', async () => {
    const { code, out, err } = await runOncekeyIn({ DATABASE_URL: postgresUrl }, 'list', '--table=nowhere')
    expect(err).toContain('There is no table "nowhere": run store.migrate(), or "npx oncekey migrate", first')
    expect({ code, out }).toEqual({ code: 3, out: '' })
  })

  it('gives up a server that stops in the middle', { timeout: 60_000 }, async () => {
    const server = await startPostgresServer()
    try {
      const environment = { ONCEKEY_STORE: server.url }
      expect((await runOncekeyIn(environment, 'migrate', '--yes')).code).toBe(0)
      server.pause()
      const { code, err } = await runOncekeyIn(environment, 'list')
      expect(err).toContain('cannot be reached')
      expect(code).toBe(3)
    } finally {
      server.resume()
      await server.stop()
    }
  })
})

for (const kind of ['redis', 'postgres'] as const)
  describeWith([kind], `the commands that go on, on ${kind}`, () => {
    it('name the store as it was named, and no password', async () => {
      const operated = await operatedStore(kind)
      await anUnknown(operated.store)
      const bare = await runOncekeyIn({}, 'list', '--store', operated.url, operated.flag)
      expect(bare.err).toContain(`--store=${operated.url} ${operated.flag}`)
      const url = new URL(operated.url)
      if (kind === 'postgres') {
        // Trusted users may send any password.
        url.password = PASSWORD
        const secret = await runOncekeyIn({}, 'list', '--store', url.href, operated.flag)
        expect(secret.err).toContain(`--store=URL ${operated.flag}`)
        expect(secret.out + secret.err).not.toContain(PASSWORD)
      }
      const named = await runOncekeyIn(operated.environment, 'list', operated.flag)
      expect(named.err).not.toContain('--store')
      await operated.close()
    })
  })
