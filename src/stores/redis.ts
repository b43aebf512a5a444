import { createHash } from 'node:crypto'
import { type Duration, durationMs } from '../contract/duration.js'
import { OptionsError, OutcomeUnreadableError, StoreUnfitError } from '../contract/errors.js'
import { isPromise, type MaybePromise } from '../contract/maybe-promise.js'
import type { IdempotencyStore, StoredRecord } from '../contract/store.js'
import { type CompressionOptions, compressedAbove } from './compression.js'
import { isAskedFor } from './list-query.js'
import {
  callOn,
  createTurns,
  type Permit,
  type RedisArgument,
  type RedisSender,
  type Step,
  sharing,
} from './redis-batch.js'
import { probeSharing } from './redis-probe.js'
import { asClaimResult, asStoredRecord, encodeClaim, encodeOutcome } from './redis-record.js'
import {
  createReplicatedSend,
  type RedisConnection,
  type RedisPipeline,
  type ReplicaDemand,
  type ReplicatedClient,
} from './redis-replicas.js'
import {
  CLAIM,
  COMPLETE,
  FIND,
  LEFT_OUT,
  RELEASE,
  REMOVE,
  RENEW,
  SETTLE,
  UNKNOWN_FORMAT,
} from './redis-scripts.js'

export type { RedisArgument, RedisSender } from './redis-batch.js'
export type { RedisConnection, RedisPipeline } from './redis-replicas.js'

/** The part of an ioredis client that the Redis store uses: `Redis` or `Cluster`, of ioredis 5 and 6. */
export interface RedisClient extends RedisSender {
  info(section: string): Promise<string>
  config(subcommand: 'GET', parameter: string): Promise<unknown>
  /** What the client was made with; a cluster has the options of its connections apart. */
  readonly options?: ConnectionOptions & {
    readonly redisOptions?: ConnectionOptions | undefined
    readonly keyPrefix?: string | undefined
  }
  /** The nodes of a cluster. */
  nodes?(
    role: 'all' | 'master',
  ): readonly (RedisConnection & Pick<RedisClient, 'callBuffer' | 'info' | 'config'>)[]
  /** Needed for `waitReplicas`, and of a cluster the next three as well. */
  pipeline?(): RedisPipeline
  /** Which nodes serve each slot, the master first. */
  readonly slots?: readonly (readonly string[])[]
  refreshSlotsCache?(): void
}

interface ConnectionOptions {
  readonly enableAutoPipelining?: boolean | undefined
  readonly keyPrefix?: string | undefined
  readonly socketTimeout?: number | undefined
}

/** How records are named, and what a failover must not lose. */
export interface RedisStoreOptions {
  /**
   * What every key begins with. The client's own `keyPrefix` comes before it.
   *
   * @default 'oncekey:'
   */
  readonly prefix?: string

  /**
   * How many replicas must have a claim before anything runs, and an outcome before it counts as kept. With fewer of
   * them in time, a claim is refused (503) and given back, and an outcome is saved again in the background while its
   * answer goes out. Give the store a client of its own: Redis answers nothing else on a connection that waits.
   *
   * @default undefined, which waits for none: a failover forgets what had not been replicated
   */
  readonly waitReplicas?: WaitReplicas

  /**
   * Compresses long bodies (zlib), where that makes them shorter: less room in Redis for more processor time. Whatever is
   * set here, what another process has compressed is read. Sealed outcomes do not get shorter: give the option to
   * `sealedStore` instead.
   *
   * @default undefined, which compresses nothing
   */
  readonly compress?: CompressionOptions
}

/** Which replicas a step waits for. See "Failover" in `docs/stores.md` for how to choose. */
export interface WaitReplicas {
  /** How many replicas must have it. One fewer than there are lets one be away. */
  readonly count: number
  /**
   * How long to wait for them, from `'1ms'` to `'1m'`. A step may wait for the one before it as well: keep twice of this
   * below the engine's `storeTimeout`.
   *
   * @default '500ms'
   */
  readonly timeout?: Duration
}

interface Script {
  readonly text: string
  readonly sha: string
}

