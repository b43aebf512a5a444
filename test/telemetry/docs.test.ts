import { readFile } from 'node:fs/promises'
import { describe, expect, it } from 'vitest'
import { INSTRUMENTS, type Instrument } from '../../src/telemetry/instruments.js'

const page = await readFile(new URL('../../docs/metrics.md', import.meta.url), 'utf8')

describe('docs/metrics.md', () => {
  it.each(Object.values<Instrument>(INSTRUMENTS))('lists $prometheus as it is', (instrument) => {
    const { prometheus, openTelemetry, kind, labels, help } = instrument
    const shown = labels.length === 0 ? 'none' : labels.map((label) => `\`${label}\``).join(', ')
    expect(page).toContain(
      `| \`oncekey_${prometheus}\` | \`${openTelemetry}\` | ${kind} | ${shown} | ${help} |`,
    )
  })

  it('names no metric that there is not', () => {
    const known = new Set<string>(Object.values(INSTRUMENTS).map(({ prometheus }) => `oncekey_${prometheus}`))
    const named = page.match(/oncekey_\w+[a-z]/g)?.map((name) => name.replace(/_bucket$/, '')) ?? []
    expect(named.filter((name) => !known.has(name))).toEqual([])
    expect(named.length).toBeGreaterThan(known.size)
  })
})
