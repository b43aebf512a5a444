import { randomUUID } from 'node:crypto'
import { Cluster, Redis } from 'ioredis'
import { Pool } from 'pg'
import { afterAll, beforeAll, expect, inject, it, onTestFinished, vi } from 'vitest'
import type { IdempotencyStore } from '../../src/contract/store.js'
import { createInbox, highWatermark } from '../../src/messages/inbox.js'
import { type PostgresStore, postgresStore } from '../../src/stores/postgres.js'
import { redisStore } from '../../src/stores/redis.js'
import { storeContract } from '../../src/testing/store-contract.js'
import { aClaim, anOutcome, HOUR, lapsed } from '../../src/testing/store-fixtures.js'
import { transactionContract } from '../../src/testing/transaction-contract.js'
import { docBlock } from '../support/doc-blocks.js'
import { aMessage, INBOX_CASES } from '../support/inbox-cases.js'
import { startRedisServer } from '../support/redis-server.js'
import { describeWith } from '../support/services.js'
import { everyStep } from '../support/store-steps.js'

const PAGE = 'docs/security.md'
const { postgresUrl, redisUrl } = inject('services')

/** Each kind of step once, one after the other: what one refuses leaves no other step on its way. */
async function useInTurn(store: IdempotencyStore): Promise<void> {
  await store.check?.()
  for (const step of everyStep(store)) await step()
  const short = aClaim({ leaseMs: 500, ttlMs: 500 })
  await store.claim(short)
  expect(await store.renew(short.id, short.token, HOUR)).toBe(true)
  expect(await store.release(short.id, short.token)).toBe(true)
  const unknown = await lapsed(store)
  expect(await store.settle(unknown.id, anOutcome(), HOUR)).toBe(true)
  for await (const { id } of store.list?.({ status: 'completed', limit: 1 }) ?? []) await store.remove?.(id)
  await store.sweep?.()
}

/** What is done with a Postgres store besides: transactions and messages, one after the other. */
async function useTransactions(store: PostgresStore, application: Pool): Promise<void> {
  const client = await application.connect()
  try {
    const claim = aClaim()
    await store.claim(claim)
    await client.query('begin')
    const execute = (text: string, values: unknown[]) => client.query(text, values)
    expect(await store.completeIn?.(execute, claim.id, claim.token, anOutcome(), HOUR)).toBe(true)
    await client.query('commit')
  } finally {
    client.release()
  }
  const inbox = createInbox({ store, consumer: randomUUID(), sweep: false })
  const message = aMessage()
  expect(await inbox.processOnce(message, () => {})).toBe('processed')
  expect(await inbox.processOnce(message, () => {})).toBe('duplicate')
  const log = createInbox({ store, consumer: randomUUID(), sweep: false, strategy: highWatermark() })
  for (const offset of [7n, 8n]) {
    const position = { topic: 'payments', partition: 0, offset, timestampMs: 1 }
    expect(await log.processOnce({ ...aMessage(), position }, () => {})).toBe('processed')
  }
  await log.reset({ source: 'payments' })
}

describeWith(['postgres'], 'the rights that docs/security.md gives in Postgres', () => {
  const suffix = randomUUID().slice(0, 8)
  const named = (sql: string): string =>
    sql.replaceAll(/\boncekey(?=[_. ;]|$)(_owner|_app)?(?!_)/gm, `oncekey$1_${suffix}`)
  const grants = named(docBlock(PAGE, 'grant usage'))
  const schema = named('oncekey')
  let admin: Pool
  let owner: Pool
  let app: Pool

  beforeAll(async () => {
    admin = new Pool({ connectionString: postgresUrl, max: 2 })
    await admin.query(named(docBlock(PAGE, 'create role')))
    const as = async (role: string): Promise<Pool> => {
      const password = randomUUID()
      await admin.query(`alter role ${role} password '${password}'`)
      const url = Object.assign(new URL(postgresUrl), { username: role, password })
      return new Pool({ connectionString: url.href, max: 10 })
    }
    owner = await as(named('oncekey_owner'))
    app = await as(named('oncekey_app'))
    await postgresStore(owner, { schema }).migrate()
    await owner.query(grants)
  })
  afterAll(async () => {
    await owner?.end()
    await app?.end()
    await admin.query(`drop owned by ${named('oncekey_app')}; drop schema ${schema} cascade;
      drop owned by ${named('oncekey_owner')}; drop role ${named('oncekey_app')}; drop role ${named('oncekey_owner')}`)
    await admin.end()
  })

  it('are enough for everything but migrations', { timeout: 120_000 }, async () => {
    const store = postgresStore(app, { schema })
    await useInTurn(store)
    await useTransactions(store, app)
    for (const { run } of [...storeContract, ...transactionContract, ...INBOX_CASES]) await run(store)
  })

  it('let the application change no table', async () => {
    await expect(postgresStore(app, { schema, table: 'another' }).migrate()).rejects.toThrow(
      'permission denied',
    )
    for (const statement of ['truncate', 'drop table', 'alter table'])
      await expect(
        app.query(
          `${statement} ${schema}.oncekey_records${statement === 'alter table' ? ' set unlogged' : ''}`,
        ),
      ).rejects.toThrow(/permission denied|must be owner/)
    await expect(app.query(`delete from ${schema}.oncekey_migrations`)).rejects.toThrow('permission denied')
  })

  it('let an operator look with "select" alone', async () => {
    const claim = aClaim()
    await postgresStore(app, { schema }).claim(claim)
    const privileges = 'insert, update, delete on oncekey.oncekey_records'
    await owner.query(named(`revoke ${privileges} from oncekey_app`))
    onTestFinished(async () => {
      await owner.query(grants)
    })
    const store = postgresStore(app, { schema })
    await store.check?.()
    expect((await store.find(claim.id))?.status).toBe('running')
    const listed: string[] = []
    for await (const { id } of store.list?.({ status: 'running' }) ?? []) listed.push(id)
    expect(listed).toContain(claim.id)
    await expect(store.settle(claim.id, 'release', HOUR)).rejects.toThrow('permission denied')
  })

  const rights = [...grants.matchAll(/^grant ([\w, ]+) on ([\w., ]+) to/gm)].flatMap(
    ([, privileges = '', objects = '']) =>
      privileges
        .split(', ')
        .flatMap((privilege) => objects.split(', ').map((object) => `${privilege} on ${object}`)),
  )

  it.each(rights)('are not enough without %s', { timeout: 120_000 }, async (right) => {
    await owner.query(`revoke ${right} from ${named('oncekey_app')}`)
    onTestFinished(async () => {
      await owner.query(grants)
    })
    const store = postgresStore(app, { schema })
    const use = async (): Promise<void> => {
      await useInTurn(store)
      await useTransactions(store, app)
    }
    await expect(use()).rejects.toThrow()
  })
})

