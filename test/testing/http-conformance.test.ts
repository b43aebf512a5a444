import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { Redis } from 'ioredis'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import { memoryStore } from '../../src/stores/memory.js'
import { redisStore } from '../../src/stores/redis.js'
import {
  checkHttpConformance,
  formatHttpConformance,
  type HttpConformanceOptions,
  type HttpConformanceReport,
  type HttpTarget,
  httpConformance,
  httpConformanceCost,
  TargetUnfitError,
} from '../../src/testing/test-kit.js'
import { type Flaw, serveFlawed } from '../support/flawed-shop.js'
import { startServer } from '../support/http-server.js'
import { serveNaively } from '../support/naive-shop.js'
import { describeWith } from '../support/services.js'
import { shopTarget } from '../support/shop.js'
import { type ServedShop, SHOP_SERVERS } from '../support/shop-servers.js'

/** Checks that wait for time to pass. Who is not about them leaves them out. */
const WAITING = [
  'replay-date',
  'concurrent',
  'concurrent-described',
  'concurrent-other-payload',
  'concurrent-retry-after',
  'race',
  'cut',
]

const LONG_MS = 120_000

describe.each(Object.entries(SHOP_SERVERS))('httpConformance › %s, memoryStore', (_, serve) => {
  let served: ServedShop
  let target: HttpTarget
  beforeAll(async () => {
    served = await serve(memoryStore())
    target = shopTarget(served.url)
  })
  afterAll(() => served.close())

  it.each(httpConformance)('$name', ({ run }) => run(target), LONG_MS)
})

describeWith(['redis'], 'httpConformance › redisStore', () => {
  it.each(Object.entries(SHOP_SERVERS))(
    'finds nothing wrong with %s, and leaves nothing out',
    async (_, serve) => {
      const redis = new Redis(inject('services').redisUrl)
      const served = await serve(redisStore(redis), { namespace: randomUUID() })
      const report = await checkHttpConformance(shopTarget(served.url))
      await served.close()
      await redis.quit()
      expect(formatHttpConformance(report)).toContain(`${httpConformance.length} passed, 0 failed, 0 skipped`)
    },
    LONG_MS,
  )
})

/** Each flaw, and every check that it fails. Where it would keep others from being judged, those alone are made. */
const CAUGHT: readonly {
  readonly flaw: Flaw
  readonly fails: readonly string[]
  readonly only?: readonly string[]
}[] = [
  {
    flaw: 'runs the handler twice',
    fails: ['first-request', 'retry', 'new-key', 'key-string', 'reuse', 'patch', 'caller-isolation']
      .concat(['reuse-leaves-first', 'invalid-not-kept', 'replay-binary', 'replay-empty', 'replay-streamed'])
      .concat(['replay-large', 'key-bare', 'key-case', 'key-whole']),
  },
  {
    flaw: 'keeps nothing',
    fails: ['retry', 'key-string', 'error-client', 'error-server', 'patch', 'caller-isolation']
      .concat(['reuse-leaves-first', 'replay-headers', 'replay-binary', 'replay-empty', 'replay-streamed'])
      .concat(['replay-large', 'key-bare']),
  },
  {
    flaw: 'goes by the payload alone',
    fails: ['new-key', 'reuse', 'key-case', 'key-whole'],
  },
  { flaw: 'takes plain words only', fails: ['key-string'] },
  { flaw: 'refuses quotes', fails: ['key-string'] },
  { flaw: 'runs without a key', fails: ['missing-key', 'missing-key-link'] },
  { flaw: 'names no documentation', fails: ['missing-key-link', 'reuse-link'] },
  { flaw: 'compares no payloads', fails: ['reuse'] },
  {
    flaw: 'has no running state',
    fails: ['concurrent', 'race', 'cut'],
    only: ['concurrent', 'race', 'cut'],
  },
  {
    flaw: 'refuses duplicates without a word',
    fails: ['concurrent-described', 'concurrent-retry-after'],
    only: ['concurrent', 'concurrent-described', 'concurrent-retry-after', 'race', 'cut'],
  },
  { flaw: 'forgets failures of the client', fails: ['error-client'] },
  { flaw: 'forgets failures of the server', fails: ['error-server'] },
  { flaw: 'protects POST only', fails: ['patch'] },
  { flaw: 'knows no callers', fails: ['caller-isolation'] },
  { flaw: 'looks before it claims', fails: ['race'], only: ['retry', 'race'] },
  {
    flaw: 'compares payloads of ended requests only',
    fails: ['concurrent-other-payload'],
    only: ['reuse', 'concurrent', 'concurrent-other-payload', 'race', 'cut'],
  },
  {
    flaw: 'does not say when to come again',
    fails: ['concurrent-retry-after'],
    only: ['concurrent', 'concurrent-described', 'concurrent-retry-after'],
  },
  { flaw: 'forgets a key that is reused', fails: ['reuse-leaves-first'] },
  { flaw: 'keeps what validation refused', fails: ['invalid-not-kept'] },
  {
    flaw: 'forgets a key whose client leaves',
    fails: ['cut'],
    only: ['retry', 'concurrent', 'race', 'cut'],
  },
  { flaw: 'refuses with text', fails: ['problem-json'] },
  { flaw: 'lets refusals be cached', fails: ['problem-no-store'] },
  { flaw: 'tells the first request', fails: ['problem-discreet'] },
  { flaw: 'replays status and body only', fails: ['replay-headers', 'replay-empty'] },
  { flaw: 'replays cookies', fails: ['replay-cookie'] },
  {
    flaw: 'replays the date',
    fails: ['replay-date'],
    only: ['retry', 'replay-headers', 'replay-date', 'replay-connection'],
  },
  { flaw: 'replays the connection', fails: ['replay-connection'] },
  { flaw: 'keeps bodies as text', fails: ['replay-binary'] },
  { flaw: 'replays nothing as an empty object', fails: ['replay-empty'] },
  { flaw: 'keeps the first piece of a stream', fails: ['replay-streamed'] },
  { flaw: 'keeps 64 KiB of a body', fails: ['replay-large'] },
  { flaw: 'takes quotes for a part of the key', fails: ['key-bare'] },
  { flaw: 'lowers the case of keys', fails: ['key-case'] },
  { flaw: 'keeps 200 characters of a key', fails: ['key-whole'] },
  { flaw: 'takes keys of any length', fails: ['key-too-long'] },
  { flaw: 'takes an empty key', fails: ['key-empty'] },
  { flaw: 'takes anything for a key', fails: ['key-malformed'] },
  { flaw: 'joins repeated headers', fails: ['key-repeated'] },
]

