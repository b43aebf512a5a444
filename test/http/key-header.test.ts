import { describe, expect, it } from 'vitest'
import { parseKeyHeader } from '../../src/http/key-header.js'

describe('parseKeyHeader', () => {
  it.each([
    ['abc', 'abc'],
    ['"abc"', 'abc'],
    ['8e03978e-40d5-43dd-bc93-6894a57f9324', '8e03978e-40d5-43dd-bc93-6894a57f9324'],
    ['"8e03978e-40d5-43dd-bc93-6894a57f9324"', '8e03978e-40d5-43dd-bc93-6894a57f9324'],
    ['a_b.c:d~e+f/g=h@i-j', 'a_b.c:d~e+f/g=h@i-j'],
    ['"with space, and comma"', 'with space, and comma'],
    [String.raw`"say \"hi\" \\ bye"`, String.raw`say "hi" \ bye`],
    ['"abc";v=1', 'abc'],
    ['"abc"; a; b=?1; c="x;y"; d=tok/en; e=-1.5; f=:aGk=:; g=@1659578233', 'abc'],
  ])('reads %s as %s', (header, key) => {
    expect(parseKeyHeader(header, 'Idempotency-Key')).toBe(key)
  })

  it.each([
    '',
    'two words',
    'a,b',
    '"a", "b"',
    '"open',
    'open"',
    '"a" "b"',
    '"a";',
    '"a";V=1',
    '"a"b',
    "'abc'",
    'naïve',
    '"naïve"',
    String.raw`"bad \escape"`,
    'abc;v=1',
    '("abc")',
  ])('refuses %s', (header) => {
    expect(() => parseKeyHeader(header, 'Idempotency-Key')).toThrow(
      expect.objectContaining({ code: 'IDEMPOTENCY_KEY_INVALID' }),
    )
  })

  it('takes time in proportion to the length of the header', () => {
    const hostile = [
      `"${'\\"'.repeat(20_000)}`,
      `"a"${'; a=1'.repeat(10_000)}!`,
      `"a"${'; '.repeat(20_000)}`,
      `${'a'.repeat(50_000)} `,
    ]
    const startedAt = performance.now()
    for (const header of hostile) expect(() => parseKeyHeader(header, 'Idempotency-Key')).toThrow()
    expect(performance.now() - startedAt).toBeLessThan(1000)
  })
})
