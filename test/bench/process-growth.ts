import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { createIdempotency, memoryStore } from '../../src/index.js'

const LIVE_CLAIMS = 100_000
const WAITERS = 10_000

/** Measures what one process needs for many claims, and for many duplicates that wait. */
export async function benchProcess(): Promise<void> {
  console.log('\n### One process\n')
  await benchClaims()
  await benchWaiters()
}

async function benchClaims(): Promise<void> {
  const idempotency = createIdempotency({ store: memoryStore({ maxEntries: 10 ** 6, maxBytes: 2 ** 34 }) })
  const { promise: over, resolve: end } = withResolvers<void>()
  const { promise: allRun, resolve: lastRuns } = withResolvers<void>()
  const before = heapUsed()
  let running = 0
  const claims = Array.from({ length: LIVE_CLAIMS }, (_, index) =>
    idempotency.run({ scope: 'bench', key: `live-${index}` }, () => {
      running += 1
      if (running === LIVE_CLAIMS) lastRuns()
      return over
    }),
  )
  await allRun
  const held = heapUsed() - before
  console.log(
    `${LIVE_CLAIMS} live claims: ${mebibytes(held)} MiB, ${Math.round(held / LIVE_CLAIMS)} bytes each.`,
  )
  end()
  await Promise.all(claims)
  await idempotency.close()
}

async function benchWaiters(): Promise<void> {
  const { promise: first, resolve: answer } = withResolvers<void>()
  const idempotency = createIdempotency({ store: memoryStore(), whenBusy: { wait: '60s', waiters: WAITERS } })
  const run = (): Promise<void> => idempotency.run({ scope: 'bench', key: 'one' }, () => first)
  const { promise: firstRuns, resolve: runs } = withResolvers<void>()
  const running = idempotency.run({ scope: 'bench', key: 'one' }, () => {
    runs()
    return first
  })
  await firstRuns
  const before = heapUsed()
  const duplicates = Array.from({ length: WAITERS }, run)
  // A duplicate waits once what it asked the engine has been answered, and nothing here takes more than a turn.
  await new Promise(setImmediate)
  await new Promise(setImmediate)
  const held = heapUsed() - before
  const startedAt = performance.now()
  const cpuBefore = process.cpuUsage()
  answer()
  await Promise.all([running, ...duplicates])
  const tookMs = performance.now() - startedAt
  const { user, system } = process.cpuUsage(cpuBefore)
  console.log(
    `${WAITERS} duplicates that wait for one key: ${mebibytes(held)} MiB, all answered ${Math.round(tookMs)} ms after the first, with ${((user + system) / WAITERS).toFixed(1)} µs of processor time each.`,
  )
  await idempotency.close()
}

let collect: (() => void) | undefined

/** What is in use, without what nobody needs any more. */
function heapUsed(): number {
  if (collect === undefined) {
    setFlagsFromString('--expose-gc')
    collect = runInNewContext('gc') as () => void
  }
  collect()
  return process.memoryUsage().heapUsed
}

function mebibytes(bytes: number): number {
  return Math.round(bytes / 2 ** 20)
}

function withResolvers<T>(): { readonly promise: Promise<T>; readonly resolve: (value: T) => void } {
  let resolve: (value: T) => void = () => {}
  const promise = new Promise<T>((done) => {
    resolve = done
  })
  return { promise, resolve }
}
