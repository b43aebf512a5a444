import type { MaybePromise } from '../contract/maybe-promise.js'

/** What a command takes. */
export type RedisArgument = string | number | Buffer

/** The part of an ioredis client that sends commands. */
export interface RedisSender {
  /** Sends a command, and gives strings of the reply as bytes. */
  callBuffer(command: string, args: RedisArgument[]): Promise<unknown>
  /** The connection of a client to one node. A cluster has none of its own. */
  readonly stream?: { cork(): void; uncork(): void } | undefined
  /** What the client was made with. */
  readonly options?: { readonly enableAutoPipelining?: boolean | undefined } | undefined
}

/** Sends one command. */
export type Send = (command: string, args: RedisArgument[]) => Promise<unknown>

/** Sends one command, and gives strings of the reply as bytes. */
export function callOn(client: RedisSender, command: string, args: RedisArgument[]): Promise<unknown> {
  if (client.options?.enableAutoPipelining !== true) return client.callBuffer(command, args)
  // A client that pipelines by itself loses the name of what is called by its name, and ends the process over it.
  const named = client as unknown as Record<string, (...args: RedisArgument[]) => Promise<unknown>>
  return named[`${command}Buffer`]?.(...args) ?? client.callBuffer(command, args)
}

/** The way to the server. */
export interface Turns {
  /**
   * Sends a command. Commands that come up in one turn of the event loop leave together, in one write: under load, writing
   * to the socket costs more than everything else of a step. Alone, a command leaves at the end of its turn.
   */
  readonly send: Send
  /** Calls `work` at the end of this turn. What it sends leaves with the others. */
  atEnd(work: () => void): void
}

/** Makes the way to the server. */
export function createTurns(client: RedisSender): Turns {
  let isUnderWay = false
  let ending: (() => void)[] = []

  function begin(): void {
    if (isUnderWay) return
    isUnderWay = true
    const { stream } = client
    stream?.cork()
    setImmediate(() => {
      const works = ending
      ending = []
      for (const work of works) work()
      isUnderWay = false
      stream?.uncork()
    })
  }

  return {
    send(command, args) {
      begin()
      return callOn(client, command, args)
    },
    atEnd(work) {
      begin()
      ending.push(work)
    },
  }
}

/** Whether steps may share commands now. */
export interface Permit {
  isGiven: boolean
}

/** How steps of one kind are carried out. */
export interface Sharing<T> {
  /** Without it each step goes alone. Taken back where the server says that it takes no command over several keys. */
  readonly permit: Permit
  readonly turns: Pick<Turns, 'atEnd'>
  /** Runs the script of these steps on several keys. Its reply is the server's time in ms, and a reply for each key. */
  evaluate(keys: readonly string[], args: readonly RedisArgument[]): Promise<unknown>
  /** The reply for a key whose step the script left for a command of its own. It never leaves out one that is alone. */
  readonly leftOut?: unknown
  /** Reads the reply for one key. */
  read(reply: unknown, now: number): MaybePromise<T>
}

/** Carries out a step on a key, and gives what it comes to. */
export type Step<T> = (key: string, args: readonly RedisArgument[]) => Promise<T>

interface Waiting<T> {
  readonly key: string
  readonly args: readonly RedisArgument[]
  readonly resolve: (result: MaybePromise<T>) => void
  readonly reject: (error: unknown) => void
}

/** How many steps share a command at most. Redis does nothing else while it runs a script, for some µs a step. */
const MOST_STEPS = 64

/**
 * Lets the steps of one kind that come up in one turn of the event loop share a command: what a command costs ioredis and
 * the server is more than what a step does.
 */
export function sharing<T>({ permit, turns, evaluate, leftOut, read }: Sharing<T>): Step<T> {
  let waiting: Waiting<T>[] = []

  function flush(): void {
    const steps = waiting
    waiting = []
    if (permit.isGiven) {
      if (steps.length > 0) void carryOut(steps)
    } else for (const step of steps) void carryOut([step])
  }

  /** Never rejects. */
  async function carryOut(steps: readonly Waiting<T>[]): Promise<void> {
    const keys: string[] = []
    const args: RedisArgument[] = []
    for (const step of steps) {
      keys.push(step.key)
      args.push(...step.args)
    }
    let replies: readonly unknown[]
    try {
      replies = (await evaluate(keys, args)) as unknown[]
    } catch (error) {
      // What the server refuses to one step (it has no memory left for a claim, or too few replicas) ends the script of all
      // of them. Those behind it have not been tried, and those before it are done: steps may be repeated.
      if (steps.length > 1 && isReply(error)) {
        // Some servers are clusters that pose as one node, and take commands for one of their nodes only.
        if (isAboutSlots(error)) permit.isGiven = false
        for (const step of steps) void carryOut([step])
      } else for (const { reject } of steps) reject(error)
      return
    }
    const now = replies[0] as number
    for (const [index, step] of steps.entries()) {
      const reply = replies[index + 1]
      if (steps.length > 1 && reply === leftOut) {
        void carryOut([step])
        continue
      }
      try {
        step.resolve(read(reply, now))
      } catch (error) {
        step.reject(error)
      }
    }
  }

  return (key, args) =>
    new Promise((resolve, reject) => {
      const step = { key, args, resolve, reject }
      // A command of strings goes out in one piece, and one with bytes in it in several.
      if (!permit.isGiven || args.some((arg) => typeof arg === 'object')) {
        turns.atEnd(() => void carryOut([step]))
        return
      }
      waiting.push(step)
      if (waiting.length === 1) turns.atEnd(flush)
      else if (waiting.length === MOST_STEPS) flush()
    })
}

/** Whether the server has answered with this error. Of a connection that broke nobody knows what was done. */
function isReply(error: unknown): boolean {
  return error instanceof Error && error.name === 'ReplyError'
}

/** Whether a server says that it takes no command over several keys. */
export function isAboutSlots(error: unknown): boolean {
  return error instanceof Error && /\bCROSSSLOT\b|same (hash )?slot/i.test(error.message)
}
