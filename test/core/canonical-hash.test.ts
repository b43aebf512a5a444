import { createHash } from 'node:crypto'
import fc from 'fast-check'
import stableStringify from 'fast-json-stable-stringify'
import { describe, expect, it } from 'vitest'
import * as canonical from '../../src/core/canonical-hash.js'

/** What the hash must be: that of the text which a library for canonical JSON makes. */
function expected(text: string, value: unknown): string {
  const json: string | undefined = stableStringify(value)
  return createHash('sha256')
    .update(`${text}${json ?? 'undefined'}`)
    .digest('base64url')
}

const hashCanonical = (text: string, value: unknown) => canonical.hashCanonical({ text }, value)
const hashCanonicalInSlices = (text: string, value: unknown) =>
  canonical.hashCanonicalInSlices({ text }, value)

describe('the canonical hash', () => {
  it('is that of the canonical JSON of a value, for whatever JSON can say', () => {
    const text = fc.string({
      unit: fc.oneof(fc.constantFrom(...'"\\\n\b\u0001\u007f', 'é', '\ud83d'), fc.string({ unit: 'binary' })),
    })
    const json = fc.jsonValue({ stringUnit: 'binary', maxDepth: 5 })
    const value = fc.oneof(
      json,
      fc.dictionary(text, json),
      fc.array(text, { size: 'large' }),
      fc.array(fc.double()),
      fc.array(fc.double({ min: 0, max: 1e6 }).map((double) => Math.round(double * 1e4) / 1e4)),
      fc.array(fc.integer({ min: -5, max: 2 ** 31 + 5 })),
      fc.dictionary(fc.string({ unit: fc.constantFrom('a', 'b', 'é', '\u0001', '名') }), fc.nat(), {
        minKeys: 12,
        maxKeys: 60,
        size: 'max',
      }),
    )
    fc.assert(
      fc.property(
        fc.string(),
        value,
        (prefix, given) => hashCanonical(prefix, given) === expected(prefix, given),
      ),
      { numRuns: 1000 },
    )
  })

  it.each([
    ['undefined', undefined],
    ['a function', () => {}],
    [
      'members without a form',
      { a: undefined, b: () => {}, c: Symbol('c'), d: [undefined, () => {}, Symbol('d')] },
    ],
    ['names that look like numbers', { 10: 'a', 9: 'b', 1: 'c', '-1': 'd', '01': 'e' }],
    ['a name that is a setter elsewhere', JSON.parse('{"b":1,"__proto__":{"y":1,"x":2},"a":0}')],
    [
      'toJSON, and its result sorted',
      { at: new Date(0), it: { toJSON: () => ({ z: 1, a: [{ y: 1, x: 2 }] }) } },
    ],
    ['what toJSON gives no form', { a: { toJSON: () => undefined }, b: 1 }],
    ['numbers JSON does not know', [Number.NaN, Number.POSITIVE_INFINITY, -0, { n: Number.NaN }]],
    ['a list with holes', Array.from({ length: 20, 3: 'x' })],
    [
      'an object of a class',
      new (class {
        z = 1
        a = 2
      })(),
    ],
    ['an object without a prototype', Object.assign(Object.create(null), { z: 1, a: 2 })],
    ['long strings', { a: 'x'.repeat(121), b: `${'y'.repeat(20_000)}"\n`, c: 'é'.repeat(9000) }],
    [
      'more than a buffer',
      Array.from({ length: 3000 }, (_, index) => ({ name: `näme ${index}`, id: index, at: null })),
    ],
    ['a string that ends with a buffer', ['x'.repeat(16 * 1024 - 14), 'y', { b: 1, a: 'é'.repeat(120) }]],
  ])('is right for %s', (_, value) => {
    expect(hashCanonical('text ', value)).toBe(expected('text ', value))
  })

  it('is right at every place where a buffer may end', () => {
    for (let length = 16_340; length < 16_400; length += 1) {
      const value = { b: 'x'.repeat(60), a: [{ z: 'é"', y: 1.5, x: true }], c: {} }
      expect(hashCanonical('t'.repeat(length), value), `${length}`).toBe(expected('t'.repeat(length), value))
    }
  })

  it('is right when a toJSON makes another one meanwhile', () => {
    const inner = { b: 1, a: 2 }
    const value = { first: 'x', next: { toJSON: () => hashCanonical('inner ', inner) }, last: [1] }
    const plain = { first: 'x', next: expected('inner ', inner), last: [1] }
    expect(hashCanonical('outer ', value)).toBe(expected('outer ', plain))
  })

  it('is right for one prefix again and again, also after a buffer that was full', () => {
    const prefix = { text: 'prefix ' }
    for (const value of [
      { b: 1, a: 2 },
      'x',
      [1],
      ['y'.repeat(40_000)],
      [1],
      { c: 'z'.repeat(20_000) },
      null,
    ])
      expect(canonical.hashCanonical(prefix, value)).toBe(expected('prefix ', value))
    expect(hashCanonical('other ', [1])).toBe(expected('other ', [1]))
    expect(canonical.hashCanonical(prefix, [1])).toBe(expected('prefix ', [1]))
  })

  it('differs where values differ only in kind', () => {
    const values = [
      1,
      '1',
      [1],
      ['1'],
      { 1: 1 },
      null,
      'null',
      true,
      'true',
      [],
      {},
      [[]],
      '',
      undefined,
      'undefined',
    ]
    expect(new Set(values.map((value) => hashCanonical('', value))).size).toBe(values.length)
  })

  it('refuses a cycle and what nests too deep, and is right again afterwards', () => {
    const cycle: Record<string, unknown> = {}
    cycle.again = { cycle }
    let deep: unknown = 'bottom'
    for (let level = 0; level < 1001; level += 1) deep = level % 2 === 0 ? [deep, {}] : { deep }
    expect(() => hashCanonical('', cycle)).toThrow(TypeError)
    expect(() => hashCanonical('', deep)).toThrow(RangeError)
    expect(() => hashCanonical('', { amount: 1n })).toThrow(TypeError)
    expect(hashCanonical('', { b: 1, a: 2 })).toBe(expected('', { a: 2, b: 1 }))
  })
})

