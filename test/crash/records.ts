import type { Redis } from 'ioredis'
import type { Pool } from 'pg'

/** What a store holds for a key, as it is read past the library. */
export interface StoredState {
  readonly status: 'running' | 'completed'
  readonly fence: number
  /** The body that is kept. */
  readonly body: string | undefined
  /** The whole record, for people. */
  readonly text: string
}

/** Reads everything that a store holds, by key. */
export type ReadRecords = () => Promise<ReadonlyMap<string, StoredState>>

/** What all stores hold, together. */
export async function readAll(readers: readonly ReadRecords[]): Promise<ReadonlyMap<string, StoredState>> {
  const all = await Promise.all(readers.map((read) => read()))
  return new Map(all.flatMap((records) => [...records]))
}

/** Reads the table of the Postgres store. */
export function postgresRecords(pool: Pool): ReadRecords {
  return async () => {
    const { rows } = await pool.query<StoredState & { readonly key: string }>(`
      select key, status, fence::int as fence, convert_from(body, 'utf8') as body,
        (to_jsonb(r) || jsonb_build_object('body', convert_from(body, 'utf8')))::text as text
      from oncekey_records r`)
    return new Map(rows.map((row) => [row.key, row]))
  }
}

/** Reads the strings of the Redis store: a line about the claim, and once it has completed one about the outcome. */
export function redisRecords(redis: Redis): ReadRecords {
  return async () => {
    const records = new Map<string, StoredState>()
    for (const name of await redis.keys('oncekey:*')) {
      const text = (await redis.get(name)) ?? ''
      const [, state, fence, meta = '', headLength, rest = ''] =
        /^1([RC])\d{13} \S+ (\d+) \S+ ([^\n]*)\n(?:[sf][bt](\d+)\n(.*))?$/s.exec(text) ?? []
      const [key] = JSON.parse(meta) as [key: string]
      const body = state === 'C' ? rest.slice(Number(headLength)) : undefined
      records.set(key, { status: state === 'C' ? 'completed' : 'running', fence: Number(fence), body, text })
    }
    return records
  }
}