describeWith(['redis'], 'the rights that docs/security.md gives in Redis', () => {
  const user = `oncekey-${randomUUID()}`
  const rules = docBlock(PAGE, 'ACL SETUSER')
    .replaceAll(/\\\n|'/g, '')
    .replaceAll('\\|', '|')
    .replace(/^.*SETUSER oncekey /, '')
    .replace('>a long password', '>secret')
    .trim()
    .split(/\s+/)
  let admin: Redis

  beforeAll(() => {
    admin = new Redis(redisUrl)
  })
  afterAll(async () => {
    await admin.call('ACL', 'DELUSER', user)
    await admin.quit()
  })

  async function useAllAs(given: readonly string[], contract: typeof storeContract = []): Promise<void> {
    await admin.call('ACL', 'SETUSER', user, 'reset', ...given)
    const { hostname: host, port } = new URL(redisUrl)
    const client = new Redis({
      host,
      port: Number(port),
      username: user,
      password: 'secret',
      maxRetriesPerRequest: 0,
      retryStrategy: () => null,
    })
    const failed: unknown[] = []
    client.on('error', (error) => failed.push(error))
    try {
      const store = redisStore(client)
      await useInTurn(store)
      // EVALSHA finds no script then, and EVAL takes its place.
      await admin.script('FLUSH')
      await store.claim(aClaim())
      await client.wait(0, 1)
      expect(failed).toEqual([])
      for (const { run } of contract) await run(store)
    } finally {
      client.disconnect()
    }
  }

  it('are enough', { timeout: 60_000 }, async () => {
    await useAllAs(rules, storeContract)
  })

  it.each(rules.filter((rule) => rule.startsWith('+')))(
    'are not enough without %s',
    { timeout: 60_000 },
    async (rule) => {
      await expect(useAllAs(rules.filter((one) => one !== rule))).rejects.toThrow()
    },
  )

  it('are enough for steps to share a command', async () => {
    await admin.call('ACL', 'SETUSER', user, 'reset', ...rules)
    const { hostname: host, port } = new URL(redisUrl)
    const client = new Redis({ host, port: Number(port), username: user, password: 'secret' })
    onTestFinished(() => client.disconnect())
    const keyCounts: unknown[] = []
    const store = redisStore({
      info: client.info.bind(client),
      config: client.config.bind(client),
      callBuffer(command: string, args: (string | Buffer | number)[]) {
        keyCounts.push(args[1])
        return client.callBuffer(command, args)
      },
    })
    await store.check?.()
    keyCounts.length = 0
    await Promise.all([aClaim(), aClaim()].map((claim) => store.claim(claim)))
    expect(keyCounts[0]).toBe(2)
  })

  it('open no other key', async () => {
    await admin.call('ACL', 'SETUSER', user, 'reset', ...rules)
    const { hostname: host, port } = new URL(redisUrl)
    const client = new Redis({ host, port: Number(port), username: user, password: 'secret' })
    await expect(client.get('sessions:1')).rejects.toThrow('NOPERM')
    await expect(client.eval("return redis.call('GET', 'sessions:1')", 0)).rejects.toThrow(
      /NOPERM|can't access/,
    )
    await expect(client.flushall()).rejects.toThrow('NOPERM')
    client.disconnect()
  })

  it('are enough in a cluster, with what its clients ask', { timeout: 60_000 }, async () => {
    const node = await startRedisServer({
      args: ['--cluster-enabled', 'yes', '--cluster-announce-ip', '127.0.0.1'],
    })
    onTestFinished(() => node.stop())
    const nodeAdmin = new Redis(node.url)
    await nodeAdmin.call('CLUSTER', 'ADDSLOTSRANGE', '0', '16383')
    await vi.waitFor(
      async () => expect(await nodeAdmin.cluster('INFO')).toContain('cluster_state:ok'),
      10_000,
    )
    await nodeAdmin.call('ACL', 'SETUSER', user, 'reset', ...rules, '+cluster|slots', '+cluster|info')
    nodeAdmin.disconnect()
    const client = new Cluster([{ host: '127.0.0.1', port: node.port }], {
      redisOptions: { username: user, password: 'secret' },
    })
    try {
      const store = redisStore(client)
      await store.check?.()
      for (const { run } of storeContract) await run(store)
    } finally {
      client.disconnect()
    }
  })
})