const scripts = {
  claim: script(CLAIM),
  renew: script(RENEW),
  complete: script(COMPLETE),
  release: script(RELEASE),
  find: script(FIND),
  settle: script(SETTLE),
  remove: script(REMOVE),
}

/**
 * Keeps records in Redis: one node, Sentinel or Cluster. Every step is decided by a script, in one round trip; after
 * `check`, the claims of one turn of the event loop share a command, and so do its completions. The client stays yours: it is
 * never closed. What a failover can lose is said in `docs/stores.md`.
 *
 * @throws {OptionsError} when the client lacks a method, or an option is wrong.
 */
export function redisStore(client: RedisClient, options: RedisStoreOptions = {}): IdempotencyStore {
  const { prefix = 'oncekey:' } = options
  if (typeof client?.callBuffer !== 'function' || typeof client.info !== 'function')
    throw new OptionsError('redisStore: the client must be an ioredis Redis or Cluster, version 5 or 6')
  if (typeof prefix !== 'string')
    throw new OptionsError(`redisStore: option "prefix" must be a string; got ${String(prefix)}`)

  const above = compressedAbove(options.compress, 'redisStore')
  const demand = options.waitReplicas === undefined ? undefined : demandOf(options.waitReplicas)

  const turns = createTurns(client)
  const { send } = turns
  // A lost claim is a second run, and a lost outcome an answer that nobody can repeat: both wait for replicas, and so does
  // what an operator settles. The others lose nothing by it. A lost release leaves a claim that lapses: refused, though
  // nothing ran. A lost renewal leaves a lease that ends a third of its length too soon, unless the next renewal comes
  // first, as after a stall. A replay gives what the first caller has too: the process that completed goes on until the
  // replicas have it, and should that be lost as well, they have its claim, and the operation is unknown, not absent.
  const sendDurably = demand === undefined ? send : createReplicatedSend(withPipelines(client), demand)

  /** Runs a script on records. */
  async function evaluate(
    { text, sha }: Script,
    keys: readonly string[],
    args: readonly RedisArgument[],
    through = send,
  ): Promise<unknown> {
    const command = [sha, keys.length, ...keys, ...args]
    try {
      return await through('evalsha', command)
    } catch (error) {
      // A restart or SCRIPT FLUSH forgets scripts. The first EVAL of a node brings it back.
      if (!messageOf(error).startsWith('NOSCRIPT')) return refuse(error)
      return await through('eval', command.with(0, text)).catch(refuse)
    }
  }

  // A cluster takes no command whose keys are on several nodes, and steps that wait for replicas share their wait.
  const mayEverShare = demand === undefined && client.nodes === undefined
  /** Given by the check alone: until it has seen that keys of one command get to where they belong, each has its own. */
  const permit: Permit = { isGiven: false }

  /** A step whose script takes any number of keys. */
  function step<T>(
    script: Script,
    read: (reply: unknown, now: number) => MaybePromise<T>,
    leftOut?: unknown,
  ): Step<T> {
    const readOrRefuse = (reply: unknown, now: number): MaybePromise<T> =>
      reply instanceof Error ? refuse(reply) : read(reply, now)
    if (mayEverShare)
      return sharing({
        permit,
        turns,
        evaluate: (keys, args) => evaluate(script, keys, args),
        leftOut,
        read: readOrRefuse,
      })
    return async (key, args) => {
      const [now, reply] = (await evaluate(script, [key], args, sendDurably)) as [number, unknown]
      return readOrRefuse(reply, now)
    }
  }

  const claim = step(scripts.claim, asClaimResult, LEFT_OUT)
  const complete = step(scripts.complete, isOne)

  async function succeeds(
    script: Script,
    id: string,
    args: readonly RedisArgument[],
    through = send,
  ): Promise<boolean> {
    return isOne(await evaluate(script, [prefix + id], args, through))
  }

  async function find(id: string): Promise<StoredRecord | undefined> {
    const reply = await evaluate(scripts.find, [prefix + id], [])
    if (reply === null) return undefined
    const [now, record, expiresInMs] = reply as [number, Buffer, number]
    return asStoredRecord(id, record, { now, expiresInMs })
  }

  async function findReadable(id: string): Promise<StoredRecord | undefined> {
    try {
      return await find(id)
    } catch (error) {
      if (error instanceof StoreUnfitError || error instanceof OutcomeUnreadableError) return undefined
      throw error
    }
  }

  async function sharingWarnings(): Promise<readonly string[]> {
    if (!mayEverShare) return []
    try {
      const result = await probeSharing(send, prefix)
      permit.isGiven = result === 'safe'
      return result === 'lost' ? [ROUTED_BY_FIRST_KEY] : []
    } catch (error) {
      return [
        `Whether steps may share commands could not be tried (${messageOf(error)}): ${permit.isGiven ? 'they go on sharing them' : 'they are sent one by one'} until the next check, as at a start`,
      ]
    }
  }

  /** The ids of all records, a page at a time, of every master of a cluster. */
  async function* scan(): AsyncIterable<readonly string[]> {
    // The client puts its own prefix before the key of a script, and neither before a pattern nor before what it finds.
    const { options } = client
    const before = `${options?.keyPrefix ?? options?.redisOptions?.keyPrefix ?? ''}${prefix}`
    const pattern = `${before.replaceAll(/[\\*?[\]]/g, '\\$&')}*`
    for (const node of client.nodes?.('master') ?? [client])
      for (let cursor = '0'; ; ) {
        const reply = await callOn(node, 'scan', [cursor, 'MATCH', pattern, 'COUNT', SCAN_COUNT])
        const [next, keys] = reply as [Buffer, Buffer[]]
        yield keys.map((key) => key.toString().slice(before.length)).filter((id) => RECORD_ID.test(id))
        cursor = next.toString()
        if (cursor === '0') break
      }
  }

  return {
    claim(request) {
      const { id, leaseMs, ttlMs, takeOver } = request
      const limits = `${leaseMs} ${Math.max(leaseMs, ttlMs)} ${takeOver ? '1' : '0'}`
      return claim(prefix + id, [limits, encodeClaim(request)])
    },

    renew: (id, token, leaseMs) => succeeds(scripts.renew, id, [token, leaseMs]),

    complete(id, token, outcome, ttlMs) {
      const keep = (encoded: string | Buffer) => complete(prefix + id, [token, ttlMs, encoded])
      const encoded = encodeOutcome(outcome, above)
      return isPromise(encoded) ? encoded.then(keep) : keep(encoded)
    },

    release: (id, token) => succeeds(scripts.release, id, [token]),

    find,

    async settle(id, resolution, ttlMs) {
      const args = resolution === 'release' ? [resolution] : [ttlMs, await encodeOutcome(resolution, above)]
      return succeeds(scripts.settle, id, args, sendDurably)
    },

    async *list({ limit = Number.POSITIVE_INFINITY, signal, ...query }) {
      if (limit < 1 || signal?.aborted) return
      // A scan may come to a key twice.
      const found = new Set<string>()
      for await (const page of scan()) {
        // A page of a scan may be empty, and so may all of them.
        if (signal?.aborted) return
        for (let read = 0; read < page.length; read += LIST_PAGE) {
          if (signal?.aborted) return
          const records = await Promise.all(page.slice(read, read + LIST_PAGE).map(findReadable))
          for (const record of records) {
            if (record === undefined || found.has(record.id) || !isAskedFor(record, query)) continue
            found.add(record.id)
            yield record
            if (found.size >= limit) return
          }
        }
      }
    },

    remove: (id) => succeeds(scripts.remove, id, [], sendDurably),

    async check() {
      const nodes = client.nodes?.('master') ?? [client]
      const warnings = await Promise.all([
        ...nodes.map((node) => warningsOf(node, demand)),
        sharingWarnings(),
      ])
      // The nodes of a cluster are usually set up alike: each sentence once.
      return [...new Set([...clientWarnings(client), ...warnings.flat()])]
    },
  }
}

