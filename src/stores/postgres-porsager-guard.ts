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
  /** From now on no statement is let through. */
  end(reason: unknown): void
  /** The connection is gone: it ends, and postgres.js will not hear how its work did. */
  lose(reason: unknown): void
  /** Runs a piece of work for postgres.js, which commits or rolls back when it settles. Lost, it never does. */
  hold(work: () => Promise<void>): Promise<void>
}

/** The part of a query of postgres.js that is ours to touch. It is sent when somebody first waits for it. */
interface LazyQuery {
  handler?: (query: LazyQuery) => unknown
  reject?: (reason: unknown) => void
}

type Callable = (...args: unknown[]) => unknown

const UNKNOWN_VERSION =
  'postgresJs: this version of postgres has queries that cannot be kept within their transaction'

/** Makes the guard of one transaction. */
export function createTransactionGuard(): TransactionGuard {
  let refusal: { readonly reason: unknown } | undefined
  let isLost = false
  const losses: ((reason: unknown) => void)[] = []

  /** Looks when the query is sent, which may be long after it was made, and at how it fails. */
  function watched(made: unknown): unknown {
    if (!(made instanceof Promise)) return made
    const query = made as LazyQuery
    const { handler, reject } = query
    if (handler === undefined || reject === undefined) throw new Error(UNKNOWN_VERSION)
    query.handler = Object.assign(
      (sent: LazyQuery) => (refusal === undefined ? handler(sent) : reject(refusal.reason)),
      handler,
    )
    query.reject = (reason) => {
      if (isConnectionError(reason)) end(reason)
      reject(reason)
    }
    return made
  }

  function end(reason: unknown): void {
    refusal ??= { reason }
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
    const lost = new Promise((_, reject) => losses.push(reject))
    return Promise.race([original.apply(client, args.map(withGuardedClient)), lost])
  }

  /** The work of a savepoint gets a client of its own. */
  function withGuardedClient(arg: unknown): unknown {
    if (typeof arg !== 'function') return arg
    return async (client: object) => {
      let value: unknown
      await hold(async () => {
        const made: unknown = await arg(guarded(client))
        // As postgres.js has it, work may give a list of queries.
        value = Array.isArray(made) ? await Promise.all(made) : made
      })
      return value
    }
  }

  async function hold(work: () => Promise<void>): Promise<void> {
    let hasFailed = true
    try {
      await work()
      hasFailed = false
    } finally {
      // A connection that goes fails its statement first, and postgres.js says a moment later that it is gone.
      if (hasFailed || refusal !== undefined) await new Promise(setImmediate)
      if (isLost) await new Promise(() => {})
    }
  }

  return {
    guarded,
    hold,
    end,
    lose(reason) {
      end(reason)
      isLost = true
      for (const reject of losses) reject(reason)
    },
  }
}

/** Whether an error is of a connection: the system's, or what postgres.js or a server that closes it says in its place. */
function isConnectionError(reason: unknown): boolean {
  if (typeof reason !== 'object' || reason === null) return false
  return 'errno' in reason || ('severity' in reason && reason.severity === 'FATAL')
}
