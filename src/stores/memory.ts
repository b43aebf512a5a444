import { asBuffer } from '../contract/as-buffer.js'
import { OptionsError, StoreFullError } from '../contract/errors.js'
import type {
  ClaimRequest,
  ClaimResult,
  IdempotencyStore,
  Outcome,
  RecordMeta,
  StoredRecord,
} from '../contract/store.js'
import { isAskedFor } from './list-query.js'

/** How much a memory store holds. */
export interface MemoryStoreOptions {
  /**
   * How many records. A full store refuses new claims, and never forgets a record that still counts.
   *
   * @default 100_000
   */
  readonly maxEntries?: number
  /**
   * How many bytes of records, estimated.
   *
   * @default 67_108_864 (64 MiB)
   */
  readonly maxBytes?: number
}

/** A place in a queue: linked by hand, so that a record takes no memory for it beyond two words. */
class Queued {
  previous: Queued = this
  next: Queued = this

  /** Puts `record` at the end of the queue that this is the head of, from wherever it is now. */
  take(record: Queued): void {
    record.leave()
    record.previous = this.previous
    record.next = this
    this.previous.next = record
    this.previous = record
  }

  leave(): void {
    this.previous.next = this.next
    this.next.previous = this.previous
    this.previous = this
    this.next = this
  }
}

/** When this module was loaded, in epoch milliseconds. Times since then are small numbers. */
const LOADED_AT = Date.now()

// All in one object, since there may be millions of them: what the garbage collector has to follow is what they cost. So
// times are whole milliseconds, rounded to the safe side: a small whole number lies in the record itself.
class MemoryRecord extends Queued {
  readonly id: string
  readonly fingerprint: string
  readonly #key: string
  readonly #route: string
  readonly #scope: string
  readonly #firstSeenAfter: number
  fence = 1
  /** `undefined` after a release or a settlement: nobody holds it. */
  token: string | undefined
  leaseUntil = 0
  isCompleted = false
  completedAt = 0
  #result: Outcome['result'] = 'succeeded'
  #head = ''
  /** A character a byte. Nobody can change it, and it takes less than a buffer of its own. */
  #body: string | null = null
  expiresAt = 0
  bytes = 0

  constructor({ id, fingerprint, meta, token }: ClaimRequest) {
    super()
    this.id = id
    this.fingerprint = fingerprint
    this.#key = meta.key
    this.#route = meta.route
    this.#scope = meta.scope
    this.#firstSeenAfter = meta.firstSeenAt - LOADED_AT
    this.token = token
  }

