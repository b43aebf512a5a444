import { fingerprintOf } from '../../src/core/fingerprint.js'
import { median } from './measure.js'

const SIZES = [200, 2048, 65_536, 1_048_576]
const REPEATS = 25

/** Elements of bodies that differ in what they are made of. */
const SHAPES: Readonly<Record<string, (index: number) => unknown>> = {
  'lines of an order': (index) => ({
    sku: `A-${index}`,
    name: `Item number ${index}`,
    quantity: 1 + (index % 9),
    price: { currency: 'EUR', amount: 1999 },
  }),
  'short texts': (index) => `item number ${index}`,
  'texts of 200 characters': (index) => `${index} `.padEnd(200, 'lorem ipsum '),
  'texts with accents': (index) => ({ city: `Köln ${index}`, street: 'Große Straße' }),
  'numbers with fractions': (index) => index * 1.37,
  'empty objects, 500 levels deep': () => ({}),
}

/** Measures how long a fingerprint holds up the process, beside parsing the same body. */
export async function benchFingerprints(): Promise<void> {
  console.log(`\n### Fingerprints\n\nMedians of ${REPEATS} runs, in microseconds.\n`)
  console.log('| body | bytes | JSON.parse | fingerprint | ratio |')
  console.log('|---|---|---|---|---|')
  for (const [shape, element] of Object.entries(SHAPES))
    for (const size of SIZES) {
      const text = bodyOf(size, element, shape.includes('deep') ? 500 : 1)
      const body: unknown = JSON.parse(text)
      const parse = micros(() => JSON.parse(text))
      const fingerprint = micros(() => fingerprintOf({ method: 'POST', path: '/orders', body }))
      const cells = [
        shape,
        text.length,
        parse.toFixed(1),
        fingerprint.toFixed(1),
        (fingerprint / parse).toFixed(2),
      ]
      console.log(`| ${cells.join(' | ')} |`)
    }
}

function bodyOf(size: number, element: (index: number) => unknown, depth: number): string {
  const list: unknown[] = []
  for (let length = 2; length < size; length += JSON.stringify(list.at(-1)).length + 1)
    list.push(element(list.length))
  let body: unknown = list
  for (let level = 1; level < depth; level += 1) body = [body]
  return JSON.stringify(body)
}

function micros(work: () => unknown): number {
  work()
  const taken: number[] = []
  for (let repeat = 0; repeat < REPEATS; repeat += 1) {
    // Short ones are measured by the hundred: the clock is not that fine.
    let times = 0
    const startedAt = performance.now()
    do {
      work()
      times += 1
    } while (performance.now() - startedAt < 2)
    taken.push(((performance.now() - startedAt) * 1000) / times)
  }
  return median(taken)
}
