import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { ONCEKEY, runOncekey } from '../support/oncekey-program.js'

const LONG_MS = 60_000

const { version, bin } = JSON.parse(readFileSync('package.json', 'utf8')) as {
  readonly version: string
  readonly bin: { readonly oncekey: string }
}

describe('oncekey', () => {
  it('is the program that the package names', () => {
    expect(ONCEKEY.endsWith(bin.oncekey)).toBe(true)
    expect(readFileSync(ONCEKEY, 'utf8').startsWith('#!/usr/bin/env node\n')).toBe(true)
  })

  it(
    'says what it can do',
    async () => {
      const { code, out, err } = await runOncekey('--help')
      expect(out).toMatch(/Usage: oncekey COMMAND/)
      expect(out).toMatch(/ {2}conformance {3}\S/)
      expect({ code, err }).toEqual({ code: 0, err: '' })
    },
    LONG_MS,
  )

  it(
    'says everything about a command, and its exit codes',
    async () => {
      const { code, out } = await runOncekey('conformance', '--help')
      const source = readFileSync('src/cli/conformance.ts', 'utf8')
      const options = source.slice(source.indexOf('options: {'), source.indexOf('const [url'))
      const names = [...options.matchAll(/^ {8}'?([a-z-]+)'?: \{ type/gm)].map((match) => `--${match[1]}`)
      expect(names.length).toBeGreaterThan(15)
      for (const name of names) expect(out).toContain(name)
      expect(out).toContain('Exit codes:')
      expect(code).toBe(0)
    },
    LONG_MS,
  )

  it(
    'says its version',
    async () => {
      expect(await runOncekey('--version')).toEqual({ code: 0, out: `${version}\n`, err: '' })
    },
    LONG_MS,
  )

  it.each([
    ['without a command', [], 'Usage: oncekey COMMAND'],
    ['with a command that there is none of', ['conform'], 'there is no command "conform"'],
  ])(
    'ends with 2 %s',
    async (_, args, message) => {
      const { code, out, err } = await runOncekey(...args)
      expect(err).toContain(message)
      expect({ code, out }).toEqual({ code: 2, out: '' })
    },
    LONG_MS,
  )
})
