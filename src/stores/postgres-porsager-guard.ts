/**
 * Keeps the statements of one transaction of postgres.js within it. When a connection is lost, postgres.js lets its
 * transaction go on: what is sent then runs on whichever connection takes the lost one's place, without a transaction or
 * in the middle of somebody else's, or ends the process.
 *
 * @see https://github.com/porsager/postgres/pull/1155
 * @see https://github.com/porsager/postgres/pull/1215
 */
export interface TransactionGuard {
  /** The client of the transaction, which refuses every statement once the transaction is over. */
  guarded<T extends object>(client: T): T
  /** From now on no statement of the application is let through. */
  end(reason: unknown): void
  /** The connection is gone. */
  lose(reason: unknown): void
  /**
   * Sends the statement that ends the transaction, unless the connection is gone, and waits no longer than it is there.
   *
   * @throws why it is gone.
   */
  unlessLost<T>(send: () => PromiseLike<T>): Promise<T>
  /** Whether the connection is known to be gone. */
  readonly isLost: boolean
}

/** The part of a query of postgres.js that is ours to touch. It is sent when somebody first waits for it. */
interface LazyQuery {
  handler?: (query: LazyQuery) => unknown
  resolve?: (value: unknown) => void
  reject?: (reason: unknown) => void
}

type Callable = (...args: unknown[]) => unknown

const UNKNOWN_VERSION =
  'postgresJs: this version of postgres has queries that cannot be kept within their transaction'

/** Makes the guard of one transaction. */
export function createTransactionGuard(): TransactionGuard {
  let refusal: { readonly reason: unknown } | undefined
  let loss: { readonly reason: unknown } | undefined
  /** Whoever waits for an answer of the connection. Not all of them are told when it goes. */
  const onLoss = new Set<(reason: unknown) => void>()

  /** Looks when the query is sent, which may be long after it was made, and at how it fails. */
  function watched(made: unknown): unknown {
    if (!(made instanceof Promise)) return made
    const query = made as LazyQuery
    const { handler, resolve, reject } = query
    if (handler === undefined || resolve === undefined || reject === undefined)
      throw new Error(UNKNOWN_VERSION)
    const send = (sent: LazyQuery): unknown => {
      if (refusal !== undefined) return reject(refusal.reason)
      onLoss.add(reject)
      return handler(sent)
    }
    query.handler = Object.assign(send, handler)
    query.resolve = (value) => {
      onLoss.delete(reject)
      resolve(value)
    }
    query.reject = (reason) => {
      onLoss.delete(reject)
      // The connection is only on its way to be closed, but what is sent there now would never be answered.
      if (isConnectionError(reason)) lose(reason)
      reject(reason)
    }
    return made
  }

  function end(reason: unknown): void {
    refusal ??= { reason }
  }

  function lose(reason: unknown): void {
    end(reason)
    loss ??= { reason }
    for (const reject of onLoss) reject(reason)
    onLoss.clear()
  }

  function untilLost<T>(promise: PromiseLike<T>): Promise<T> {
    return Promise.race([promise, new Promise<never>((_, reject) => onLoss.add(reject))])
  }

  function guarded<T extends object>(client: T): T {
    return new Proxy(client, {
      apply(target, self, args) {
        return watched(Reflect.apply(target as unknown as Callable, self, args))
      },
      get(target, name) {
        const value: unknown = Reflect.get(target, name)
        if (typeof value !== 'function') return value
        if (name === 'savepoint') return (...args: unknown[]) => savepoint(target, value as Callable, args)
        if (name !== 'unsafe' && name !== 'file') return value
        return (...args: unknown[]) => watched(value.apply(target, args))
      },
    })
  }

  async function savepoint(client: object, original: Callable, args: unknown[]): Promise<unknown> {
    if (refusal !== undefined) throw refusal.reason
    return untilLost(original.apply(client, args.map(withGuardedClient)) as Promise<unknown>)
  }

  /** The work of a savepoint gets a client of its own. */
  function withGuardedClient(arg: unknown): unknown {
    if (typeof arg !== 'function') return arg
    return async (client: object) => {
      try {
        const made: unknown = await arg(guarded(client))
        // As postgres.js has it, work may give a list of queries.
        return Array.isArray(made) ? await Promise.all(made) : made
      } catch (error) {
        // postgres.js would roll back to the savepoint, wherever that is by now.
        if (loss !== undefined) await new Promise(() => {})
        throw error
      }
    }
  }

  return {
    guarded,
    end,
    lose,
    get isLost() {
      return loss !== undefined
    },
    unlessLost(send) {
      if (loss !== undefined) return Promise.reject(loss.reason)
      return untilLost(send())
    },
  }
}

/** Whether an error is of a connection: the system's, or what postgres.js or a server that closes it says in its place. */
function isConnectionError(reason: unknown): boolean {
  if (typeof reason !== 'object' || reason === null) return false
  return 'errno' in reason || ('severity' in reason && reason.severity === 'FATAL')
}