describe('the canonical hash in slices', () => {
  const lines = (count: number) =>
    Array.from({ length: count }, (_, index) => ({
      sku: `A-${index}`,
      price: index / 100,
      ok: index % 2 === 0,
    }))

  it.each([
    ['a small value', { b: 1, a: [1, 2, { d: null, c: 'x' }] }],
    ['many lines', lines(10_000)],
    ['one long text', { note: 'lorem ipsum '.repeat(80_000), after: [1] }],
    [
      'long texts with what is escaped',
      ['"quoted"\n'.repeat(5000), 'é😀\ud83d'.repeat(5000), '\u0001'.repeat(9000)],
    ],
    ['a long text of pairs', ['x😀'.repeat(5000), 'é😀'.repeat(5000)]],
    ['a long name', { z: 1, ['n'.repeat(100_000)]: { b: 1, a: 2 } }],
    ['lists in lists', Array.from({ length: 3000 }, (_, index) => [index, [`${index}`, []]])],
    [
      'many names',
      Object.fromEntries(Array.from({ length: 5000 }, (_, index) => [`k${(index * 7919) % 5003}`, index])),
    ],
  ])('is the same for %s', async (_, value) => {
    expect(await hashCanonicalInSlices('text ', value)).toBe(expected('text ', value))
    expect(hashCanonical('text ', value)).toBe(expected('text ', value))
  })

  it('is made at once for a small value', () => {
    expect(hashCanonicalInSlices('', lines(100))).toBe(expected('', lines(100)))
  })

  it('gives the event loop back before more than half of a large value is written', async () => {
    const length = 2000
    const { value, turns } = observed(length)
    const hash = hashCanonicalInSlices('', value)
    expect(hash).toBeInstanceOf(Promise)
    await hash
    const inTurn = new Map<number, number>()
    for (const turn of turns()) inTurn.set(turn, (inTurn.get(turn) ?? 0) + 1)
    expect(Math.max(...inTurn.values())).toBeLessThan(length / 2 + 10)
  })

  it('is made of one large value after the other, a slice a turn', async () => {
    const values = Array.from({ length: 5 }, () => observed(200))
    const hashes = await Promise.all(values.map(({ value }) => hashCanonicalInSlices('', value)))
    expect(new Set(hashes).size).toBe(1)
    // The first slice of each is made as it comes.
    const later = values.flatMap(({ turns }) => [...new Set(turns().filter((turn) => turn > 0))])
    expect(new Set(later).size).toBe(later.length)
  })

  it('tells bigints apart where an application has given them a form', () => {
    const prototype = BigInt.prototype as { toJSON?: (this: bigint) => unknown }
    expect(() => hashCanonical('', { amount: 100n })).toThrow(TypeError)
    prototype.toJSON = function () {
      return `${this}`
    }
    try {
      expect(hashCanonical('', { amount: 100n, list: [1n] })).toBe(
        expected('', { amount: '100', list: ['1'] }),
      )
      expect(hashCanonical('', 7n)).toBe(expected('', '7'))
      // One that gives a bigint again has none after all.
      prototype.toJSON = () => 5n
      expect(() => hashCanonical('', { amount: 100n })).toThrow(TypeError)
    } finally {
      delete prototype.toJSON
    }
  })

  it.each([
    [
      'a cycle',
      TypeError,
      () => {
        const list: unknown[] = [...lines(1000)]
        list.push({ list })
        return list
      },
    ],
    ['a bigint', TypeError, () => [...lines(1000), 1n]],
    [
      'what nests too deep',
      RangeError,
      () => {
        let deep: unknown = 'bottom'
        for (let level = 0; level < 1001; level += 1) deep = [deep]
        return [...lines(1000), deep]
      },
    ],
  ])('refuses %s behind the first slice, and is right again afterwards', async (_, type, make) => {
    const refused = hashCanonicalInSlices('', make())
    const next = hashCanonicalInSlices('', lines(1000))
    await expect(refused).rejects.toThrow(type)
    expect(await next).toBe(expected('', lines(1000)))
    expect(hashCanonical('', lines(3))).toBe(expected('', lines(3)))
  })
})

/** A list whose elements, of 100 bytes, note in which turn of the event loop they are written. */
function observed(length: number): {
  readonly value: readonly unknown[]
  readonly turns: () => readonly number[]
} {
  const turns: number[] = []
  const element = {
    toJSON: () => {
      turns.push(turn)
      return 'x'.repeat(97)
    },
  }
  let turn = 0
  const count = (): void => {
    turn += 1
    if (turns.length < length) setImmediate(count)
  }
  setImmediate(count)
  return { value: Array.from({ length }, () => element), turns: () => turns }
}
