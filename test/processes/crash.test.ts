import { randomBytes } from 'node:crypto'
import { beforeAll, expect, it } from 'vitest'
import { type CrashReport, crashRun } from '../crash/crash-run.js'
import { ALL_MODES } from '../crash/modes.js'
import { describeWith } from '../support/services.js'

const SECONDS = 60
const PROGRAM = new URL('../../.build/test/programs/crash-server.js', import.meta.url).pathname

// The short form of `npm run test:crash`, which runs longer and takes a seed.
describeWith(['redis', 'postgres'], 'two servers under SIGKILL and SIGSTOP, with 16 clients', () => {
  let report: CrashReport
  beforeAll(async () => {
    const seed = process.env.CRASH_SEED ?? randomBytes(6).toString('hex')
    report = await crashRun({
      modes: ALL_MODES,
      seconds: SECONDS,
      clients: 16,
      leaseMs: 700,
      leastHits: 2,
      seed,
      program: PROGRAM,
    })
    const { kills, stops, table, histories } = report
    console.log(
      `CRASH_SEED=${seed}: ${kills} times SIGKILL, ${stops} times SIGSTOP\n\n${table}\n\n${histories}`,
    )
  }, 600_000)

  it.each(ALL_MODES)('keep the promise of the mode %s for every key', (mode) => {
    const about = report.faults.filter((fault) => fault.startsWith(`${mode}:`))
    expect(about).toEqual([])
  })

  it('end only when they are killed', () => {
    expect(report.accidents).toEqual([])
  })
})
