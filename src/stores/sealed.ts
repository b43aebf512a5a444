import { OptionsError, OutcomeUnreadableError } from '../contract/errors.js'
import type { IdempotencyStore, Outcome, StoredRecord, TransactionEnd } from '../contract/store.js'
import { type CompressionOptions, compressedAbove } from './compression.js'
import { createSealer, isSealed } from './seal.js'
import { assertStore, passedOn } from './wrapped-store.js'

/** 32 random bytes: as they are, or as text in base64, base64url or hex. */
export type SealingKey = Uint8Array | string

/** How outcomes are sealed. */
export interface SealedStoreOptions {
  /**
   * At least one key. The first seals, and every key opens what it has sealed. To change keys, add the new one at the
   * end everywhere, then put it first everywhere, and take the old one away after the longest ttl.
   */
  readonly keys: readonly SealingKey[]
  /**
   * Whether an outcome that is not sealed is answered as it is. Only for the first ttl after sealing was switched on for
   * a store that has records: while it is on, whoever can write to the store can make up answers.
   *
   * @default false
   */
  readonly acceptUnsealed?: boolean
  /**
   * Compresses long bodies (zlib) before they are sealed, where that makes them shorter. Whatever is set here, what another
   * process has compressed is opened. How long an answer is, which everybody can see, then tells something of what is in
   * it: leave it off where a caller can put text of its own beside a secret of somebody else.
   *
   * @default undefined, which compresses nothing
   */
  readonly compress?: CompressionOptions
}

type CompletedRecord = Extract<StoredRecord, { readonly status: 'completed' }>

const KEY_BYTES = 32

/**
 * Seals every outcome (AES-256-GCM) on its way into `store`, and opens it on its way out. Whoever reads the store sees no
 * answer, and whoever writes to it can neither change an answer nor give it to another record. What it cannot open is
 * an `OutcomeUnreadableError`: never a second run, and never a wrong answer.
 *
 * Key, route, scope hash, fingerprint and result of a record stay readable.
 *
 * @throws {OptionsError} when `store` is none, or an option is wrong.
 */
export function sealedStore(store: IdempotencyStore, options: SealedStoreOptions): IdempotencyStore {
  assertStore(store, 'sealedStore: the first argument')
  const { keys, acceptUnsealed = false, compress } = options ?? {}
  if (typeof acceptUnsealed !== 'boolean')
    throw new OptionsError(
      `sealedStore: option "acceptUnsealed" must be true or false; got ${String(acceptUnsealed)}`,
    )
  const { seal, open } = createSealer(keyBytes(keys), compressedAbove(compress, 'sealedStore'))

  async function opened<T extends { readonly outcome: Outcome }>(id: string, found: T): Promise<T> {
    if (isSealed(found.outcome)) return { ...found, outcome: await open(id, found.outcome) }
    if (acceptUnsealed) return found
    throw new OutcomeUnreadableError(
      `The outcome of record ${id} is not sealed. If it was written before sealing was switched on, see option "acceptUnsealed"`,
    )
  }

  /** One record that does not open must not hide the others: it is shown without its answer. */
  async function listed(record: CompletedRecord): Promise<CompletedRecord> {
    try {
      return await opened(record.id, record)
    } catch {
      return { ...record, outcome: { result: record.outcome.result, head: '{}', body: null } }
    }
  }

  async function sealing<T>(end: TransactionEnd<T>): Promise<TransactionEnd<T>> {
    const { value, completion } = end
    if (completion === undefined) return end
    return { value, completion: { ...completion, outcome: await seal(completion.id, completion.outcome) } }
  }

  const transaction = store.transaction?.bind(store) as IdempotencyStore['transaction']
  const completeIn = store.completeIn?.bind(store)
  const list = store.list?.bind(store)
  return {
    async claim(request) {
      const found = await store.claim(request)
      return found.status === 'completed' ? opened(request.id, found) : found
    },

    renew: (id, token, leaseMs) => store.renew(id, token, leaseMs),

    complete: async (id, token, outcome, ttlMs) => store.complete(id, token, await seal(id, outcome), ttlMs),

    release: (id, token) => store.release(id, token),

    async find(id) {
      const found = await store.find(id)
      return found?.status === 'completed' ? opened(id, found) : found
    },

    settle: async (id, resolution, ttlMs) =>
      store.settle(id, resolution === 'release' ? resolution : await seal(id, resolution), ttlMs),

    ...(transaction !== undefined && {
      transaction: (work, settings) => transaction(async (client) => sealing(await work(client)), settings),
    }),

    ...(completeIn !== undefined && {
      completeIn: async (execute, id, token, outcome, ttlMs) =>
        completeIn(execute, id, token, await seal(id, outcome), ttlMs),
    }),

    ...(list !== undefined && {
      async *list(query) {
        for await (const record of list(query))
          yield record.status === 'completed' ? await listed(record) : record
      },
    }),

    ...passedOn(store, ['inbox', 'remove', 'watch', 'sweep', 'check']),
  }
}

function keyBytes(keys: unknown): readonly [Uint8Array, ...Uint8Array[]] {
  if (!Array.isArray(keys) || keys.length === 0)
    throw new OptionsError('sealedStore: option "keys" must be a list of at least one key')
  const [first, ...others]: unknown[] = keys
  return [bytesOf(first, 0), ...others.map((key, index) => bytesOf(key, index + 1))]
}

/** The message of a refusal never shows a key, not even a wrong one. */
function bytesOf(key: unknown, index: number): Uint8Array {
  if (key instanceof Uint8Array && key.byteLength === KEY_BYTES) return key
  if (typeof key === 'string' && /^[0-9a-f]{64}$/i.test(key)) return Buffer.from(key, 'hex')
  if (typeof key === 'string' && /^[\w+/-]{43}=?$/.test(key)) return Buffer.from(key, 'base64')
  throw new OptionsError(
    `sealedStore: option "keys.${index}" must be ${KEY_BYTES} bytes, or text that is ${KEY_BYTES} bytes in base64, base64url or hex; got ${described(key)}`,
  )
}

function described(key: unknown): string {
  if (key === undefined || key === null) return 'nothing'
  if (key instanceof Uint8Array) return `${key.byteLength} bytes`
  return typeof key === 'string' ? `a text of ${key.length} characters` : `a value of type ${typeof key}`
}
