/** What a command takes. */
export type RedisArgument = string | number | Buffer

/** The part of an ioredis client that sends commands. */
export interface RedisSender {
  /** Sends a command, and gives strings of the reply as bytes. */
  callBuffer(command: string, args: RedisArgument[]): Promise<unknown>
  /** The connection of a client to one node. A cluster has none of its own. */
  readonly stream?: { cork(): void; uncork(): void } | undefined
}

/** Sends one command. */
export type Send = (command: string, args: RedisArgument[]) => Promise<unknown>

/**
 * Makes the way to the server. Commands that come up in one turn of the event loop leave together, in one write: under
 * load, writing to the socket costs more than everything else of a step. Alone, a command leaves at the end of its turn.
 */
export function createSend(client: RedisSender): Send {
  let isCorked = false
  return (command, args) => {
    const { stream } = client
    if (!isCorked && stream !== undefined) {
      isCorked = true
      stream.cork()
      setImmediate(() => {
        isCorked = false
        stream.uncork()
      })
    }
    return client.callBuffer(command, args)
  }
}