// They wait more than they work, each for a server of its own.
describe.concurrent('httpConformance › a server with one flaw', () => {
  it('fails every check for at least one flaw', () => {
    const caught = new Set(CAUGHT.flatMap(({ fails }) => fails))
    expect(httpConformance.map(({ id }) => id).filter((id) => !caught.has(id))).toEqual([])
  })

  it(
    'passes all of them without any flaw',
    async () => {
      const { failed, skipped, passed } = await checkFlawed([])
      expect({ passed, failed, skipped }).toEqual({ passed: httpConformance.length, failed: 0, skipped: 0 })
    },
    LONG_MS,
  )

  it.each(CAUGHT)(
    'fails exactly what it should: $flaw',
    async ({ flaw, fails, only }) => {
      const report = await checkFlawed([flaw], only === undefined ? { without: WAITING } : { only })
      expect(failuresOf(report)).toEqual([...fails].sort())
    },
    LONG_MS,
  )
})

describe('httpConformance › a naive middleware', () => {
  it(
    'fails where it should, and is right where it is',
    async () => {
      const { url, close } = await serveNaively()
      const report = await checkHttpConformance(shopTarget(url))
      await close()
      expect(failuresOf(report)).toEqual(
        [
          ...['missing-key', 'missing-key-link', 'reuse', 'concurrent', 'caller-isolation', 'race', 'cut'],
          ...['concurrent-other-payload', 'invalid-not-kept', 'replay-cookie', 'replay-date'],
          ...['key-bare', 'key-too-long', 'key-empty', 'key-malformed', 'key-repeated'],
        ].sort(),
      )
      expect(idsOf(report, 'skipped')).toEqual(
        [
          ...['reuse-link', 'concurrent-described', 'concurrent-retry-after', 'reuse-leaves-first'],
          ...['problem-discreet', 'problem-json', 'problem-no-store'],
        ].sort(),
      )
    },
    LONG_MS,
  )
})

