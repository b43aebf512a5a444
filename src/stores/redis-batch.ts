/** What a command takes. */
export type RedisArgument = string | number | Buffer

/** The part of an ioredis pipeline that the Redis store uses. */
export interface RedisPipeline {
  callBuffer(command: string, args: RedisArgument[]): unknown
  exec(): Promise<[error: Error | null, reply: unknown][] | null>
}

/** The part of an ioredis client that sends commands. */
export interface RedisSender {
  /** Sends a command, and gives strings of the reply as bytes. */
  callBuffer(command: string, args: RedisArgument[]): Promise<unknown>
  pipeline?(): RedisPipeline
  /** The nodes, where the client is one of a cluster. */
  nodes?: unknown
}

/** Sends one command. */
export type Send = (command: string, args: RedisArgument[]) => Promise<unknown>

interface Waiting {
  readonly command: string
  readonly args: RedisArgument[]
  resolve(reply: unknown): void
  reject(error: unknown): void
}

/**
 * Makes the way to the server. Commands that come up in one turn of the event loop leave together, in one write: under
 * load that saves most of what sending costs, and alone a command leaves at the end of its turn. Each is still a step and
 * a reply of its own. On a cluster every command goes by itself, since its key decides which node it goes to.
 */
export function createSend(client: RedisSender): Send {
  if (client.pipeline === undefined || client.nodes !== undefined)
    return (command, args) => client.callBuffer(command, args)

  let waiting: Waiting[] = []

  function flush(): void {
    const batch = waiting
    waiting = []
    const pipeline = client.pipeline?.()
    if (pipeline === undefined) return
    for (const { command, args } of batch) pipeline.callBuffer(command, args)
    pipeline.exec().then(
      (replies) => settle(batch, replies ?? []),
      (error: unknown) => {
        for (const { reject } of batch) reject(error)
      },
    )
  }

  return (command, args) =>
    new Promise((resolve, reject) => {
      if (waiting.push({ command, args, resolve, reject }) === 1) setImmediate(flush)
    })
}

function settle(batch: readonly Waiting[], replies: readonly [Error | null, unknown][]): void {
  for (const [index, { resolve, reject }] of batch.entries()) {
    const [error, reply] = replies[index] ?? [
      new Error('Redis gave fewer replies than it got commands'),
      undefined,
    ]
    if (error === null) resolve(reply)
    else reject(error)
  }
}