  get meta(): RecordMeta {
    const firstSeenAt = LOADED_AT + this.#firstSeenAfter
    return { key: this.#key, route: this.#route, scope: this.#scope, firstSeenAt }
  }

  get outcome(): Outcome {
    const body = this.#body === null ? null : Buffer.from(this.#body, 'latin1')
    return { result: this.#result, head: this.#head, body }
  }

  complete({ result, head, body }: Outcome, now: number): void {
    this.isCompleted = true
    this.completedAt = Math.floor(now)
    this.#result = result
    this.#head = head
    this.#body = body === null ? null : asBuffer(body).toString('latin1')
  }

  /** An estimate, with an outcome of so many bytes. */
  sizeWith(outcomeBytes: number): number {
    const { id, fingerprint } = this
    const characters =
      id.length + fingerprint.length + this.#key.length + this.#route.length + this.#scope.length
    return RECORD_OVERHEAD_BYTES + characters * 2 + outcomeBytes
  }
}

const RECORD_OVERHEAD_BYTES = 400

/**
 * Keeps records in this process: for one process, for tests and for trying things out. A restart forgets them all, and
 * with them which operations already ran.
 *
 * @throws {OptionsError} when a limit is not a whole number above zero.
 */
export function memoryStore(options: MemoryStoreOptions = {}): IdempotencyStore {
  const { maxEntries = 100_000, maxBytes = 64 * 1024 * 1024 } = options
  assertLimit('maxEntries', maxEntries)
  assertLimit('maxBytes', maxBytes)

  const records = new Map<string, MemoryRecord>()
  // Records that are kept equally long expire in the order in which they were put here, so only heads are looked at.
  const queues = new Map<number, Queued>()
  const watchers = new Map<string, Set<() => void>>()
  let bytes = 0

  function live(id: string, now: number): MemoryRecord | undefined {
    const record = records.get(id)
    if (record === undefined || !hasExpired(record, now)) return record
    remove(record)
    return undefined
  }

  function remove(record: MemoryRecord): void {
    records.delete(record.id)
    record.leave()
    bytes -= record.bytes
    changed(record.id)
  }

  function expireIn(record: MemoryRecord, ttlMs: number, now: number): void {
    let queue = queues.get(ttlMs)
    if (queue === undefined) {
      queue = new Queued()
      queues.set(ttlMs, queue)
    }
    record.expiresAt = Math.ceil(now + ttlMs)
    queue.take(record)
  }

  function resize(record: MemoryRecord, size: number): void {
    bytes += size - record.bytes
    record.bytes = size
  }

  function sweep(): number {
    const now = performance.now()
    let removed = 0
    for (const [ttlMs, queue] of queues) {
      for (let next = queue.next; next instanceof MemoryRecord && next.expiresAt <= now; ) {
        const record = next
        next = record.next
        if (!hasExpired(record, now)) continue
        remove(record)
        removed += 1
      }
      if (queue.next === queue) queues.delete(ttlMs)
    }
    return removed
  }

  function isRoom(entries: number, size: number): boolean {
    return records.size + entries <= maxEntries && bytes + size <= maxBytes
  }

  /** Makes room, if it can. @returns why there is none. */
  function lackOfRoom(entries: number, size: number): StoreFullError | undefined {
    if (isRoom(entries, size)) return undefined
    sweep()
    if (isRoom(entries, size)) return undefined
    return new StoreFullError(
      `The memory store is full of live records (${records.size} of ${maxEntries} entries, ${bytes} of ${maxBytes} bytes)`,
    )
  }

  function changed(id: string): void {
    const waiting = watchers.get(id)
    if (waiting === undefined) return
    watchers.delete(id)
    for (const resolve of waiting) resolve()
  }

  /** @returns why it could not be kept. */
  function keep(
    record: MemoryRecord,
    outcome: Outcome,
    ttlMs: number,
    now: number,
  ): StoreFullError | undefined {
    const size = record.sizeWith(outcome.head.length * 2 + (outcome.body?.byteLength ?? 0))
    // A tombstone always fits: to forget that an operation ended would be worse than a few bytes too many.
    const lack = outcome.body === null ? undefined : lackOfRoom(0, size - record.bytes)
    if (lack !== undefined) return lack
    resize(record, size)
    record.complete(outcome, now)
    expireIn(record, ttlMs, now)
    changed(record.id)
    return undefined
  }

  function acquire(record: MemoryRecord, { token, leaseMs, ttlMs }: ClaimRequest, now: number): ClaimResult {
    record.token = token
    record.leaseUntil = leaseEnd(now, leaseMs)
    expireIn(record, ttlMs, now)
    return { status: 'acquired', fence: record.fence }
  }

  return {
    claim(request) {
      const { id, token, fingerprint } = request
      const now = performance.now()
      const found = live(id, now)
      if (found === undefined) {
        const record = new MemoryRecord(request)
        const size = record.sizeWith(0)
        const lack = lackOfRoom(1, size)
        if (lack !== undefined) return Promise.reject(lack)
        records.set(id, record)
        resize(record, size)
        return acquire(record, request, now)
      }
      if (found.isCompleted) {
        const { outcome, completedAt } = found
        return { status: 'completed', fingerprint: found.fingerprint, outcome, ageMs: now - completedAt }
      }
      if (found.token === token) return acquire(found, request, now)
      if (found.leaseUntil > now)
        return {
          status: 'running',
          fingerprint: found.fingerprint,
          leaseLeftMs: Math.floor(found.leaseUntil - now),
        }
      if (request.takeOver && found.fingerprint === fingerprint) {
        found.fence += 1
        return acquire(found, request, now)
      }
      return { status: 'unknown', fingerprint: found.fingerprint, fence: found.fence, meta: found.meta }
    },

    async renew(id, token, leaseMs) {
      const now = performance.now()
      const record = live(id, now)
      if (record === undefined || record.isCompleted || record.token !== token) return false
      record.leaseUntil = leaseEnd(now, leaseMs)
      return true
    },

    complete(id, token, outcome, ttlMs) {
      const now = performance.now()
      const record = live(id, now)
      if (record === undefined || record.token !== token) return false
      const lack = record.isCompleted ? undefined : keep(record, outcome, ttlMs, now)
      return lack === undefined ? true : Promise.reject(lack)
    },

    async release(id, token) {
      const record = live(id, performance.now())
      if (record === undefined || record.isCompleted || record.token !== token) return false
      if (record.fence === 1) {
        remove(record)
        return true
      }
      record.token = undefined
      record.leaseUntil = 0
      changed(id)
      return true
    },

    async find(id) {
      const record = live(id, performance.now())
      return record === undefined ? undefined : asStored(record)
    },

    async settle(id, resolution, ttlMs) {
      const now = performance.now()
      const record = live(id, now)
      if (record === undefined || record.isCompleted) return false
      if (record.leaseUntil > now) return false
      if (resolution === 'release') {
        remove(record)
        return true
      }
      const lack = keep(record, resolution, ttlMs, now)
      if (lack !== undefined) throw lack
      record.token = undefined
      return true
    },

    async *list({ limit = Number.POSITIVE_INFINITY, signal, ...query }) {
      let found = 0
      for (const id of [...records.keys()]) {
        if (found >= limit || signal?.aborted) return
        const record = live(id, performance.now())
        const stored = record && asStored(record)
        if (stored === undefined || !isAskedFor(stored, query)) continue
        found += 1
        yield stored
      }
    },

    async remove(id) {
      const now = performance.now()
      const record = live(id, now)
      if (record === undefined) return false
      if (!record.isCompleted && record.leaseUntil > now) return false
      remove(record)
      return true
    },

    watch: (id, signal) =>
      new Promise((resolve) => {
        if (signal.aborted) return resolve()
        const waiting = watchers.get(id) ?? new Set()
        watchers.set(id, waiting)
        const done = (): void => {
          signal.removeEventListener('abort', done)
          waiting.delete(done)
          if (waiting.size === 0 && watchers.get(id) === waiting) watchers.delete(id)
          resolve()
        }
        signal.addEventListener('abort', done)
        waiting.add(done)
      }),

    async sweep() {
      return sweep()
    },
  }
}

/** Never early; a lease of nothing is over at once. */
function leaseEnd(now: number, leaseMs: number): number {
  return leaseMs > 0 ? Math.ceil(now + leaseMs) : Math.floor(now)
}

function hasExpired(record: MemoryRecord, now: number): boolean {
  if (record.expiresAt > now) return false
  return record.isCompleted || record.leaseUntil <= now
}

function asStored(record: MemoryRecord): StoredRecord {
  const now = performance.now()
  const { id, fingerprint, fence, meta, isCompleted } = record
  const expiresInMs = Math.floor(Math.max(record.expiresAt, isCompleted ? 0 : record.leaseUntil) - now)
  const base = { id, fingerprint, fence, meta, expiresInMs }
  if (isCompleted)
    return { ...base, status: 'completed', outcome: record.outcome, ageMs: now - record.completedAt }
  if (record.leaseUntil <= now) return { ...base, status: 'unknown' }
  return { ...base, status: 'running', leaseLeftMs: Math.floor(record.leaseUntil - now) }
}

function assertLimit(name: string, value: number): void {
  if (Number.isSafeInteger(value) && value > 0) return
  throw new OptionsError(
    `memoryStore: option "${name}" must be a whole number above zero; got ${String(value)}`,
  )
}