describe('httpConformance › with little to go by', () => {
  it(
    'judges what it can with a URL alone, and says of the rest why not',
    async () => {
      const report = await withServed(serveFlawed([]), ({ url }) =>
        checkHttpConformance({ url: `${url}/payments`, body: shopTarget(url).body ?? null }),
      )
      expect(report.effects).toEqual({
        evidence: 'named in answers',
        source: 'the header location of answers',
      })
      expect(failuresOf(report)).toEqual([])
      const skipped = Object.fromEntries(
        report.checks.filter(({ status }) => status === 'skipped').map(({ id, seen }) => [id, seen]),
      )
      expect(Object.keys(skipped).sort()).toEqual(
        [
          ...['error-client', 'error-server', 'patch', 'caller-isolation', 'concurrent-other-payload', 'cut'],
          ...['concurrent', 'concurrent-described', 'concurrent-retry-after'],
          ...['invalid-not-kept', 'replay-binary', 'replay-empty', 'replay-streamed', 'replay-large'],
        ].sort(),
      )
      expect(skipped.patch).toBe('the target names no operation "patch"')
      expect(skipped['caller-isolation']).toContain('--caller-header')
      expect(skipped.concurrent).toContain('name an operation "slow"')
    },
    LONG_MS,
  )

  it(
    'catches a second effect by what answers name, where the server does not count',
    async () => {
      const check = (flaw: Flaw, effectId?: string): Promise<HttpConformanceReport> =>
        withServed(serveFlawed([flaw]), ({ url }) => {
          const { effects: _, ...target } = shopTarget(url)
          const named = effectId === undefined ? target : { ...target, effectId }
          return checkHttpConformance(named, { only: ['retry', 'new-key', 'race', 'cut'] })
        })
      const twice = await check('has no running state')
      expect(failuresOf(twice)).toEqual(['race'])
      expect(idsOf(twice, 'skipped')).toEqual(['cut'])
      const once = await check('goes by the payload alone', '/id')
      expect(once.effects.source).toBe('/id in the body of answers')
      expect(failuresOf(once)).toEqual(['new-key'])
    },
    LONG_MS,
  )

  it('judges no effects where answers do not differ', async () => {
    const server = await startServer((reply) => reply.end('done'))
    const report = await checkHttpConformance({ url: server.url }, { without: WAITING })
    await server.close()
    expect(report.effects.evidence).toBe('not seen')
    expect(idsOf(report, 'skipped')).toEqual(
      expect.arrayContaining(['retry', 'new-key', 'key-case', 'key-bare']),
    )
    expect(report.checks.find(({ id }) => id === 'first-request')).toMatchObject({
      status: 'passed',
      effects: null,
    })
  })

  it('finds another payload where the target has one body only, by a number in it', async () => {
    const check = (body: string): Promise<HttpConformanceReport> =>
      withServed(serveFlawed([]), ({ url }) =>
        checkHttpConformance({ ...shopTarget(url), body }, { only: ['reuse'] }),
      )
    expect(await check('{"amount": 5, "note": "a-2"}')).toMatchObject({ passed: 1 })
    const without = await withServed(serveFlawed([]), ({ url }) =>
      checkHttpConformance({ ...shopTarget(url), body: '{"amount":5e0,"note":"a"}' }, { only: ['reuse'] }),
    )
    expect(without.checks[0]).toMatchObject({ status: 'skipped', seen: expect.stringContaining('{{n}}') })
  })
})

describe('httpConformance › servers that are right in another way', () => {
  it(
    'lets duplicates wait, where the target says so',
    async () => {
      const report = await withServed(serve('fastify', { whenBusy: { wait: '20s' } }), ({ url }) =>
        checkHttpConformance({ ...shopTarget(url), duplicates: 'held' }),
      )
      expect(failuresOf(report)).toEqual([])
      expect(idsOf(report, 'skipped')).toEqual([
        'concurrent',
        'concurrent-described',
        'concurrent-retry-after',
      ])
    },
    LONG_MS,
  )

  it(
    'holds it against a server that duplicates wait, where the target does not say so',
    async () => {
      const report = await withServed(serve('fastify', { whenBusy: { wait: '20s' } }), ({ url }) =>
        checkHttpConformance(shopTarget(url), { only: ['concurrent', 'race'] }),
      )
      expect(failuresOf(report)).toEqual(['concurrent'])
    },
    LONG_MS,
  )

  it('takes a refusal for the replay of an answer that is too large to keep', async () => {
    const report = await withServed(serve('fastify', { maxBodyBytes: 100_000 }), ({ url }) =>
      checkHttpConformance(shopTarget(url), { only: ['replay-large'] }),
    )
    expect(report.checks[0]).toMatchObject({
      status: 'passed',
      effects: 1,
      seen: expect.stringMatching(/^409 /),
    })
  })

  it("lets an operation's headers go before a caller's", async () => {
    const server = await startServer((reply, { headers }, number) =>
      headers.authorization === 'ada'
        ? reply.writeHead(201, { location: `/${number}` }).end()
        : reply.writeHead(401).end(),
    )
    const report = await checkHttpConformance(
      {
        url: server.url,
        headers: { Authorization: 'everybody' },
        callers: [{ authorization: 'ada' }, { authorization: 'bob' }],
        operations: { invalid: { headers: { authorization: 'nobody' } } },
      },
      { only: ['invalid-not-kept'] },
    )
    await server.close()
    expect(report.checks[0]).toMatchObject({
      status: 'passed',
      seen: expect.stringMatching(/^401 .*, then 201 /),
    })
  })

  it('asks for no key where none is required', async () => {
    const report = await withServed(serveFlawed(['runs without a key']), ({ url }) =>
      checkHttpConformance({ ...shopTarget(url), required: false }, { without: WAITING }),
    )
    expect(failuresOf(report)).toEqual([])
    expect(idsOf(report, 'skipped')).toEqual(['missing-key', 'missing-key-link'])
  })
})

