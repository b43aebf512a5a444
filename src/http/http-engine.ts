import { DEFAULT_POLICY } from '../core/policy.js'
import { createIdempotency, type Idempotency } from '../index.js'
import { type HttpOptions, type HttpSettings, parseHttpOptions } from './http-options.js'

/** What a registration came to: its engine, and the settings of every route that says nothing itself. */
export interface HttpEngine<TRequest> {
  readonly idempotency: Idempotency
  readonly settings: HttpSettings<TRequest>
}

/**
 * Makes the engine of an HTTP service from the options of its registration.
 *
 * @throws {OptionsError} naming the option that is wrong, its value and what would be right.
 */
export function createHttpEngine<TRequest>(
  options: HttpOptions<TRequest>,
  where: string,
): HttpEngine<TRequest> {
  const { engine, settings } = parseHttpOptions(options, DEFAULT_POLICY, where)
  const { ttlMs: ttl, leaseMs: lease, maxRunMs: maxRun, onStoreOutage, transaction } = settings.policy
  const { isolation, lockTimeoutMs: lockTimeout, attempts } = transaction
  // What runs through the engine itself, as plain functions do, keeps to the registration's policy too.
  const idempotency = createIdempotency({
    ...engine,
    ttl,
    lease,
    maxRun,
    onStoreOutage,
    transaction: {
      attempts,
      ...(isolation !== undefined && { isolation }),
      ...(lockTimeout !== undefined && { lockTimeout }),
    },
  })
  idempotency.assertSupports(settings.policy, where)
  return { idempotency, settings }
}
