import { createHash, randomUUID } from 'node:crypto'
import { Pool } from 'pg'
import { type PostgresPool, postgresStore } from '../../src/stores/postgres.js'
import { aClaim, HOUR } from '../../src/testing/store-fixtures.js'
import { gate } from '../support/gate.js'
import { startPostgresServer } from '../support/postgres-server.js'
import { cpuTimeOfPrograms } from './cpu-time.js'
import { median, ROUNDS, SECONDS, unpinLoad } from './measure.js'

/** How many rows the tables have, the largest last. 10 million need some 12 GB of disk. */
const ROWS = (process.env.BENCH_ROWS ?? '10000,1000000,10000000').split(',').map(Number)
/** How many more in the largest one have expired. */
const EXPIRED = Number(process.env.BENCH_EXPIRED ?? 1_000_000)
const AT_ONCE = 16

const BODY = Buffer.from(
  JSON.stringify({ id: randomUUID(), status: 'accepted', amount: 500, note: 'x'.repeat(120) }),
)
const OUTCOME = {
  result: 'succeeded',
  head: '{"status":201,"headers":[],"body":"text"}',
  body: BODY,
} as const

/** A table of records, and the steps that are measured on it. */
interface Table {
  readonly rows: number
  readonly name: string
  readonly steps: Readonly<Record<'claim and completion' | 'replay', () => Promise<void>>>
}

/** Measures what claims and replays cost as a table grows, and while a sweep removes what has expired. */
export async function benchTable(): Promise<void> {
  // Postgres would be pinned as this process is, and a sweep and claims would be measured on one processor.
  unpinLoad()
  const postgres = await startPostgresServer({
    settings: {
      fsync: 'on',
      // A quarter of what a small server has: the largest table does not fit, and its index does.
      shared_buffers: '4GB',
      maintenance_work_mem: '1GB',
      max_wal_size: '3GB',
      // What has been loaded is vacuumed before it is measured. A table this large would not be for weeks.
      autovacuum: 'off',
    },
  })
  const pool = new Pool({ connectionString: postgres.url, max: AT_ONCE, idleTimeoutMillis: 0 })
  try {
    const tables: Table[] = []
    for (const rows of ROWS)
      tables.push(await fill(pool, rows, { expired: rows === ROWS.at(-1) ? EXPIRED : 0 }))
    await pool.query('checkpoint')
    await benchSizes(tables)
    const largest = tables.at(-1)
    if (largest !== undefined) await benchSweep(largest, postgres.url)
  } finally {
    await pool.end()
    await postgres.stop()
  }
}

async function benchSizes(tables: readonly Table[]): Promise<void> {
  console.log(
    `\n### Rows in Postgres\n\n${AT_ONCE} at once, medians of ${ROUNDS} rounds of ${SECONDS} s, in which the tables take turns. The ratios are the medians of those to the smallest table in the same round.\n`,
  )
  console.log('| rows | step | a second | store CPU, µs | ratio | p50, ms | ratio | p99, ms | ratio |')
  console.log('|---|---|---|---|---|---|---|---|---|')
  for (const name of ['claim and completion', 'replay'] as const) {
    const rounds: (readonly Steps[])[] = []
    // Once before: connections plan what they prepare, and read what they need of the table.
    for (const { steps } of tables) await measured(steps[name])
    for (let round = 0; round < ROUNDS; round += 1) {
      const taken: Steps[] = []
      for (const { steps } of tables) taken.push(await measured(steps[name]))
      rounds.push(taken)
    }
    for (const [place, { rows }] of tables.entries())
      console.log(
        rowOf(
          [rows, name],
          rounds.map((round) => round[place] as Steps),
          rounds.map((round) => round[0] as Steps),
        ),
      )
  }
}

async function benchSweep({ rows, name, steps }: Table, url: string): Promise<void> {
  const claim = steps['claim and completion']
  const connection = new Pool({ connectionString: url, max: 1, idleTimeoutMillis: 0 })
  let door = gate()
  const held: PostgresPool = {
    async query(statement) {
      await door.opened
      return await (connection as PostgresPool).query(statement)
    },
  }
  const sweeping = postgresStore(held, { table: name })
  let isSweeping = true
  const swept = sweeping.sweep?.().finally(() => {
    isSweeping = false
  })
  const alone: Steps[] = []
  const during: Steps[] = []
  let sweptMs = 0
  while (isSweeping) {
    const without = await measured(claim)
    const startedAt = performance.now()
    door.open()
    const round = await measured(claim)
    door = gate()
    sweptMs += performance.now() - startedAt
    // The last round is only partly of the sweep.
    if (!isSweeping && during.length > 0) break
    alone.push(without)
    during.push(round)
  }
  const removed = await swept
  await connection.end()
  console.log(
    `\n### Sweeping ${EXPIRED} expired rows beside ${rows} others\n\nThe sweep is held up for every second of ${during.length * 2} rounds of ${SECONDS} s; the ratios are the medians of those of one round to the one before it. ${removed} rows were removed in ${(sweptMs / 1000).toFixed(0)} s of sweeping.\n`,
  )
  console.log(
    '| claims and completions | a second | store CPU, µs | ratio | p50, ms | ratio | p99, ms | ratio |',
  )
  console.log('|---|---|---|---|---|---|---|---|')
  console.log(rowOf(['alone'], alone, alone))
  console.log(rowOf(['while it sweeps'], during, alone))
}