describe('httpConformance › in a test runner', () => {
  const only = (id: string): (typeof httpConformance)[number] => {
    const found = httpConformance.find((one) => one.id === id)
    if (found === undefined) throw new Error(`There is no check ${id}`)
    return found
  }

  it('rejects with what was expected and seen', async () => {
    await withServed(serveFlawed(['knows no callers']), async ({ url }) => {
      await expect(only('caller-isolation').run(shopTarget(url))).rejects.toThrow(
        /^Expected: for one key of two callers two effects.* Seen: 1 instead of 2 effects \(counted\)/,
      )
    })
  })

  it('rejects where nothing can be judged: no test passes without a look', async () => {
    await withServed(serveFlawed([]), async ({ url }) => {
      const { operations: _, ...target } = shopTarget(url)
      await expect(only('patch').run(target)).rejects.toThrow(
        'Cannot be judged: the target names no operation "patch"',
      )
    })
  })

  it('looks again at a server that did not answer at first', async () => {
    const target = { url: 'http://127.0.0.1:1/' } as { url: string }
    await expect(only('first-request').run(target)).rejects.toThrow('gives no answer')
    await withServed(serveFlawed(['runs without a key']), async ({ url }) => {
      Object.assign(target, shopTarget(url))
      await only('first-request').run(target)
    })
  })

  it('makes the checks of one target one after the other', async () => {
    await withServed(serveFlawed([]), async ({ url }) => {
      const target = shopTarget(url)
      const counting = [
        'first-request',
        'retry',
        'new-key',
        'patch',
        'key-case',
        'key-whole',
        'caller-isolation',
      ]
      await Promise.all(counting.map((id) => only(id).run(target)))
    })
  })
})

describe('httpConformance › what it costs', () => {
  it(
    'asks for no more than it says beforehand',
    async () => {
      await withServed(serveFlawed([]), async ({ url, shop, requests }) => {
        const target = shopTarget(url)
        const announced = httpConformanceCost(target)
        await checkHttpConformance(target)
        expect(shop.effects).toBeLessThanOrEqual(announced.effects)
        expect(shop.effects).toBeGreaterThan(announced.effects - 10)
        // While it waits for a running operation it asks again, ten times a second; nothing here runs for long.
        expect(requests()).toBeLessThanOrEqual(announced.requests + 30)
        expect(requests()).toBeGreaterThan(announced.requests - 60)
      })
    },
    LONG_MS,
  )

  it('counts only the checks that are made', () => {
    const target = { url: 'http://127.0.0.1/' }
    expect(httpConformanceCost(target, { only: ['retry'] })).toEqual({ checks: 1, requests: 6, effects: 4 })
    expect(httpConformanceCost({ ...target, parallel: 50 }, { only: ['race'] }).requests).toBe(55)
    expect(httpConformanceCost(target).checks).toBe(httpConformance.length)
  })
})

