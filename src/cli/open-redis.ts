import { redisStore } from '../stores/redis.js'
import { clientPackage, type OpenedStore, REACHED_WITHIN_MS, reached } from './opened-store.js'
import type { StoreFlags } from './store-flags.js'
import type { StoreLocation } from './store-location.js'

/** Connects to Redis: to one node, or to the cluster that it is of. */
export async function openRedis(location: StoreLocation, { prefix }: StoreFlags): Promise<OpenedStore> {
  const { Redis, Cluster } = await clientPackage('ioredis', () => import('ioredis'))
  const common = {
    lazyConnect: true,
    connectTimeout: REACHED_WITHIN_MS,
    socketTimeout: REACHED_WITHIN_MS,
    connectionName: 'oncekey',
    // What was sent and not answered is told as that. Sent again, it would say that somebody else had done it.
    maxRetriesPerRequest: 0,
  }
  const node = new Redis(location.url, {
    ...common,
    // A connection may be cut while an operator thinks about a question.
    retryStrategy: (times) => (times > 3 ? null : 200),
  })
  const problem = firstProblem(node)
  try {
    await reached(location, Promise.race([node.connect(), problem]))
    const isCluster = await node.info('cluster').then(
      (info) => info.includes('cluster_enabled:1'),
      // Servers may forbid INFO.
      () => false,
    )
    if (!isCluster) return opened(node)
  } catch (error) {
    node.disconnect()
    throw error
  }
  const { host = '127.0.0.1', port = 6379, username, password, tls } = node.options
  node.disconnect()
  const cluster = new Cluster([{ host, port }], {
    lazyConnect: true,
    retryDelayOnFailover: 0,
    clusterRetryStrategy: (times) => (times > 3 ? null : 200),
    redisOptions: {
      ...common,
      ...(username !== undefined && { username }),
      ...(password !== undefined && { password }),
      ...(tls !== undefined && { tls }),
    },
  })
  cluster.on('error', () => {
    // What matters of it, connect() and commands reject with.
  })
  try {
    await reached(location, cluster.connect())
  } catch (error) {
    cluster.disconnect()
    throw error
  }
  return opened(cluster)

  function opened(client: InstanceType<typeof Redis> | InstanceType<typeof Cluster>): OpenedStore {
    const store = redisStore(client, prefix === undefined ? {} : { prefix })
    return {
      store: { ...store, list: store.list as NonNullable<typeof store.list> },
      close: async () => client.disconnect(),
    }
  }
}

/** Rejects with what is wrong with a connection. What `connect()` rejects with says only that it was closed. */
function firstProblem(client: {
  on(event: 'error', listener: (error: Error) => void): unknown
}): Promise<never> {
  const problem = new Promise<never>((_, reject) => {
    client.on('error', reject)
  })
  // Later ones are told by the commands that fail for them.
  problem.catch(() => {})
  return problem
}
