import { Pool } from 'pg'
import { expect, it } from 'vitest'
import type { ChaosOptions } from '../../examples/kafka-ledger/chaos.js'
import { startPostgresServer } from '../support/postgres-server.js'
import { brokerUrl, describeWith } from '../support/services.js'

/** Its consumers are programs: they are run as they are built. */
const CHAOS = new URL('../../.build/examples/kafka-ledger/chaos.js', import.meta.url).href

describeWith(['kafka', 'postgres'], 'examples/kafka-ledger', () => {
  it.each([
    { by: 'id', inBatches: false, duplicates: 200 },
    { by: 'id', inBatches: true, duplicates: 200 },
    { by: 'watermark', inBatches: false, duplicates: 0 },
  ] as const)(
    'applies every event once while its consumers are killed: $by, in batches: $inBatches',
    async ({ by, inBatches, duplicates }) => {
      const { runChaos } = (await import(CHAOS)) as {
        runChaos(options: ChaosOptions): Promise<unknown>
      }
      const postgres = await startPostgresServer()
      const told: string[] = []
      try {
        const report = await runChaos({
          brokers: brokerUrl('kafka').split(','),
          databaseUrl: postgres.url,
          events: 2000,
          duplicates,
          by,
          inBatches,
          consumers: 3,
          partitions: 6,
          killEveryMs: 3000,
          tell: (line) => told.push(line),
        })
        expect(report, told.join('\n')).toMatchObject({
          events: 2000,
          messages: 2000 + duplicates,
          applied: 2000,
          appliedTwice: 0,
          isBalanced: true,
        })
        const pool = new Pool({ connectionString: postgres.url })
        const { rows } = await pool.query(
          `select status, count(*)::int from oncekey_records_inbox group by 1`,
        )
        await pool.end()
        expect(rows).toEqual(by === 'id' ? [{ status: 'processed', count: 2000 }] : expect.anything())
      } finally {
        await postgres.stop()
      }
    },
    300_000,
  )
})