function isOne(reply: unknown): boolean {
  return reply === 1
}

/** How many keys a step of a scan looks at. */
const SCAN_COUNT = 500

/** How many records a list reads at once. Each has its body, which may be a megabyte. */
const LIST_PAGE = 50

/** What an id looks like: somebody else's keys may begin with the same prefix. */
const RECORD_ID = /^[\w-]{43}$/

function demandOf(given: WaitReplicas): ReplicaDemand {
  if (typeof given !== 'object' || given === null)
    throw new OptionsError(
      `redisStore: option "waitReplicas" must be { count, timeout }; got ${String(given)}`,
    )
  const { count, timeout = '500ms' } = given
  if (!Number.isSafeInteger(count) || count < 1)
    throw new OptionsError(
      `redisStore: option "waitReplicas.count" must be a whole number of at least 1; got ${String(count)}`,
    )
  const timeoutMs = durationMs(timeout)
  // WAIT takes 0 for "as long as it takes", and would hold its connection until the replicas are back.
  if (timeoutMs === undefined || timeoutMs < 1 || timeoutMs > 60_000)
    throw new OptionsError(
      `redisStore: option "waitReplicas.timeout" must be a duration such as '500ms', from 1ms to 1m; got ${String(timeout)}`,
    )
  return { count, timeoutMs }
}

