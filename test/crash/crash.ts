import { randomBytes } from 'node:crypto'
import { type CrashReport, crashRun } from './crash-run.js'
import { ALL_MODES, type Mode } from './modes.js'

const USAGE = `npm run test:crash, with these in the environment:
  CRASH_MODES    names with commas between, of ${ALL_MODES.join(', ')}; all of them by default
  CRASH_SECONDS  how long servers are attacked; 180 by default
  CRASH_CLIENTS  how many clients work at once; 16 by default
  CRASH_LEASE    the lease in milliseconds; 700 by default
  CRASH_HITS     how many keys of every mode must have been hit between their effect and their end, or the attack goes on,
                 up to three times as long; two for every minute by default
  CRASH_SEED     makes the same choices again; a new one by default`

const { env } = process
const modes = (env.CRASH_MODES ?? ALL_MODES.join(',')).split(',').map(asMode)
const seconds = asNumber('CRASH_SECONDS', 180)
const clients = asNumber('CRASH_CLIENTS', 16)
const leaseMs = asNumber('CRASH_LEASE', 700)
const leastHits = asNumber('CRASH_HITS', Math.ceil(seconds / 30))
const seed = env.CRASH_SEED ?? randomBytes(6).toString('hex')

console.log(
  `${modes.join(', ')}: ${clients} clients, ${seconds} s, a lease of ${leaseMs} ms, CRASH_SEED=${seed}`,
)
const program = new URL('../programs/crash-server.js', import.meta.url).pathname
const report = await crashRun({
  modes,
  seconds,
  clients,
  leaseMs,
  leastHits,
  seed,
  program,
  onProgress: console.log,
})
print(report)
process.exitCode = report.faults.length === 0 ? 0 : 1

function print({ kills, stops, table, histories, faults }: CrashReport): void {
  console.log(`\n${kills} times SIGKILL, ${stops} times SIGSTOP\n\n${table}\n`)
  if (histories !== '') console.log(`${histories}\n`)
  for (const fault of faults) console.log(`WRONG: ${fault}`)
  if (faults.length === 0) console.log('Nothing is wrong.')
}

function asMode(name: string): Mode {
  const mode = ALL_MODES.find((one) => one === name.trim())
  if (mode === undefined) throw new Error(`There is no mode "${name}".\n${USAGE}`)
  return mode
}

function asNumber(name: string, usual: number): number {
  const value = Number(env[name] ?? usual)
  if (!(value > 0)) throw new Error(`${name} must be a number above 0; got "${env[name]}".\n${USAGE}`)
  return value
}