/** The id of row `n`: as long and as random as real ones. */
const ID = `translate(rtrim(encode(sha256(n::text::bytea), 'base64'), '='), '+/', '-_')`

async function fill(pool: Pool, rows: number, { expired }: { readonly expired: number }): Promise<Table> {
  const table = `records_${rows}`
  const store = postgresStore(pool, { prepare: true, table })
  await store.migrate()
  const startedAt = performance.now()
  // Millions of random ids are put in order faster at once than one by one.
  const { rows: indices } = await pool.query<{
    readonly name: string
    readonly definition: string
    readonly primary: boolean
  }>(
    `select i.indexrelid::regclass::text as name, pg_get_indexdef(i.indexrelid) as definition, i.indisprimary as primary
     from pg_index i where i.indrelid = $1::regclass`,
    [table],
  )
  for (const { name, primary } of indices)
    await pool.query(primary ? `alter table ${table} drop constraint ${name}` : `drop index ${name}`)
  // The oldest rows are those that have expired.
  const ranges = [
    ...rangesOf(1 - expired, 0).map((range) => ({ ...range, expiry: `interval '-1 hour'` })),
    ...rangesOf(1, rows).map((range) => ({
      ...range,
      expiry: `interval '12 hours' + n % 40000 * interval '1 second'`,
    })),
  ]
  for (const { from, to, expiry } of ranges)
    await pool.query(
      `insert into ${table}
        (id, scope, key, route, first_seen_at, fingerprint, status, fence, lease_until, result, head, body, completed_at,
         expires_at, expiry_bucket)
       select id, 'scope', 'key-' || n, 'POST /payments', 0, id, 'completed', 1, now(), 'succeeded', $3, $4, now(),
         expires_at, floor(date_part('epoch', expires_at) / 10)::int
       from (
         select n, ${ID} as id, now() + ${expiry} as expires_at
         from generate_series($1::bigint, $2::bigint) n offset 0
       ) made`,
      [from, to, OUTCOME.head, BODY],
    )
  // As full as one whose entries came at random.
  for (const { name, definition, primary } of indices)
    await pool.query(
      primary
        ? `alter table ${table} add constraint ${name} primary key (id) with (fillfactor = 70)`
        : definition,
    )
  await pool.query(`vacuum analyze ${table}`)
  // The index of a table in use is in memory.
  await pool.query(
    `begin; set local enable_seqscan = off; select count(*) from ${table} where id > ''; commit`,
  )
  const { rows: sizes } = await pool.query<{ readonly size: string }>(
    'select pg_size_pretty(pg_total_relation_size($1::regclass)) as size',
    [table],
  )
  const seconds = (performance.now() - startedAt) / 1000
  console.error(`${rows + expired} rows in ${seconds.toFixed(0)} s: ${sizes[0]?.size}`)

  return {
    rows,
    name: table,
    steps: {
      'claim and completion': async () => {
        const request = aClaim({ ttlMs: 24 * HOUR })
        await store.claim(request)
        await store.complete(request.id, request.token, OUTCOME, 24 * HOUR)
      },
      replay: async () => {
        const answer = await store.claim(aClaim({ id: idOf(1 + Math.floor(Math.random() * rows)) }))
        if (answer.status !== 'completed') throw new Error(`A row is ${answer.status}`)
      },
    },
  }
}

function idOf(row: number): string {
  return createHash('sha256').update(String(row)).digest('base64url')
}

/** In parts, so that no statement works for minutes without a word. */
function rangesOf(from: number, to: number): readonly { readonly from: number; readonly to: number }[] {
  const PART = 1_000_000
  const ranges: { from: number; to: number }[] = []
  for (let at = from; at <= to; at += PART) ranges.push({ from: at, to: Math.min(at + PART - 1, to) })
  return ranges
}

interface Steps {
  readonly rate: number
  readonly storeCpuMicros: number
  readonly p50: number
  readonly p99: number
}

async function measured(step: () => Promise<void>): Promise<Steps> {
  const latencies: number[] = []
  const cpuBefore = cpuTimeOfPrograms(['postgres'])
  const startedAt = performance.now()
  const endsAt = startedAt + SECONDS * 1000
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      while (performance.now() < endsAt) {
        const askedAt = performance.now()
        await step()
        latencies.push(performance.now() - askedAt)
      }
    }),
  )
  const seconds = (performance.now() - startedAt) / 1000
  const storeCpuMicros = (cpuTimeOfPrograms(['postgres']) - cpuBefore) / latencies.length
  latencies.sort((a, b) => a - b)
  const at = (share: number): number => latencies[Math.floor(latencies.length * share)] ?? Number.NaN
  return { rate: latencies.length / seconds, storeCpuMicros, p50: at(0.5), p99: at(0.99) }
}

/** A row of a table: medians, and the medians of their ratios to what each round is compared with. */
function rowOf(
  names: readonly (string | number)[],
  rounds: readonly Steps[],
  baseline: readonly Steps[],
): string {
  const of = (value: keyof Steps, digits: number): string =>
    median(rounds.map((round) => round[value])).toFixed(digits)
  const ratio = (value: keyof Steps): string =>
    median(rounds.map((round, place) => round[value] / (baseline[place] as Steps)[value])).toFixed(2)
  const cells = [
    of('rate', 0),
    of('storeCpuMicros', 0),
    ratio('storeCpuMicros'),
    of('p50', 2),
    ratio('p50'),
    of('p99', 2),
    ratio('p99'),
  ]
  return `| ${[...names, ...cells].join(' | ')} |`
}