describe('httpConformance › targets that cannot be checked', () => {
  it('says that nobody answers', async () => {
    const server = await startServer(() => {})
    await server.close()
    await expect(checkHttpConformance({ url: server.url })).rejects.toThrow(TargetUnfitError)
    await expect(checkHttpConformance({ url: server.url })).rejects.toThrow(/gives no answer: .*ECONNREFUSED/)
  })

  it('says that the operation does not succeed, and how it was answered', async () => {
    const server = await startServer((reply) => reply.writeHead(401).end('who are you?'))
    await expect(checkHttpConformance({ url: server.url })).rejects.toThrow(/401 \(12 bytes\) who are you\?/)
    await server.close()
  })

  it('says that a server is silent', async () => {
    const server = await startServer(() => {})
    await expect(checkHttpConformance({ url: server.url, timeout: '200ms' })).rejects.toThrow(
      /no answer within 200 ms/,
    )
    await server.close()
  })

  it('fails a check whose request gets no answer, and goes on', async () => {
    const server = await startServer((reply, { key }, number) =>
      key === undefined ? reply.destroy() : reply.writeHead(201, { location: `/${number}` }).end(),
    )
    const { checks } = await checkHttpConformance({ url: server.url }, { only: ['missing-key', 'new-key'] })
    await server.close()
    expect(checks).toMatchObject([
      { id: 'new-key', status: 'passed' },
      { id: 'missing-key', status: 'failed', seen: 'socket hang up' },
    ])
  })

  it('does not judge a server that takes no more requests', async () => {
    const server = await startServer((reply, _, number) =>
      number > 3 ? reply.writeHead(429).end() : reply.writeHead(201, { location: `/${number}` }).end(),
    )
    const report = await checkHttpConformance({ url: server.url }, { only: ['new-key'] })
    await server.close()
    expect(report.checks[0]).toMatchObject({ status: 'skipped', seen: expect.stringContaining('429') })
  })

  it.each([
    [{ url: 'ftp://127.0.0.1/' }, 'option "url" must be an http or https URL; got "ftp://127.0.0.1/"'],
    [{ url: 'http://127.0.0.1/', callers: [{}] }, 'option "callers"'],
    [{ url: 'http://127.0.0.1/', parallel: 1 }, 'option "parallel"'],
    [{ url: 'http://127.0.0.1/', timeout: 'soon' }, 'option "timeout"'],
    [{ url: 'http://127.0.0.1/', operations: { fast: {} } }, 'option "operations"'],
    [{ url: 'http://127.0.0.1/', operations: { slow: { url: 'ftp://x/' } } }, 'option "operations.slow.url"'],
    [{ url: 'http://127.0.0.1/', effect: '/effects' }, 'effect'],
  ])('refuses %j', async (target, message) => {
    await expect(checkHttpConformance(target as unknown as HttpTarget)).rejects.toThrow(message)
  })

  it('refuses a check that there is none of', async () => {
    const target = { url: 'http://127.0.0.1/' }
    await expect(checkHttpConformance(target, { only: ['retries'] })).rejects.toThrow(
      'there is no check "retries"',
    )
    expect(() => httpConformanceCost(target, { without: ['retries'] })).toThrow('there is no check "retries"')
  })

  it.each([
    ['no number', 'many'],
    ['another object', '{"count":1}'],
    ['less than nothing', '-1'],
  ])('refuses effects that are %s', async (_, body) => {
    const server = await startServer((reply) => reply.end(body))
    await expect(checkHttpConformance({ url: server.url, effects: '/effects' })).rejects.toThrow(
      'option "effects"',
    )
    await server.close()
  })
})

describe('httpConformance › its page', () => {
  const page = readFileSync('docs/conformance.md', 'utf8')

  it('explains every check, as the report does', async () => {
    const { checks } = await checkFlawed(['takes plain words only'], { without: WAITING })
    for (const { id, title, expected, source } of checks) {
      const cited = source.replaceAll('draft-ietf-httpapi-idempotency-key-header-07, section ', 'draft ')
      expect(page).toContain(`| \`${id}\` | ${title} | ${expected} | ${cited} |`)
    }
    for (const { id } of httpConformance) expect(page).toContain(`| \`${id}\` |`)
  })

  it('shows targets that are taken', () => {
    const [shown] = [...page.matchAll(/```json\n(.*?)```/gs)].map((match) => JSON.parse(match[1] ?? ''))
    expect(httpConformanceCost(shown).checks).toBe(httpConformance.length)
  })
})

function serve(name: string, options: Parameters<(typeof SHOP_SERVERS)[string]>[1]): Promise<ServedShop> {
  const by = SHOP_SERVERS[name]
  if (by === undefined) throw new Error(`There is no server ${name}`)
  return by(memoryStore(), options)
}

async function withServed<S extends ServedShop, T>(
  serving: Promise<S>,
  work: (served: S) => Promise<T>,
): Promise<T> {
  const served = await serving
  try {
    return await work(served)
  } finally {
    await served.close()
  }
}

function checkFlawed(
  flaws: readonly Flaw[],
  options: HttpConformanceOptions = {},
): Promise<HttpConformanceReport> {
  return withServed(serveFlawed(flaws), ({ url }) => checkHttpConformance(shopTarget(url), options))
}

function failuresOf(report: HttpConformanceReport): readonly string[] {
  return idsOf(report, 'failed')
}

function idsOf({ checks }: HttpConformanceReport, status: 'failed' | 'skipped'): readonly string[] {
  return checks
    .filter((check) => check.status === status)
    .map(({ id }) => id)
    .sort()
}
