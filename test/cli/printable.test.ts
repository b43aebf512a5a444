import { describe, expect, it } from 'vitest'
import { cut, table } from '../../src/cli/layout.js'
import { printable, printableJson, printableLines, shellWord } from '../../src/cli/printable.js'
import { isoTime, lengthText } from '../../src/cli/times.js'

describe('printable', () => {
  it('escapes what could do something to a terminal, and nothing else', () => {
    expect(printable('a\u001b[31mb\u009b2J\u0000\n\u007f\u202e\u2028')).toBe(
      'a\\u001b[31mb\\u009b2J\\u0000\\u000a\\u007f\\u202e\\u2028',
    )
    expect(printable('\ud800x\udc00')).toBe('\\ud800x\\udc00')
    expect(printable('zażółć 漢字 😀 \\')).toBe('zażółć 漢字 😀 \\')
    expect(printableLines('a\n\tb\rc')).toBe('a\n\tb\\u000dc')
  })

  it('keeps JSON the document that it was', () => {
    const value = { 'k\u009b': ['\u001b', 'a\nb', '\u202e', '😀', '\u007f'] }
    const text = printableJson(value, 2)
    expect(JSON.parse(text)).toEqual(value)
    expect(text.replaceAll('\n', '')).not.toMatch(/[\p{Cc}\u202e]/u)
  })

  it('quotes words for a shell', () => {
    expect(shellWord('redis://127.0.0.1:6379/0')).toBe('redis://127.0.0.1:6379/0')
    expect(shellWord("it's $HOME")).toBe(`'it'\\''s $HOME'`)
    expect(shellWord('')).toBe("''")
    expect(shellWord('a\u001b[2J')).toBe("'a\\u001b[2J'")
  })
})

describe('lengthText', () => {
  it.each([
    [0, '0ms'],
    [-5, '0ms'],
    [999.6, '1000ms'],
    [1000, '1s'],
    [61_000, '1m 1s'],
    [3_600_000, '1h'],
    [3_661_000, '1h 1m'],
    [90_000_000, '1d 1h'],
  ])('writes %d ms as %s', (ms, text) => expect(lengthText(ms)).toBe(text))

  it('has no time for what is none', () => expect(isoTime(Number.NaN)).toBeNull())
})

describe('table', () => {
  it('aligns texts to the left and numbers to the right', () => {
    expect(
      table([
        ['NAME', 'COUNT'],
        ['a', 1],
        ['long 😀', 1000],
      ]),
    ).toBe('NAME    COUNT\na           1\nlong 😀   1000\n')
  })

  it('cuts by characters', () => {
    expect(cut('😀😀😀😀', 3)).toBe('😀😀…')
    expect(cut('abc', 3)).toBe('abc')
  })
})
