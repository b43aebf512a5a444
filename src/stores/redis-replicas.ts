import type { RedisArgument, Send } from './redis-batch.js'
import { keySlot } from './redis-slot.js'

/** Commands that ioredis sends in one piece on one connection. */
export interface RedisPipeline {
  /** Adds a command, and gives strings of its reply as bytes. */
  callBuffer(command: string, args: RedisArgument[]): unknown
  exec(): Promise<readonly (readonly [error: Error | null, reply: unknown])[] | null>
}

/** A connection to one node, as ioredis gives it. */
export interface RedisConnection {
  pipeline(): RedisPipeline
  readonly options?: {
    readonly enableAutoPipelining?: boolean | undefined
    readonly keyPrefix?: string | undefined
    readonly host?: string | undefined
    readonly port?: number | undefined
  }
}

/** The part of an ioredis client through which a step waits for replicas: a connection, or a cluster of them. */
export interface ReplicatedClient {
  pipeline(): RedisPipeline
  readonly options?: { readonly keyPrefix?: string | undefined }
  /** Of a cluster: which nodes serve each slot, the master first. */
  readonly slots?: readonly (readonly string[])[]
  nodes?(role: 'all'): readonly RedisConnection[]
  refreshSlotsCache?(): void
}

/** How many replicas must have what a step wrote, and how long it waits for them. */
export interface ReplicaDemand {
  readonly count: number
  readonly timeoutMs: number
}

interface Step {
  readonly command: string
  readonly args: RedisArgument[]
  readonly key: string
  readonly redirections: number
  resolve(reply: unknown): void
  reject(error: unknown): void
}

/** Where the arguments of EVALSHA and EVAL have the key: after the script and the number of keys. */
const KEY_INDEX = 2

/** How much later than it should a WAIT may answer, before the next steps stop waiting for it. */
const GRACE_MS = 1000

const MOST_REDIRECTIONS = 5

/**
 * Makes a way to the server on which a script that wrote counts as done once `count` replicas have what it wrote. A
 * script says that it wrote with a positive number, alone or after the time. When too few replicas have it in time, the step rejects,
 * and what it wrote stays.
 *
 * WAIT speaks of what its own connection wrote, and the server answers nothing else on that connection meanwhile. So
 * the steps of one turn of the event loop, and those that come up while a WAIT is out, share the next one: each node has
 * at most one WAIT out, however many steps there are and however long the replicas are away. A pipeline keeps steps and
 * WAIT on one connection. When that connection breaks between them, ioredis rejects the WAIT. Sent again alone, on a
 * connection that wrote nothing, it would count every replica.
 */
export function createReplicatedSend(client: ReplicatedClient, demand: ReplicaDemand): Send {
  const { count, timeoutMs } = demand
  /** The steps that wait for their turn, by the nodes that serve them. A lane exists while it is in use. */
  const lanes = new Map<string, Step[]>()

  function enqueue(step: Step): void {
    const nodes = nodesOf(client, step.key)
    const lane = lanes.get(nodes)
    if (lane !== undefined) {
      lane.push(step)
      return
    }
    const opened = [step]
    lanes.set(nodes, opened)
    setImmediate(() => drain(nodes, opened))
  }

  async function drain(nodes: string, lane: Step[]): Promise<void> {
    while (lane.length > 0) {
      const steps: Step[] = []
      for (const step of lane.splice(0)) {
        // The slot may have gone to another node while the step waited, and a pipeline has one node.
        if (nodesOf(client, step.key) === nodes) steps.push(step)
        else enqueue(step)
      }
      // A client that drops commands in silence when it reconnects, as its options allow, must not close the lane.
      if (steps.length > 0) await atMost(timeoutMs + GRACE_MS, sendTogether(steps))
    }
    lanes.delete(nodes)
  }

  /** Sends `steps` and their WAIT, and settles each of the steps. Never rejects. */
  async function sendTogether(steps: readonly Step[], through?: RedisPipeline): Promise<void> {
    try {
      const pipeline = through ?? client.pipeline()
      for (const { command, args } of steps) pipeline.callBuffer(command, args)
      pipeline.callBuffer('wait', [count, timeoutMs])
      const replies = (await pipeline.exec())?.slice(-steps.length - 1)
      const waited = replies?.at(-1) ?? NOTHING
      for (const [index, step] of steps.entries()) settle(step, replies?.[index] ?? NOTHING, waited)
    } catch (error) {
      for (const step of steps) step.reject(error)
    }
  }

  function settle(step: Step, [error, reply]: Reply, [waitError, acknowledged]: Reply): void {
    if (error !== null) {
      if (!follow(step, error)) step.reject(error)
    } else if (!wrote(reply)) step.resolve(reply)
    else if (waitError !== null) step.reject(waitError)
    else if (Number(acknowledged) >= count) step.resolve(reply)
    else step.reject(new Error(`${acknowledged} of ${count} replicas have the record after ${timeoutMs} ms`))
  }

  /**
   * Sends the step on to where a cluster says that its slot is, or is going.
   *
   * @returns `false` when the error says nothing of the kind, or names a node that the client has not met yet.
   */
  function follow(step: Step, error: Error): boolean {
    const [kind, , address] = error.message.split(' ')
    if (client.slots === undefined || (kind !== 'MOVED' && kind !== 'ASK')) return false
    if (kind === 'MOVED') client.refreshSlotsCache?.()
    const node = client.nodes?.('all').find(({ options }) => `${options?.host}:${options?.port}` === address)
    if (node === undefined || step.redirections === MOST_REDIRECTIONS) return false
    // The connection to a node puts its own prefix before keys, where it has one, and knows nothing of the cluster's.
    const prefix = node.options?.keyPrefix ?? ''
    const key = prefixed(client, step.key)
    if (!key.startsWith(prefix)) return false
    const args = step.args.with(KEY_INDEX, key.slice(prefix.length))
    const pipeline = node.pipeline()
    if (kind === 'ASK') pipeline.callBuffer('asking', [])
    void sendTogether([{ ...step, args, redirections: step.redirections + 1 }], pipeline)
    return true
  }

  return (command, args) =>
    new Promise((resolve, reject) => {
      enqueue({ command, args, key: String(args[KEY_INDEX]), redirections: 0, resolve, reject })
    })
}

type Reply = readonly [error: Error | null, reply: unknown]

const NOTHING: Reply = [new Error('Redis did not answer'), undefined]

/**
 * A script that wrote answers with a fence or with 1, and one that changed nothing with 0 or with what it found. One that
 * takes any number of keys answers with the time and a reply for each.
 */
function wrote(reply: unknown): boolean {
  const own: unknown = Array.isArray(reply) ? reply[1] : reply
  return typeof own === 'number' && own > 0
}

/** Which nodes serve the key, as one name. Keys whose nodes have one name may go in one pipeline. */
function nodesOf(client: ReplicatedClient, key: string): string {
  if (client.slots === undefined) return ''
  const slot = keySlot(prefixed(client, key))
  // Before a cluster is known, or while nobody serves the slot, its keys go by themselves.
  return client.slots[slot]?.join(';') ?? `slot ${slot}`
}

function prefixed(client: ReplicatedClient, key: string): string {
  return `${client.options?.keyPrefix ?? ''}${key}`
}

/** Resolves when `work` has, and at the latest after `ms`. */
function atMost(ms: number, work: Promise<void>): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms)
    timer.unref()
    work.finally(() => {
      clearTimeout(timer)
      resolve()
    })
  })
}
