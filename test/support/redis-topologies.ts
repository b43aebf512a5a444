import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { onFreePorts } from './free-port.js'
import { startProgram } from './program.js'
import { answersPing, findRedis, type RedisServer, startRedisServer } from './redis-server.js'

/** A master and the replicas that follow it. */
export interface ReplicatedRedis {
  readonly master: RedisServer
  readonly replicas: readonly RedisServer[]
  stop(): Promise<void>
}

/** A master, its replicas, and the three Sentinels that replace it when it is gone. */
export interface WatchedRedis extends ReplicatedRedis {
  /** What an ioredis client needs to find the master, whichever that is. */
  readonly address: {
    readonly name: string
    readonly sentinels: { readonly host: string; readonly port: number }[]
  }
  /** The port of the replica that the Sentinels have put in the master's place, or `undefined` while they have not. */
  promoted(): Promise<number | undefined>
}

/** Three masters that share the slots, and two replicas of each. */
export interface RedisCluster {
  readonly shards: readonly Shard[]
  readonly startupNodes: { readonly host: string; readonly port: number }[]
  /** Waits until all nodes say the same of every slot. A replica that takes a place claims the slots that it knows of. */
  agreed(): Promise<void>
  /** Ends the master of a shard with whatever it is doing, and waits until a replica has taken its place. */
  failOver(shard: Shard): Promise<void>
  stop(): Promise<void>
}

/** A master of a cluster, and the replicas of which one takes its place when it is gone. */
export interface Shard {
  readonly master: RedisServer
  /** The master's name in the cluster. */
  readonly id: string
  readonly replicas: readonly RedisServer[]
}

/** Full copies at once: a server that waits for more replicas before it begins makes every start slow. */
const QUICK_COPIES = ['--repl-diskless-sync-delay', '0']
const READY_WITHIN_MS = 30_000

/** Starts a master and replicas, and waits until all of them follow it. */
export async function startReplicatedRedis(given: { readonly replicas: number }): Promise<ReplicatedRedis> {
  const master = await startRedisServer({ args: QUICK_COPIES })
  const follow = ['--replicaof', '127.0.0.1', String(master.port), ...QUICK_COPIES]
  const replicas = await Promise.all(
    Array.from({ length: given.replicas }, () => startRedisServer({ args: follow })),
  )
  await withAdmin(master.port, async (admin) => {
    await reached('the replicas follow the master', async () => {
      const online = (await admin.info('replication')).match(/state=online/g)
      return online?.length === replicas.length
    })
  })
  return { master, replicas, stop: () => stopAll([master, ...replicas]) }
}

/** Starts a master with two replicas, and three Sentinels of which two must agree that it is gone. */
export async function startWatchedRedis(): Promise<WatchedRedis> {
  const servers = await startReplicatedRedis({ replicas: 2 })
  const sentinels = await Promise.all([1, 2, 3].map(() => startSentinel(servers.master.port)))
  const ports = sentinels.map(({ port }) => port)
  await Promise.all(ports.map((port) => withAdmin(port, knowsAll)))
  return {
    ...servers,
    address: { name: NAME, sentinels: ports.map((port) => ({ host: '127.0.0.1', port })) },
    async promoted() {
      const ports = await Promise.all(sentinels.map(({ port }) => withAdmin(port, masterOf)))
      const [port] = ports
      const isAgreed = new Set(ports).size === 1 && port !== servers.master.port
      return isAgreed ? port : undefined
    },
    async stop() {
      await stopAll(sentinels)
      await servers.stop()
    },
  }
}

/** Starts a cluster of three masters with two replicas each, and waits until it serves every slot. */
export async function startRedisCluster(): Promise<RedisCluster> {
  const nodes = await Promise.all(Array.from({ length: 9 }, startClusterNode))
  for (const [index, { admin }] of nodes.entries()) {
    // Epochs of their own: nodes that meet with the same one would have to settle first which of them is newer.
    await admin.call('CLUSTER', 'SET-CONFIG-EPOCH', index + 1)
    const slots = SLOTS[index]
    if (slots !== undefined) await admin.call('CLUSTER', 'ADDSLOTSRANGE', ...slots)
  }
  for (const [index, { server, busPort }] of nodes.entries())
    for (const { admin } of nodes.slice(index + 1))
      await admin.call('CLUSTER', 'MEET', '127.0.0.1', server.port, busPort)
  const allSay = (what: string, line: string) =>
    reached(what, async () => {
      const infos = await Promise.all(nodes.map(({ admin }) => admin.cluster('INFO')))
      return infos.every((info) => info.includes(line))
    })
  await allSay('the nodes know each other', 'cluster_known_nodes:9')
  const shards = await Promise.all(
    nodes.slice(0, SLOTS.length).map(async ({ server, admin }, index): Promise<Shard> => {
      const id = String(await admin.call('CLUSTER', 'MYID'))
      const replicas = nodes.filter((_, other) => other >= SLOTS.length && other % SLOTS.length === index)
      await Promise.all(replicas.map((replica) => followInCluster(replica.admin, id)))
      return { master: server, id, replicas: replicas.map((replica) => replica.server) }
    }),
  )
  await allSay('the cluster serves every slot', 'cluster_state:ok')
  await allSay('every node knows who is a master', `cluster_size:${SLOTS.length}`)
  // On a busy machine a node may be silent for a while. It must not lose its place for that.
  await Promise.all(nodes.map(({ admin }) => setNodeTimeout(admin, UNHURRIED_MS)))
  for (const { admin } of nodes) admin.disconnect()
  const servers = nodes.map(({ server }) => server)
  return {
    shards,
    startupNodes: shards.map(({ master }) => ({ host: '127.0.0.1', port: master.port })),
    agreed: () =>
      reached('all nodes say the same of every slot', async () => {
        const maps = await Promise.all(servers.map(({ port }) => withAdmin(port, slotsOf)))
        return new Set(maps).size === 1
      }),
    async failOver({ master, replicas }) {
      const others = servers.filter((server) => server !== master)
      await Promise.all(
        others.map(({ port }) => withAdmin(port, (admin) => setNodeTimeout(admin, HURRIED_MS))),
      )
      await master.stop('SIGKILL')
      await reached('a replica takes the place of its master', async () => {
        const infos = replicas.map(({ port }) => withAdmin(port, (admin) => admin.info('replication')))
        return (await Promise.all(infos)).some((info) => info.includes('role:master'))
      })
    },
    stop: () => stopAll(servers),
  }
}