function withPipelines(client: RedisClient): ReplicatedClient {
  if (typeof client.pipeline === 'function') return client as ReplicatedClient
  throw new OptionsError('redisStore: option "waitReplicas" needs a client with pipelines, as ioredis has')
}

function script(text: string): Script {
  return { text, sha: createHash('sha1').update(text).digest('hex') }
}

function refuse(error: unknown): never {
  if (!messageOf(error).includes(UNKNOWN_FORMAT)) throw error
  throw new StoreUnfitError(
    'Redis holds a record that a newer version of oncekey wrote: update this service',
    {
      cause: error,
    },
  )
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : ''
}

const ROUTED_BY_FIRST_KEY =
  'What the Redis client is connected to routes commands by their first key: steps are sent one by one. Connect it to Redis itself, or use a Cluster'

function clientWarnings({ options }: Pick<RedisClient, 'options'>): readonly string[] {
  if (options === undefined || (options.redisOptions ?? options).socketTimeout !== undefined) return []
  return [
    'The Redis client has no socketTimeout: a connection that dies in silence would hold up every request for as long as the operating system believes in it, which can be a quarter of an hour. Set socketTimeout to 5000',
  ]
}

async function warningsOf(
  node: Pick<RedisClient, 'info' | 'config'>,
  demand: ReplicaDemand | undefined,
): Promise<readonly string[]> {
  const sections = ['memory', 'persistence', 'replication']
  const [memory = '', persistence = '', replication = ''] = await Promise.all(
    sections.map((section) => node.info(section)),
  )
  const warnings: string[] = []
  const policy = fieldOf(memory, 'maxmemory_policy')
  if (policy !== undefined && policy !== 'noeviction')
    warnings.push(
      `Redis may evict records (maxmemory-policy is ${policy}), and a retry of an evicted operation runs it again: set it to noeviction`,
    )
  if (fieldOf(persistence, 'aof_enabled') === '0')
    warnings.push(
      (await hasNoSnapshots(node))
        ? 'Redis persists nothing: after a restart, a retry of any operation runs it again. Set appendonly to yes'
        : 'Redis persists snapshots only: after a crash, a retry of an operation since the last one runs it again. Set appendonly to yes',
    )
  const replicas = Number(fieldOf(replication, 'connected_slaves') ?? 0)
  if (demand !== undefined && replicas < demand.count)
    warnings.push(
      `waitReplicas asks for ${demand.count}, and a master of Redis has ${replicas}: claims are refused until it has enough`,
    )
  return warnings
}

async function hasNoSnapshots(node: Pick<RedisClient, 'config'>): Promise<boolean> {
  try {
    const reply = await node.config('GET', 'save')
    return Array.isArray(reply) && String(reply[1]) === ''
  } catch {
    // Managed services forbid CONFIG. Then the milder of the two sentences is said.
    return false
  }
}

function fieldOf(info: string, name: string): string | undefined {
  return new RegExp(`^${name}:(.*?)\\r?$`, 'm').exec(info)?.[1]
}
