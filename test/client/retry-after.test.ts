import { describe, expect, it } from 'vitest'
import { retryAfterMs } from '../../src/client/retry-after.js'

const FIVE_O_CLOCK = 'Wed, 21 Oct 2026 17:00:00 GMT'

describe('retryAfterMs', () => {
  it.each([
    ['0', 0],
    ['1', 1000],
    ['120', 120_000],
  ])('reads %s as seconds', (value, ms) => {
    expect(retryAfterMs(new Headers({ 'retry-after': value }))).toBe(ms)
  })

  it('reads a date, by the clock of who sent it', () => {
    const headers = new Headers({ 'retry-after': 'Wed, 21 Oct 2026 17:00:30 GMT', date: FIVE_O_CLOCK })
    expect(retryAfterMs(headers)).toBe(30_000)
  })

  it('reads a date in the form of RFC 850', () => {
    const headers = new Headers({ 'retry-after': 'Wednesday, 21-Oct-26 17:00:30 GMT', date: FIVE_O_CLOCK })
    expect(retryAfterMs(headers)).toBe(30_000)
  })

  it("reads a date by this machine's clock where the answer has none", () => {
    const inAMinute = new Date(Date.now() + 60_000).toUTCString()
    const ms = retryAfterMs(new Headers({ 'retry-after': inAMinute }))
    expect(ms).toBeGreaterThan(30_000)
    expect(ms).toBeLessThanOrEqual(60_000)
  })

  it.each([
    ['a date that has passed', 'Wed, 21 Oct 2015 07:28:00 GMT'],
    ['a negative number', '-5'],
    ['a word', 'soon'],
    ['nothing', ''],
    ['two values', '1, 2'],
  ])('takes %s for no time', (_, value) => {
    expect(retryAfterMs(new Headers({ 'retry-after': value, date: FIVE_O_CLOCK }))).toBe(0)
  })

  it('is no time where no answer came, or it does not say', () => {
    expect(retryAfterMs(new Headers())).toBe(0)
    expect(retryAfterMs(undefined)).toBe(0)
  })
})
