import { randomUUID } from 'node:crypto'
import { Pool } from 'pg'
import { createIdempotency, memoryStore } from '../../src/index.js'
import { postgresStore } from '../../src/stores/postgres.js'
import { aClaim, HOUR } from '../../src/testing/store-fixtures.js'
import { startPostgresServer } from '../support/postgres-server.js'
import { cpuTimeOfPrograms } from './cpu-time.js'
import { median, ROUNDS, SECONDS } from './measure.js'

/** How many rows the table has, one after the other. The last one needs some 10 GB of disk. */
const ROWS = (process.env.BENCH_ROWS ?? '10000,1000000,10000000').split(',').map(Number)
const EXPIRED = Number(process.env.BENCH_EXPIRED ?? 1_000_000)
const LIVE_CLAIMS = 100_000
const WAITERS = 10_000
const AT_ONCE = 16

const BODY = Buffer.from(
  JSON.stringify({ id: randomUUID(), status: 'accepted', amount: 500, note: 'x'.repeat(120) }),
)
const OUTCOME = {
  result: 'succeeded',
  head: '{"status":201,"headers":[],"body":"text"}',
  body: BODY,
} as const

/** Measures whether anything becomes dearer as there is more of it. */
export async function benchGrowth(): Promise<void> {
  await benchTable()
  await benchProcess()
}

async function benchTable(): Promise<void> {
  const postgres = await startPostgresServer({
    settings: { fsync: 'on', max_wal_size: '8GB', shared_buffers: '1GB' },
  })
  const pool = new Pool({ connectionString: postgres.url, max: AT_ONCE })
  const store = postgresStore(pool, { prepare: true })
  const claim = async (): Promise<void> => {
    const request = aClaim({ ttlMs: 24 * HOUR })
    await store.claim(request)
    await store.complete(request.id, request.token, OUTCOME, 24 * HOUR)
  }
  try {
    await store.migrate()
    console.log(
      `\n### Rows in Postgres\n\n${AT_ONCE} at once, medians of ${ROUNDS} rounds of ${SECONDS} s.\n`,
    )
    console.log('| rows | step | a second | store CPU, µs | p50, ms | p99, ms |')
    console.log('|---|---|---|---|---|---|')
    let filled = 0
    for (const rows of ROWS) {
      await fill(pool, { from: filled + 1, to: rows, expired: false })
      filled = rows
      const replay = async (): Promise<void> => {
        const { rows: found } = await pool.query<{ id: string }>({
          name: 'id',
          text: `select ${ID} as id from (select $1::bigint as n) one`,
          values: [1 + Math.floor(Math.random() * rows)],
        })
        const answer = await store.claim(aClaim({ id: found[0]?.id ?? '' }))
        if (answer.status !== 'completed') throw new Error(`A row is ${answer.status}`)
      }
      await measured(claim)
      for (const [name, step] of Object.entries({ 'claim and completion': claim, replay })) {
        const rounds = []
        for (let round = 0; round < ROUNDS; round += 1) rounds.push(await measured(step))
        console.log(row([rows, name], rounds))
      }
    }
    console.log(`\n### Sweeping ${EXPIRED} expired rows beside ${filled} others\n`)
    console.log('| | a second | store CPU, µs | p50, ms | p99, ms |')
    console.log('|---|---|---|---|---|')
    const before = []
    for (let round = 0; round < ROUNDS; round += 1) before.push(await measured(claim))
    console.log(row(['claims alone'], before))
    await fill(pool, { from: filled + 1, to: filled + EXPIRED, expired: true })
    const startedAt = performance.now()
    let isSweeping = true
    const swept = store.sweep?.().finally(() => {
      isSweeping = false
    })
    const during = []
    while (isSweeping) during.push(await measured(claim))
    console.log(row(['claims while it sweeps'], during))
    console.error(`swept ${await swept} rows in ${Math.round(performance.now() - startedAt)} ms`)
  } finally {
    await pool.end()
    await postgres.stop()
  }
}

/** The id of row `n`: as long and as random as real ones. */
const ID = `translate(rtrim(encode(sha256(n::text::bytea), 'base64'), '='), '+/', '-_')`

async function fill(
  pool: Pool,
  { from, to, expired }: { readonly from: number; readonly to: number; readonly expired: boolean },
): Promise<void> {
  const BATCH = 500_000
  for (let at = from; at <= to; at += BATCH) {
    const end = Math.min(at + BATCH - 1, to)
    await pool.query(
      `insert into oncekey_records
        (id, scope, key, route, first_seen_at, fingerprint, status, fence, lease_until, result, head, body, completed_at,
         expires_at, expiry_bucket)
       select ${ID}, 'scope', 'key-' || n, 'POST /payments', 0, ${ID}, 'completed', 1, now(), 'succeeded', $3, $4, now(),
         now() + e, floor(date_part('epoch', now() + e) / 10)::int
       from generate_series($1::bigint, $2::bigint) n,
         lateral (select ${expired ? "interval '-1 hour'" : "interval '12 hours' + n % 40000 * interval '1 second'"} as e) expiry`,
      [at, end, OUTCOME.head, BODY],
    )
    console.error(`${end} rows`)
  }
  await pool.query('vacuum analyze oncekey_records')
  await pool.query('checkpoint')
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

function row(names: readonly (string | number)[], rounds: readonly Steps[]): string {
  const of = (value: keyof Steps, digits: number): string =>
    median(rounds.map((round) => round[value])).toFixed(digits)
  return `| ${[...names, of('rate', 0), of('storeCpuMicros', 0), of('p50', 2), of('p99', 2)].join(' | ')} |`
}

/** What one process needs for many claims, and for many duplicates that wait. */
async function benchProcess(): Promise<void> {
  console.log('\n### One process\n')
  const heap = (): number => process.memoryUsage().heapUsed / 2 ** 20
  const idempotency = createIdempotency({ store: memoryStore({ maxEntries: 10 ** 6, maxBytes: 2 ** 34 }) })
  const before = heap()
  const { promise: over, resolve: end } = withResolvers()
  const running = Array.from({ length: LIVE_CLAIMS }, (_, index) =>
    idempotency.run({ scope: 'bench', key: `live-${index}` }, () => over),
  )
  await new Promise((resolve) => setTimeout(resolve, 2000))
  console.log(`${LIVE_CLAIMS} live claims: ${Math.round(heap() - before)} MiB.`)
  end()
  await Promise.all(running)

  const { promise: first, resolve: answer } = withResolvers()
  const waiting = createIdempotency({
    store: memoryStore(),
    whenBusy: { wait: '60s', waiters: WAITERS },
  })
  const heapBefore = heap()
  const all = Array.from({ length: WAITERS + 1 }, () =>
    waiting.run({ scope: 'bench', key: 'one' }, () => first),
  )
  await new Promise((resolve) => setTimeout(resolve, 2000))
  const held = heap() - heapBefore
  const startedAt = performance.now()
  answer()
  await Promise.all(all)
  const tookMs = performance.now() - startedAt
  console.log(
    `${WAITERS} duplicates that wait for one key: ${Math.round(held)} MiB, all answered ${Math.round(tookMs)} ms after the first.`,
  )
}

function withResolvers(): { readonly promise: Promise<void>; readonly resolve: () => void } {
  let resolve = (): void => {}
  const promise = new Promise<void>((done) => {
    resolve = done
  })
  return { promise, resolve }
}
