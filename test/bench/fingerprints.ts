import { fingerprintInSlices } from '../../src/core/fingerprint.js'
import { median } from './measure.js'

const SIZES = [200, 2048, 16_384, 65_536, 262_144, 1_048_576]
const REPEATS = 25
const WARM_UP = 5
/** Shorter than this, a request without any body holds the process up as long. */
const NO_STALL_MICROS = 50

/** Bodies of about so many bytes that differ in what they are made of. */
const SHAPES: Readonly<Record<string, (bytes: number) => unknown>> = {
  'lines of an order': listOf((index) => ({
    sku: `A-${index}`,
    name: `Item number ${index}`,
    quantity: 1 + (index % 9),
    price: { currency: 'EUR', amount: 1999 },
  })),
  'one long text': (bytes) => ({ note: 'lorem ipsum dolor '.repeat(bytes / 18) }),
  'texts of 200 characters': listOf((index) => `${index} `.padEnd(200, 'lorem ipsum ')),
  'short texts': listOf((index) => `item number ${index}`),
  'texts full of escapes': listOf((index) => `line ${index}\n"quoted"\tand \\ back\u0001`),
  'texts with accents': listOf((index) => ({ city: `Köln ${index}`, street: 'Große Straße' })),
  'texts in Japanese, with emoji': listOf((index) => ({
    名前: `商品番号 ${index}`,
    説明: '「東京」都 港区 😀',
  })),
  'whole numbers': listOf((index) => index * 31),
  'amounts with cents': listOf((index) => ({ id: index, amount: ((index * 37) % 100_000) / 100 })),
  'numbers with fractions': listOf((index) => index * 1.37),
  'lists in lists': listOf((index) => [index, [index % 7, 'a'], []]),
  'objects with 100 unsorted names': listOf((index) =>
    Object.fromEntries(Array.from({ length: 100 }, (_, name) => [`f${(name * 7919 + index) % 1000}`, name])),
  ),
  'one object with unsorted names': (bytes) =>
    Object.fromEntries(
      Array.from({ length: bytes / 17 }, (_, index) => [`k${(index * 7919) % 65_537}x${index % 97}`, index]),
    ),
  'empty objects, 500 levels deep': (bytes) => {
    let body = listOf(() => ({}))(bytes)
    for (let level = 1; level < 500; level += 1) body = level % 2 === 0 ? [body] : { body }
    return body
  },
}

interface Measured {
  readonly bytes: number
  readonly parse: number
  /** How long one fingerprint takes, all slices together. */
  readonly total: number
  /** The longest time for which it keeps everything else waiting. */
  readonly stall: number
}

/** Measures how long a fingerprint holds up the process, beside parsing the same body. */
export async function benchFingerprints(): Promise<void> {
  console.log(`\n### Fingerprints\n\nMedians of ${REPEATS} runs, in microseconds.\n`)
  console.log('| body | bytes | JSON.parse | fingerprint | longest stall | ratio of the stall |')
  console.log('|---|---|---|---|---|---|')
  const all: (Measured & { readonly size: number; readonly shape: string })[] = []
  // Everything before: what is measured is not the compiler.
  for (let pass = 0; pass < WARM_UP; pass += 1)
    for (const make of Object.values(SHAPES)) for (const size of SIZES) await measured(make(size), 1)
  for (const [shape, make] of Object.entries(SHAPES))
    for (const size of SIZES) {
      const found = await measured(make(size), REPEATS)
      all.push({ ...found, size, shape })
      const { bytes, parse, total, stall } = found
      const cells = [shape, bytes, ...[parse, total, stall].map((value) => value.toFixed(1)), ratio(found)]
      console.log(`| ${cells.join(' | ')} |`)
    }
  console.log('\nThe worst of all bodies of a size:\n')
  console.log('| bytes | body | longest stall | ratio of the stall | the same, without stalls below 50 µs |')
  console.log('|---|---|---|---|---|')
  for (const size of SIZES) {
    const found = all.filter((one) => one.size === size)
    const worst = worstOf(found)
    const counted = worstOf(found.filter(({ stall }) => stall >= NO_STALL_MICROS))
    const last = counted === undefined ? 'none' : `${ratio(counted)} (${counted.shape})`
    if (worst !== undefined)
      console.log(`| ${size} | ${worst.shape} | ${worst.stall.toFixed(1)} | ${ratio(worst)} | ${last} |`)
  }
}

function ratio({ stall, parse }: Measured): string {
  return (stall / parse).toFixed(2)
}

function worstOf<T extends Measured>(found: readonly T[]): T | undefined {
  return [...found].sort((a, b) => b.stall / b.parse - a.stall / a.parse)[0]
}

function listOf(element: (index: number) => unknown): (bytes: number) => unknown {
  return (bytes) => {
    const list: unknown[] = []
    for (let length = 2; length < bytes; length += JSON.stringify(list.at(-1)).length + 1)
      list.push(element(list.length))
    return list
  }
}

async function measured(made: unknown, repeats: number): Promise<Measured> {
  const text = JSON.stringify(made)
  const body: unknown = JSON.parse(text)
  const parse: number[] = []
  const total: number[] = []
  const stall: number[] = []
  for (let repeat = 0; repeat < repeats; repeat += 1) {
    // Taking turns: a busy machine is as busy for both.
    parse.push(micros(() => JSON.parse(text)))
    const startedAt = performance.now()
    do {
      const taken = await slicesOf(body)
      total.push(taken.reduce((sum, slice) => sum + slice, 0))
      stall.push(Math.max(...taken))
    } while (performance.now() - startedAt < 2)
  }
  return { bytes: Buffer.byteLength(text), parse: median(parse), total: median(total), stall: median(stall) }
}

/** How long each slice of a fingerprint holds the process up, in microseconds. */
async function slicesOf(body: unknown): Promise<readonly number[]> {
  const parts = { method: 'POST', path: '/orders', body }
  let startedAt = performance.now()
  const fingerprint = fingerprintInSlices(parts)
  const first = (performance.now() - startedAt) * 1000
  if (typeof fingerprint === 'string') return [micros(() => fingerprintInSlices(parts))]
  const slices = [first]
  let isOver = false
  const over = fingerprint.then(() => {
    isOver = true
  })
  while (!isOver) {
    startedAt = performance.now()
    // It has asked for its turn before, so that one slice comes in between.
    await new Promise(setImmediate)
    slices.push((performance.now() - startedAt) * 1000)
  }
  await over
  return slices
}

function micros(work: () => unknown): number {
  // Short ones are measured by the hundred: the clock is not that fine.
  let times = 0
  const startedAt = performance.now()
  do {
    work()
    times += 1
  } while (performance.now() - startedAt < 2)
  return ((performance.now() - startedAt) * 1000) / times
}
