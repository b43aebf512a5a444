import { randomUUID } from 'node:crypto'
import { Redis } from 'ioredis'
import { Pool } from 'pg'
import { inject } from 'vitest'
import { recordId, scopeHash } from '../../src/contract/key.js'
import type { IdempotencyStore, Outcome } from '../../src/contract/store.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { redisStore } from '../../src/stores/redis.js'
import { aClaim, HOUR, until } from '../../src/testing/store-fixtures.js'

/** A store with records of its own, and what the operator's command needs to find them. */
export interface OperatedStore {
  readonly kind: 'redis' | 'postgres'
  readonly store: IdempotencyStore & Required<Pick<IdempotencyStore, 'list'>>
  /** What the URL is, which is in the environment of the command. */
  readonly url: string
  readonly environment: Readonly<Record<string, string>>
  /** The option that names its prefix or table. */
  readonly flag: string
  close(): Promise<void>
}

/** Makes a store among those that all tests share: by its prefix or its table, it has only what is put there. */
export async function operatedStore(kind: OperatedStore['kind']): Promise<OperatedStore> {
  const { redisUrl, postgresUrl } = inject('services')
  const name = `operated_${randomUUID().slice(0, 8)}`
  if (kind === 'redis') {
    const client = new Redis(redisUrl)
    const store = redisStore(client, { prefix: `${name}:` })
    return operated(kind, store, redisUrl, `--prefix=${name}:`, async () => client.disconnect())
  }
  const pool = new Pool({ connectionString: postgresUrl, max: 4 })
  const store = postgresStore(pool, { table: name })
  await store.migrate()
  return operated(kind, store, postgresUrl, `--table=${name}`, async () => {
    await pool.query(`drop table ${name} cascade`)
    await pool.end()
  })
}

function operated(
  kind: OperatedStore['kind'],
  store: IdempotencyStore,
  url: string,
  flag: string,
  close: () => Promise<void>,
): OperatedStore {
  return {
    kind,
    store: store as OperatedStore['store'],
    url,
    environment: { ONCEKEY_STORE: url },
    flag,
    close,
  }
}

/** An operation that a test has an operator look at. */
export interface OperatedRecord {
  readonly id: string
  readonly key: string
  readonly token: string
}

/** Which operation. */
export interface OperationGiven {
  readonly key?: string
  readonly scope?: string
  readonly namespace?: string
  readonly route?: string
  readonly firstSeenAt?: number
  readonly fingerprint?: string
  /** How long it is remembered. @default an hour */
  readonly ttlMs?: number
}

/** A claim that somebody holds. */
export async function aRunning(store: IdempotencyStore, given: OperationGiven = {}): Promise<OperatedRecord> {
  const { key = randomUUID(), scope = 'shared', namespace = '', route = 'POST /payments' } = given
  const id = recordId({ namespace, scope, key })
  const meta = {
    key,
    route,
    scope: scopeHash(namespace, scope),
    firstSeenAt: given.firstSeenAt ?? Date.now(),
  }
  const { fingerprint, ttlMs = HOUR } = given
  const claim = aClaim({ id, meta, ttlMs, ...(fingerprint !== undefined && { fingerprint }) })
  await store.claim(claim)
  return { id, key, token: claim.token }
}

/** A claim whose lease has lapsed. */
export async function anUnknown(
  store: IdempotencyStore,
  given: OperationGiven = {},
): Promise<OperatedRecord> {
  const record = await aRunning(store, given)
  await store.renew(record.id, record.token, 1)
  await until(store, record.id, (found) => found?.status === 'unknown')
  return record
}

/** An operation that has ended. */
export async function aCompleted(
  store: IdempotencyStore,
  outcome: Outcome,
  given: OperationGiven = {},
): Promise<OperatedRecord> {
  const record = await aRunning(store, given)
  await store.complete(record.id, record.token, outcome, HOUR)
  return record
}
