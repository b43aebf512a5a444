import { Cluster, Redis } from 'ioredis'
import { Redis as Redis5 } from 'ioredis-5'
import { Pool } from 'pg'
import { afterEach, beforeEach, expect, inject, it } from 'vitest'
import { type PostgresQuery, postgresStore } from '../../src/stores/postgres.js'
import { redisStore } from '../../src/stores/redis.js'
import { anId, times } from '../../src/testing/store-fixtures.js'
import { type FaultProxy, startFaultProxy } from '../../src/testing/test-kit.js'
import { describeWith } from '../support/services.js'

const { redisUrl, postgresUrl } = inject('services')

const CLIENTS = {
  'ioredis 5': (url: string, options: { readonly socketTimeout?: number }) => new Redis5(url, { ...options }),
  'ioredis 6': (url: string, options: { readonly socketTimeout?: number }) => new Redis(url, { ...options }),
}
const VERSIONS = Object.keys(CLIENTS) as (keyof typeof CLIENTS)[]

let proxy: FaultProxy

async function startProxyBefore(url: string): Promise<void> {
  const { hostname, port } = new URL(url)
  proxy = await startFaultProxy({ target: { host: hostname, port: Number(port) } })
}

describeWith(['postgres'], 'postgresStore with a pool whose connections have all died in silence', () => {
  let pool: Pool
  beforeEach(async () => {
    await startProxyBefore(postgresUrl)
    pool = new Pool({ connectionString: proxy.through(postgresUrl), max: 2 })
    await postgresStore(pool).migrate()
  })
  afterEach(async () => {
    await proxy.stop()
    await pool.end()
  })

  it('gives each of them up after its timeout, and goes on with new ones', async () => {
    const store = postgresStore(pool, { queryTimeout: 200 })
    await Promise.all(times(2, () => pool.query('select pg_sleep(0.05)')))
    expect(pool.totalCount).toBe(2)
    proxy.arm({ kind: 'half-open', everywhere: true })
    const asked = await Promise.allSettled(times(2, () => store.find(anId())))
    expect(asked).toMatchObject(times(2, () => ({ reason: { message: 'Query read timeout' } })))
    expect(pool.totalCount).toBe(0)
    proxy.heal()
    expect(await store.find(anId())).toBeUndefined()
  })

  it('does not wait for them for ever where nobody said how long', async () => {
    let given: number | undefined
    const store = postgresStore({
      query(query: string | PostgresQuery) {
        given = typeof query === 'string' ? undefined : query.query_timeout
        return pool.query(query)
      },
    })
    await store.find(anId())
    expect(given).toBe(10_000)
  })

  it.each([0, -1, '1 hour', '25d', Number.NaN] as never[])('refuses the timeout %o', (queryTimeout) => {
    expect(() => postgresStore(pool, { queryTimeout })).toThrow(/"queryTimeout" must be a duration/)
  })
})

describeWith(['redis'], 'redisStore with a connection that has died in silence', () => {
  beforeEach(() => startProxyBefore(redisUrl))
  afterEach(() => proxy.stop())

  it.each(VERSIONS)('goes on with a new one after the socketTimeout of %s', async (version) => {
    const client = CLIENTS[version](proxy.through(redisUrl), { socketTimeout: 200 })
    // Without a listener, ioredis writes the error to the console.
    client.on('error', () => {})
    const store = redisStore(client)
    expect(await store.find(anId())).toBeUndefined()
    const fault = proxy.arm({ kind: 'half-open' })
    expect(await store.find(anId())).toBeUndefined()
    expect(fault.timesFired).toBe(1)
    client.disconnect()
  })

  const warning = expect.stringContaining('Set socketTimeout')

  it.each(VERSIONS)('warns at start when a client of %s would wait for it', async (version) => {
    const patient = CLIENTS[version](redisUrl, {})
    const careful = CLIENTS[version](redisUrl, { socketTimeout: 5000 })
    expect(await redisStore(patient).check?.()).toContainEqual(warning)
    expect(await redisStore(careful).check?.()).not.toContainEqual(warning)
    for (const client of [patient, careful]) client.disconnect()
  })

  it.each([
    [{}, true],
    [{ redisOptions: { keepAlive: 1000 } }, true],
    [{ redisOptions: { socketTimeout: 5000 } }, false],
  ])(
    'warns at start when the clients of a cluster made with %o would wait for it: %s',
    async (options, warns) => {
      const cluster = new Cluster([], { ...options, lazyConnect: true })
      expect(await redisStore(cluster).check?.()).toEqual(warns ? [warning] : [])
      cluster.disconnect()
    },
  )
})
