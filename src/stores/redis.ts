import { createHash } from 'node:crypto'
import { OptionsError, StoreUnfitError } from '../contract/errors.js'
import type { IdempotencyStore } from '../contract/store.js'
import { createSend, type RedisArgument, type RedisSender } from './redis-batch.js'
import { asClaimResult, asStoredRecord, decodeRecord, encodeOutcome } from './redis-record.js'

export type { RedisArgument, RedisSender } from './redis-batch.js'

import { CLAIM, COMPLETE, FIND, RELEASE, RENEW, SETTLE, UNKNOWN_FORMAT } from './redis-scripts.js'

/** The part of an ioredis client that the Redis store uses: `Redis` or `Cluster`, of ioredis 5 and 6. */
export interface RedisClient extends RedisSender {
  info(section: string): Promise<string>
  config(subcommand: 'GET', parameter: string): Promise<unknown>
  /** What the client was made with; a cluster has the options of its connections apart. */
  readonly options?: ConnectionOptions & { readonly redisOptions?: ConnectionOptions | undefined }
  /** The nodes of a cluster. */
  nodes?(role: 'master'): readonly Pick<RedisClient, 'info' | 'config'>[]
}

interface ConnectionOptions {
  readonly socketTimeout?: number | undefined
}

/** How records are named. */
export interface RedisStoreOptions {
  /**
   * What every key begins with. The client's own `keyPrefix` comes before it.
   *
   * @default 'oncekey:'
   */
  readonly prefix?: string
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
}

/**
 * Keeps records in Redis: one node, Sentinel or Cluster. Every step is one script on one key, and one round trip. The
 * client stays yours: it is never closed. What a failover can lose is said in `docs/stores.md`.
 *
 * @throws {OptionsError} when the client lacks a method, or an option is wrong.
 */
export function redisStore(client: RedisClient, options: RedisStoreOptions = {}): IdempotencyStore {
  const { prefix = 'oncekey:' } = options
  if (typeof client?.callBuffer !== 'function' || typeof client.info !== 'function')
    throw new OptionsError('redisStore: the client must be an ioredis Redis or Cluster, version 5 or 6')
  if (typeof prefix !== 'string')
    throw new OptionsError(`redisStore: option "prefix" must be a string; got ${String(prefix)}`)

  const send = createSend(client)

  function run({ text, sha }: Script, id: string, args: readonly RedisArgument[]): Promise<unknown> {
    const command = [sha, 1, prefix + id, ...args]
    return send('evalsha', command).catch((error: unknown) => {
      // A restart or SCRIPT FLUSH forgets scripts. The first EVAL of a node brings it back.
      if (!messageOf(error).startsWith('NOSCRIPT')) return refuse(error)
      command[0] = text
      return send('eval', command).catch(refuse)
    })
  }

  async function succeeds(script: Script, id: string, args: readonly RedisArgument[]): Promise<boolean> {
    return (await run(script, id, args)) === 1
  }

  return {
    async claim({ id, token, fingerprint, leaseMs, ttlMs, takeOver, meta }) {
      const rememberedMs = Math.max(leaseMs, ttlMs)
      const args = [token, fingerprint, leaseMs, rememberedMs, takeOver ? '1' : '0', JSON.stringify(meta)]
      const reply = await run(scripts.claim, id, args)
      if (typeof reply === 'number') return { status: 'acquired', fence: reply }
      const [now, record] = reply as [number, Buffer]
      return asClaimResult(decodeRecord(record), now)
    },

    renew: (id, token, leaseMs) => succeeds(scripts.renew, id, [token, leaseMs]),

    complete: (id, token, outcome, ttlMs) =>
      succeeds(scripts.complete, id, [token, ...encodeOutcome(outcome), ttlMs]),

    release: (id, token) => succeeds(scripts.release, id, [token]),

    async find(id) {
      const reply = await run(scripts.find, id, [])
      if (reply === null) return undefined
      const [now, record, expiresInMs] = reply as [number, Buffer, number]
      return asStoredRecord(id, decodeRecord(record), { now, expiresInMs })
    },

    settle(id, resolution, ttlMs) {
      if (resolution === 'release') return succeeds(scripts.settle, id, ['release'])
      return succeeds(scripts.settle, id, ['outcome', ...encodeOutcome(resolution), ttlMs])
    },

    async check() {
      const nodes = client.nodes?.('master') ?? [client]
      const warnings = await Promise.all(nodes.map(warningsOf))
      // The nodes of a cluster are usually set up alike: each sentence once.
      return [...new Set([...clientWarnings(client), ...warnings.flat()])]
    },
  }
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

function clientWarnings({ options }: Pick<RedisClient, 'options'>): readonly string[] {
  if (options === undefined || (options.redisOptions ?? options).socketTimeout !== undefined) return []
  return [
    'The Redis client has no socketTimeout: a connection that dies in silence would hold up every request for as long as the operating system believes in it, which can be a quarter of an hour. Set socketTimeout to 5000',
  ]
}

async function warningsOf(node: Pick<RedisClient, 'info' | 'config'>): Promise<readonly string[]> {
  const [memory, persistence] = await Promise.all([node.info('memory'), node.info('persistence')])
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
