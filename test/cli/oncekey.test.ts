import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { CHANGE_OPTIONS } from '../../src/cli/audit-trail.js'
import { COMMANDS } from '../../src/cli/commands.js'
import { INBOX_OPTIONS } from '../../src/cli/inbox-flags.js'
import { RECORD_OPTIONS } from '../../src/cli/record-name.js'
import { OUTCOME_OPTIONS } from '../../src/cli/settled-outcome.js'
import { STORE_OPTIONS } from '../../src/cli/store-flags.js'
import { ONCEKEY, runOncekey } from '../support/oncekey-program.js'

const LONG_MS = 60_000

const SHARED: Readonly<Record<string, object>> = {
  INBOX_OPTIONS,
  CHANGE_OPTIONS,
  RECORD_OPTIONS,
  OUTCOME_OPTIONS,
  STORE_OPTIONS,
}

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
      for (const { name, summary } of COMMANDS)
        expect(out).toMatch(new RegExp(`^  ${name} +${summary.slice(0, 20)}`, 'm'))
      expect({ code, err }).toEqual({ code: 0, err: '' })
    },
    LONG_MS,
  )

  it.each(COMMANDS)('says everything about $name, and its exit codes', ({ name, help }) => {
    const source = readFileSync(`src/cli/${name}.ts`, 'utf8')
    const options = source.slice(source.indexOf('parseArgs({'))
    const own = [...options.matchAll(/[ {]'?([a-z-]+)'?: \{ type: '/g)].map((match) => match[1] ?? '')
    const shared = [...options.matchAll(/\.\.\.(\w+_OPTIONS)/g)].flatMap(([, set]) =>
      Object.keys(SHARED[set ?? ''] ?? {}),
    )
    expect(own.length + shared.length).toBeGreaterThan(4)
    for (const option of [...own, ...shared]) expect(help).toMatch(new RegExp(`--${option}\\b`))
    expect(help).toMatch(/^Usage: oncekey /m)
    expect(help).toContain('Exit codes:')
    for (const line of help.split('\n')) expect(line.length).toBeLessThanOrEqual(128)
  })

  it(
    'gives the help of a command, whatever else is said',
    async () => {
      const { code, out, err } = await runOncekey('settle', '--id=x', '--help')
      expect(out).toBe(COMMANDS.find(({ name }) => name === 'settle')?.help)
      expect({ code, err }).toEqual({ code: 0, err: '' })
    },
    LONG_MS,
  )

  it.each([
    ['list', ['--limit=none'], '--limit is a whole number above zero'],
    ['list', ['--status=lost'], '--status is one of running, unknown, completed, tombstone'],
    ['list', ['--older-than=old'], '--older-than is a length of time'],
    ['list', ['--namespace=a'], '--namespace says which --scope is meant'],
    ['list', ['--fast'], "Unknown option '--fast'"],
    ['list', ['key'], 'Unexpected argument'],
    ['show', [], 'name the record'],
    ['show', ['key'], 'name the scope of the key'],
    ['show', ['key', '--scope=a', '--id=b'], 'not by both'],
    ['show', ['a', 'b', '--scope=c'], 'one key is enough'],
    ['show', ['--id=short'], 'an id has 43 characters'],
    ['show', ['a\nb', '--scope=c'], 'must not hold control characters'],
    ['release', [], 'name the record'],
    ['settle', ['--status=201'], 'name the record'],
  ])(
    'ends with 2 where %s is given %j',
    async (name, args, message) => {
      const { code, out, err } = await runOncekey(name, ...args)
      expect(err).toContain(message)
      expect(err).not.toContain('    at ')
      expect({ code, out }).toEqual({ code: 2, out: '' })
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
