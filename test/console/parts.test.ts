import { describe, expect, it } from 'vitest'
import { createConfirmations } from '../../src/console/confirmation.js'
import { createCounter, type Kind, MINUTES, sumOf } from '../../src/console/counts.js'
import { html } from '../../src/console/html.js'
import { viewStore } from '../../src/console/store-view.js'
import type { ListQuery, StoredRecord } from '../../src/contract/store.js'
import type { IdempotencyEvent } from '../../src/core/events.js'
import { memoryStore } from '../../src/stores/memory.js'

describe('html', () => {
  it('escapes every value, and what it has made itself only once', () => {
    const inner = html`<b>${'<&>"\'`'}</b>`
    expect(String(html`<p title="${'"'}">${inner}${[inner, '<']}</p>`)).toBe(
      '<p title="&#34;"><b>&#60;&#38;&#62;&#34;&#39;&#96;</b><b>&#60;&#38;&#62;&#34;&#39;&#96;</b>&#60;</p>',
    )
  })

  it('writes numbers, and nothing for what is not there', () => {
    expect(String(html`${0}|${undefined}|${null}|${false}|${''}`)).toBe('0||||')
  })

  it('trusts nothing that only looks like its own', () => {
    const forged = { toString: () => '<script>' } as unknown as string
    expect(String(html`${[forged].map(String)}`)).toBe('&#60;script&#62;')
  })
})

describe('a counter', () => {
  const event = (type: string): IdempotencyEvent => ({ type }) as IdempotencyEvent

  it('tells minutes apart, forgets the oldest, and keeps the total', () => {
    let now = 59_000
    const counter = createCounter(() => now)
    counter.count(event('claimed'))
    now = 61_000
    counter.count(event('replayed'))
    counter.count(event('replayed'))
    const { minutes } = counter.read()
    expect(minutes).toHaveLength(MINUTES)
    expect(minutes.at(-1)).toMatchObject({ run: 0, replay: 2 })
    expect(minutes.at(-2)).toMatchObject({ run: 1, replay: 0 })
    now += (MINUTES - 1) * 60_000
    expect(counter.read().minutes.map(sumOf)).toEqual([2, ...Array(MINUTES - 1).fill(0)])
    now += 60_000
    expect(counter.read().minutes.every((counts) => sumOf(counts) === 0)).toBe(true)
    expect(counter.read().total).toMatchObject({ run: 1, replay: 2 })
  })

  it('has nothing left over after a pause that is longer than it remembers', () => {
    let now = 0
    const counter = createCounter(() => now)
    for (let minute = 0; minute < 200; minute += 1) {
      now = minute * 60_000
      counter.count(event('refused'))
    }
    now += 1000 * 60_000
    counter.count(event('mismatch'))
    const { minutes, total } = counter.read()
    expect(minutes.map(sumOf)).toEqual([...Array(MINUTES - 1).fill(0), 1])
    expect(total).toMatchObject({ refused: 200, mismatch: 1 })
  })

  it.each<[string, Kind | undefined]>([
    ['claimed', 'run'],
    ['unprotected', 'run'],
    ['replayed', 'replay'],
    ['in-progress', 'in-progress'],
    ['mismatch', 'mismatch'],
    ['unknown', 'unknown'],
    ['refused', 'refused'],
    ['completed', undefined],
    ['store-call', undefined],
  ])('counts %s as %s', (type, kind) => {
    const counter = createCounter()
    counter.count(event(type))
    const { total } = counter.read()
    expect(sumOf(total)).toBe(kind === undefined ? 0 : 1)
    if (kind !== undefined) expect(total[kind]).toBe(1)
  })
})

describe('a proof', () => {
  const ann = { by: 'ann' }

  it('ends after 15 minutes, and is not taken from the future', () => {
    let now = 1_000_000_000
    const { make, holds } = createConfirmations('secret', () => now)
    const proof = make(ann, ['x'])
    now += 15 * 60_000
    expect(holds(proof, ann, ['x'])).toBe(true)
    now += 1
    expect(holds(proof, ann, ['x'])).toBe(false)
    now -= 17 * 60_000
    expect(holds(proof, ann, ['x'])).toBe(false)
  })

  it('cannot be made younger', () => {
    let now = 1_000_000_000
    const { make, holds } = createConfirmations('secret', () => now)
    const [, mac] = make(ann, ['x']).split('.')
    now += 3_600_000
    expect(holds(`${now.toString(36)}.${mac}`, ann, ['x'])).toBe(false)
  })

  it('tells apart what would read alike side by side', () => {
    const { make, holds } = createConfirmations('secret')
    const proof = make({ by: 'ann', session: 's' }, ['a', 'b'])
    expect(holds(proof, { by: 'ann', session: 's' }, ['a', 'b'])).toBe(true)
    expect(holds(proof, { by: 'ann', session: 's' }, ['ab'])).toBe(false)
    expect(holds(proof, { by: 'anns' }, ['a', 'b'])).toBe(false)
    expect(holds(proof, ann, ['a', 'b'])).toBe(false)
  })
})

describe('a view of a store', () => {
  const record = (firstSeenAt: number): StoredRecord => ({
    ...{ id: String(firstSeenAt), fingerprint: 'f', fence: 1, expiresInMs: 1000, status: 'unknown' },
    meta: { key: 'k', route: 'r', scope: 's', firstSeenAt },
  })
  const listing = (list: () => AsyncIterable<StoredRecord>) => {
    const view = viewStore({ ...memoryStore(), list }, 100)
    return view.list?.({ limit: 2 })
  }

  it('says whether there are more than were asked for', async () => {
    const of = (count: number) =>
      listing(async function* () {
        for (let index = 0; index < count; index += 1) yield record(index)
      })
    expect(await of(2)).toMatchObject({ ended: 'all', records: [{ id: '0' }, { id: '1' }] })
    const more = await of(3)
    expect(more?.ended).toBe('limit')
    expect(more?.records).toHaveLength(2)
  })

  it('gives what was found when the time is up', async () => {
    const found = await listing(async function* () {
      yield record(7)
      await new Promise(() => {})
    })
    expect(found).toMatchObject({ ended: 'time', records: [{ id: '7' }] })
  })

  it('ends in time when nothing comes', async () => {
    const silent = await listing(async function* () {
      await new Promise(() => {})
      yield record(1)
    })
    expect(silent).toEqual({ ended: 'time', records: [] })
  })

  it('stops a store that reads and finds nothing, when the time is up', async () => {
    let ended = false
    const list = async function* ({ signal }: ListQuery): AsyncIterable<StoredRecord> {
      // Somebody else's time limit, so that this test cannot go on for good.
      for (let page = 0; page < 1000 && signal?.aborted !== true; page += 1)
        await new Promise((resolve) => setTimeout(resolve, 5))
      ended = signal?.aborted === true
      yield* []
    }
    const view = viewStore({ ...memoryStore(), list }, 50)
    expect(await view.list?.({ limit: 2 })).toEqual({ ended: 'time', records: [] })
    await expect.poll(() => ended).toBe(true)
  })

  it('stops when the one who asked is gone', async () => {
    const gone = new AbortController()
    const list = async function* ({ signal }: ListQuery): AsyncIterable<StoredRecord> {
      yield record(1)
      gone.abort()
      if (signal?.aborted !== true) throw new Error('It went on')
    }
    const view = viewStore({ ...memoryStore(), list }, 60_000)
    expect(await view.list?.({ limit: 2, signal: gone.signal })).toMatchObject({ ended: 'time' })
  })
})
