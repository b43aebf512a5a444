import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { retryDelayMs } from '../../src/client/retry-delay.js'

const ALMOST_ONE = 1 - Number.EPSILON

describe('retryDelayMs', () => {
  it('doubles its longest wait from one attempt to the next, up to its maximum', () => {
    const longest = (attempt: number): number =>
      retryDelayMs(attempt, { base: '100ms', max: '1s', random: () => ALMOST_ONE })
    expect([1, 2, 3, 4, 5, 6].map(longest)).toEqual([100, 200, 400, 800, 1000, 1000])
  })

  it('waits anything from nothing to that, evenly', () => {
    const waits = (random: number): number => retryDelayMs(3, { base: 100, max: '1s', random: () => random })
    expect([0, 0.25, 0.5, 0.75].map(waits)).toEqual([0, 100, 200, 300])
  })

  it('has a base of 250 ms and a maximum of 10 s', () => {
    expect(retryDelayMs(1, { random: () => ALMOST_ONE })).toBe(250)
    expect(retryDelayMs(20, { random: () => ALMOST_ONE })).toBe(10_000)
  })

  it('takes chance from Math.random', () => {
    const delays = Array.from({ length: 100 }, () => retryDelayMs(1))
    expect(new Set(delays).size).toBeGreaterThan(10)
  })

  it('is a number of milliseconds within its bounds, whatever it is asked', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
        fc.nat(100_000),
        fc.nat(100_000),
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        (attempt, base, max, random) => {
          const delay = retryDelayMs(attempt, { base, max, random: () => random })
          expect(Number.isSafeInteger(delay)).toBe(true)
          expect(delay).toBeGreaterThanOrEqual(0)
          expect(delay).toBeLessThanOrEqual(Math.min(max, base * 2 ** (attempt - 1)) || 0)
        },
      ),
    )
  })

  it.each([0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY])('knows no attempt %d', (attempt) => {
    expect(() => retryDelayMs(attempt)).toThrow(RangeError)
  })

  it.each([{ base: 'soon' }, { max: '1 s' }, { base: -1 }])('refuses %o, which is no duration', (options) => {
    expect(() => retryDelayMs(1, options as never)).toThrow(String(Object.values(options)[0]))
  })
})
