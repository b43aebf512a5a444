import { Redis } from 'ioredis'
import { Pool } from 'pg'
import { startPostgresServer } from '../support/postgres-server.js'
import { startRedisServer } from '../support/redis-server.js'
import { createRunLog } from './history.js'
import { hitsOf } from './hits.js'
import { count, openLedger } from './ledger.js'
import { askAgain, attackUnderLoad, type Load } from './load.js'
import { MODES, type Mode } from './modes.js'
import { startProvider } from './provider.js'
import { seededRandom } from './random.js'
import { postgresRecords, type ReadRecords, readAll, redisRecords } from './records.js'
import { historiesOf, tableOf } from './report.js'
import { startServerPair } from './server-pair.js'
import { type Evidence, judge, type ModeReport } from './verdict.js'

/** What is attacked, how long, and with which choices. */
export interface CrashOptions {
  readonly modes: readonly Mode[]
  readonly seconds: number
  readonly seed: string
  /** The compiled server program. */
  readonly program: string
  readonly clients: number
  readonly leaseMs: number
  /** How many keys of every mode must have been hit between their effect and their end. */
  readonly leastHits: number
  /** Told now and then how far it is. */
  readonly onProgress?: (text: string) => void
}

/** What a run came to. */
export interface CrashReport {
  readonly kills: number
  readonly stops: number
  readonly modes: readonly ModeReport[]
  /** How server processes ended that nobody killed. */
  readonly accidents: readonly string[]
  /** Everything that is wrong, in a sentence each. */
  readonly faults: readonly string[]
  /** The table, for people. */
  readonly table: string
  /** The histories of wrong keys, for people; empty when there are none. */
  readonly histories: string
}

/** Longer than any stop: the servers' calls of the store run into it when their process was stopped for long. */
const STORE_TIMEOUT_MS = 1000

/** Attacks two servers under load, waits until every operation has ended, and counts. */
export async function crashRun(options: CrashOptions): Promise<CrashReport> {
  const { modes, seed, program, leaseMs, leastHits } = options
  const random = seededRandom(seed)
  const closing: (() => Promise<unknown>)[] = []
  try {
    // Deadlocks are made on purpose, and should not take a second each.
    const postgres = await startPostgresServer({ settings: { deadlock_timeout: '50ms' } })
    closing.unshift(() => postgres.stop())
    const pool = new Pool({ connectionString: postgres.url, max: 20 })
    closing.unshift(() => pool.end())
    await openLedger(pool, modes)
    const readers: ReadRecords[] = []
    if (modes.some((mode) => MODES[mode].store === 'postgres')) readers.push(postgresRecords(pool))
    let redisUrl = ''
    if (modes.some((mode) => MODES[mode].store === 'redis')) {
      const server = await startRedisServer()
      closing.unshift(() => server.stop())
      const redis = new Redis(server.url)
      closing.unshift(async () => redis.disconnect())
      readers.push(redisRecords(redis))
      redisUrl = server.url
    }
    const provider = await startProvider(pool, random.fork('provider'))
    closing.unshift(() => provider.close())
    const log = createRunLog()
    const pair = await startServerPair(
      {
        program,
        options: {
          seed,
          modes,
          leaseMs,
          storeTimeoutMs: STORE_TIMEOUT_MS,
          postgresUrl: postgres.url,
          redisUrl,
          providerUrl: provider.url,
        },
      },
      log.addEvent,
    )
    closing.unshift(() => pair.close())

    const hits = async (): Promise<ReadonlyMap<Mode, number>> =>
      new Map(await Promise.all(modes.map(async (mode) => [mode, await hitsOf(mode, pool, log)] as const)))
    const load: Load = {
      ...options,
      random,
      log,
      pair,
      isEnough: async () => [...(await hits()).values()].every((count) => count >= leastHits),
    }
    const attacked = await attackUnderLoad(load)
    const lastAnswers = await askAgain(load, await readAll(readers))
    await pair.becomeIdle()
    await pair.close()
    const evidence: Evidence = {
      ...(await count(pool, modes)),
      log,
      leaseMs,
      records: await readAll(readers),
      lastAnswers,
      hits: await hits(),
    }
    const reports = modes.map((mode) => judge(mode, evidence))
    const wrong = reports.flatMap((report) => report.wrong)
    return {
      ...attacked,
      modes: reports,
      accidents: pair.accidents,
      faults: [
        ...pair.accidents,
        ...reports.flatMap(faultsOfReport),
        ...reports
          .filter(({ hits }) => hits < leastHits)
          .map(
            ({ mode, hits }) => `${mode}: only ${hits} keys were hit in the middle, which proves too little`,
          ),
      ],
      table: tableOf(reports),
      histories: historiesOf(wrong, evidence),
    }
  } finally {
    for (const close of closing) await close()
  }
}

function faultsOfReport({ mode, faults, wrong }: ModeReport): readonly string[] {
  return [
    ...faults.map((fault) => `${mode}: ${fault}`),
    ...wrong.map((one) => `${mode}: ${one.history.operation.key}: ${one.faults.join('; ')}`),
  ]
}