function followInCluster(admin: Redis, masterId: string): Promise<void> {
  return reached('a replica follows its master', async () => {
    // Refused until the node has heard that the other one is a master.
    await admin.call('CLUSTER', 'REPLICATE', masterId).catch(() => {})
    return (await admin.info('replication')).includes('master_link_status:up')
  })
}

/** Which master has which slots, as a node says. */
async function slotsOf(admin: Redis): Promise<string> {
  const slots = await admin.cluster('SLOTS')
  return JSON.stringify(slots.map(([first, last, master]) => [first, last, master?.[1]]).sort())
}

/** The first and the last slot of each master. */
const SLOTS = [
  [0, 5460],
  [5461, 10_922],
  [10_923, 16_383],
] as const

/** How long a node may be silent before the others call it dead. The shorter, the more often they talk to each other. */
const HURRIED_MS = 1000
const UNHURRIED_MS = 60_000

async function setNodeTimeout(admin: Redis, ms: number): Promise<void> {
  await admin.config('SET', 'cluster-node-timeout', ms)
}

function startClusterNode() {
  return onFreePorts(2, async (port, busPort) => {
    const server = await startRedisServer({
      port,
      args: [
        ...['--cluster-enabled', 'yes', '--cluster-port', String(busPort)],
        ...['--cluster-node-timeout', String(HURRIED_MS), ...QUICK_COPIES],
      ],
    })
    return { server, busPort, admin: new Redis(port) }
  })
}

/** The name under which the Sentinels watch the master. */
const NAME = 'records'

interface Sentinel {
  readonly port: number
  stop(): Promise<void>
}

function startSentinel(masterPort: number): Promise<Sentinel> {
  return onFreePorts(1, async (port) => {
    const file = findRedis()
    if (file === undefined) throw new Error('redis-server is not installed')
    // Sentinel writes what it learns into its file.
    const folder = await mkdtemp(join(tmpdir(), 'oncekey-sentinel-'))
    const config = join(folder, 'sentinel.conf')
    await writeFile(config, sentinelConfig({ port, folder, masterPort }))
    const program = await startProgram({
      file,
      args: [config, '--sentinel'],
      isReady: () => answersPing(port),
    })
    await withAdmin(port, async (admin) => {
      // Sentinels find each other by what they publish. Every two seconds, if nobody asks for more.
      await admin.call('SENTINEL', 'DEBUG', 'publish-period', '100')
      // One that had to wait two seconds for the processor believes nothing for thirty. Machines are busy in tests.
      await admin.call('SENTINEL', 'DEBUG', 'tilt-trigger', '30000')
    })
    return {
      port,
      async stop() {
        await program.stop()
        await rm(folder, { recursive: true, force: true })
      },
    }
  })
}

function sentinelConfig(where: {
  readonly port: number
  readonly folder: string
  readonly masterPort: number
}): string {
  return `port ${where.port}
bind 127.0.0.1
dir ${where.folder}
sentinel monitor ${NAME} 127.0.0.1 ${where.masterPort} 2
sentinel down-after-milliseconds ${NAME} 1000
sentinel failover-timeout ${NAME} 2000
sentinel parallel-syncs ${NAME} 2
`
}

function knowsAll(sentinel: Redis): Promise<void> {
  return reached('the Sentinels know the replicas and each other', async () => {
    const replicas = (await sentinel.call('SENTINEL', 'REPLICAS', NAME)) as unknown[]
    const others = (await sentinel.call('SENTINEL', 'SENTINELS', NAME)) as unknown[]
    return replicas.length === 2 && others.length === 2
  })
}

async function masterOf(sentinel: Redis): Promise<number> {
  const [, port] = (await sentinel.call('SENTINEL', 'GET-MASTER-ADDR-BY-NAME', NAME)) as string[]
  return Number(port)
}

/** Talks to one server, whatever it is. */
export async function withAdmin<T>(port: number, talk: (admin: Redis) => Promise<T>): Promise<T> {
  const admin = new Redis(port, '127.0.0.1')
  try {
    return await talk(admin)
  } finally {
    admin.disconnect()
  }
}

async function reached(what: string, isSo: () => Promise<boolean>): Promise<void> {
  const givesUpAt = Date.now() + READY_WITHIN_MS
  while (!(await isSo())) {
    if (Date.now() > givesUpAt) throw new Error(`Not within ${READY_WITHIN_MS} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

async function stopAll(servers: readonly { stop(): Promise<void> }[]): Promise<void> {
  await Promise.all(servers.map((server) => server.stop()))
}
