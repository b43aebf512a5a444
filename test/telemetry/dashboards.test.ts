import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import { INSTRUMENTS, type Instrument } from '../../src/telemetry/instruments.js'
import { type Choice, filledIn, queriesOf, readDashboard } from '../support/grafana.js'
import { aMeasuredBank } from '../support/measured-bank.js'
import type { MeasuredService } from '../support/measured-service.js'
import { aMeasuredShop } from '../support/measured-shop.js'
import { findPromtool, type PrometheusServer, startPrometheus } from '../support/prometheus-server.js'
import { labelsText } from '../support/sent.js'
import { describeWith } from '../support/services.js'

const { postgresUrl } = inject('services')
const FOLDER = new URL('../../docs/dashboards/', import.meta.url)
const RULES = fileURLToPath(new URL('alerts.yml', FOLDER))

const dashboard = await readDashboard(new URL('grafana.json', FOLDER))
const queries = queriesOf(dashboard)
const rules = await readFile(RULES, 'utf8')

/** Metrics as Prometheus names them, with their labels and what those can be. */
const SERIES = new Map(
  Object.values<Instrument>(INSTRUMENTS).flatMap((instrument) => {
    const name = `oncekey_${instrument.prometheus}`
    if (instrument.kind !== 'histogram') return [[name, instrument] as const]
    return ['_bucket', '_count', '_sum'].map((part) => [`${name}${part}`, instrument] as const)
  }),
)

/** What Prometheus adds to every series, and a histogram to its buckets. */
const ADDED = ['job', 'instance', 'le']

/** Every metric of some expressions, with its matchers. */
function selectorsIn(text: string): { readonly metric: string; readonly matchers: readonly string[] }[] {
  return [...text.matchAll(/(oncekey_\w+)(?:\{([^}]*)\})?/g)].map(([, metric = '', matchers = '']) => ({
    metric,
    matchers: matchers.split(/,\s*/).filter((one) => one !== ''),
  }))
}

function assertKnown(text: string): void {
  for (const { metric, matchers } of selectorsIn(text)) {
    const instrument = SERIES.get(metric)
    expect(instrument, metric).toBeDefined()
    for (const matcher of matchers) {
      const [, label = '', value = ''] = /^(\w+)(?:=~|!~|!=|=)"(.*)"$/.exec(matcher) ?? []
      expect([...ADDED, ...(instrument?.labels ?? [])], `${metric}{${matcher}}`).toContain(label)
      const known = instrument?.known?.map((labels) => labels[label])
      if (known?.some((one) => one !== undefined) !== true || value.startsWith('$')) continue
      for (const one of value.split('|')) expect(known, `${metric}{${matcher}}`).toContain(one)
    }
  }
  const labels = new Set([...ADDED, ...[...SERIES.values()].flatMap((one) => one.labels)])
  for (const [, by = ''] of text.matchAll(/\b(?:by|on) \(([^)]*)\)/g))
    for (const label of by.split(/,\s*/)) expect([...labels], by).toContain(label)
}

describe('docs/dashboards/grafana.json', () => {
  it.each(queries)('names what there is: $panel, $legend', ({ expression }) => assertKnown(expression))

  it('names what there is in its variables', () => {
    for (const { query } of dashboard.variables.slice(1)) assertKnown(query)
  })

  it('shows everything that is measured', () => {
    const shown = new Set(
      queries.flatMap(({ expression }) => selectorsIn(expression)).map(({ metric }) => metric),
    )
    const missing = Object.values<Instrument>(INSTRUMENTS).filter(
      ({ prometheus }) =>
        !['', '_bucket', '_count'].some((part) => shown.has(`oncekey_${prometheus}${part}`)),
    )
    expect(missing.map(({ prometheus }) => prometheus)).toEqual([])
  })

  it('says of each panel what it shows, in which unit, from the data source that was chosen', async () => {
    const text = await readFile(new URL('grafana.json', FOLDER), 'utf8')
    expect(new Set([...text.matchAll(/"uid": "(.*)"/g)].map(([, uid]) => uid))).toEqual(
      new Set(['oncekey-overview', `\${datasource}`]),
    )
    for (const { title, description, fieldConfig, targets } of dashboard.panels) {
      expect(description?.length, title).toBeGreaterThan(20)
      expect(fieldConfig.defaults.unit, title).toBeTypeOf('string')
      expect(targets.length, title).toBeGreaterThan(0)
    }
    const titles = dashboard.panels.map(({ title }) => title)
    const wanted = [
      'Duplicate requests',
      'Retries answered, by source',
      'New keys',
      'Failed operations, by status',
      'Conflicts',
      'Mismatches',
      'Duplicate events',
      'Redeliveries',
      'Handler latency',
      'Store errors',
    ]
    expect(titles).toEqual(expect.arrayContaining(wanted))
  })
})

describe('docs/dashboards/alerts.yml', () => {
  const alerts = [...rules.matchAll(/alert: (?<name>\w+)[\s\S]*?severity: (?<severity>\w+)/g)].map(
    ({ groups }) => ({ name: groups?.name ?? '', severity: groups?.severity ?? '' }),
  )

  it('names what there is', () => assertKnown(rules))

  it('is tested, every alert of it, by alerts.test.yml', async () => {
    const tests = await readFile(new URL('alerts.test.yml', FOLDER), 'utf8')
    expect(alerts.length).toBeGreaterThan(15)
    for (const { name } of alerts) expect(tests).toContain(`alertname="${name}"`)
  })

  it('is told of in its README, every alert of it and how urgent it is', async () => {
    const page = await readFile(new URL('README.md', FOLDER), 'utf8')
    const told = [...page.matchAll(/^\| `(?<name>Oncekey\w+)` \| (?<severity>\w+) \|/gm)]
    expect(told.map(({ groups }) => ({ ...groups }))).toEqual(alerts)
  })

  const operations = new URL('../operations.md', FOLDER)
  it.runIf(existsSync(operations))('links to what to do, under a heading for each alert', async () => {
    const headings = [...(await readFile(operations, 'utf8')).matchAll(/^#+ `?(\w+)`?$/gm)].map(
      ([, name]) => name,
    )
    expect(headings).toEqual(expect.arrayContaining(alerts.map(({ name }) => name)))
  })
})

describeWith(['prometheus'], 'docs/dashboards/alerts.yml, as promtool reads it', () => {
  const promtool = (...args: string[]) =>
    promisify(execFile)(findPromtool() ?? '', args, { cwd: fileURLToPath(FOLDER) })

  it('is right, and each alert fires on what it is for and on nothing else', {
    timeout: 120_000,
  }, async () => {
    expect((await promtool('check', 'rules', 'alerts.yml')).stdout).toContain('SUCCESS')
    expect((await promtool('test', 'rules', 'alerts.test.yml')).stdout).toContain('SUCCESS')
  })
})

type Counts = readonly [metric: string, where?: Readonly<Record<string, readonly string[]>>]

const requests = (...outcome: string[]): Counts =>
  outcome.length === 0 ? ['oncekey_requests_total'] : ['oncekey_requests_total', { outcome }]

/**
 * What each panel counts, in the words of those who send: said once more, since a panel that asks for the wrong thing asks
 * consistently. Of a panel with several queries, those that the legend begins with.
 */
const COUNTS: Readonly<Record<string, Counts>> = {
  'Requests with a key': requests(),
  'Requests by outcome': requests(),
  'Requests by route and outcome, in the selected time': requests(),
  'Duplicate requests': requests('replay', 'in-progress', 'unknown'),
  'Retries answered': requests('replay'),
  Conflicts: requests('in-progress'),
  Mismatches: requests('mismatch'),
  'Unknown outcomes': requests('unknown'),
  'Runs without protection': requests('unprotected'),
  'Requests refused': requests('refused'),
  'Refused and unprotected': requests('refused', 'unprotected'),
  'Retries answered, by source': ['oncekey_replays_total'],
  'Retries whose answer was not kept': ['oncekey_replays_total', { body: ['not-kept'] }],
  'Age of replayed outcomes': ['oncekey_replay_age_seconds_count'],
  'Wait of concurrent duplicates': ['oncekey_wait_duration_seconds_count'],
  'New keys': ['oncekey_claims_total'],
  Completions: ['oncekey_completions_total'],
  Releases: ['oncekey_releases_total'],
  'Failed operations, by status': ['oncekey_completions_total', { result: ['failed'] }],
  'Take-overs': ['oncekey_take_overs_total'],
  Reconciliations: ['oncekey_reconciliations_total'],
  'Troubles with claims and outcomes': ['oncekey_troubles_total'],
  'Outcomes lost': ['oncekey_troubles_total', { kind: ['save-abandoned', 'outcome-lost'] }],
  'Handler latency': ['oncekey_handler_duration_seconds_count'],
  'Handler latency by route, p99': ['oncekey_handler_duration_seconds_count'],
  'Store calls': ['oncekey_store_call_duration_seconds_count'],
  'Store latency by step, p99': ['oncekey_store_call_duration_seconds_count'],
  'Store errors': ['oncekey_store_errors_total'],
  'Swept records': ['oncekey_swept_records_total'],
  Sweeps: ['oncekey_store_call_duration_seconds_count', { step: ['sweep'] }],
  'Warnings of the store': ['oncekey_store_warnings_total'],
  Rollbacks: ['oncekey_rollbacks_total'],
  'Repeats after conflicts': ['oncekey_transaction_repeats_total'],
  'Deliveries by result': ['oncekey_messages_total'],
  'Duplicate messages': ['oncekey_messages_total', { result: ['duplicate'] }],
  'Duplicate events': ['oncekey_messages_total', { result: ['duplicate'] }],
  Redeliveries: ['oncekey_messages_redelivered_total'],
  'Failed attempts': ['oncekey_message_failures_total'],
  'Dead messages': ['oncekey_messages_dead_total'],
  'Dead and redriven messages: dead': ['oncekey_messages_dead_total'],
  'Dead and redriven messages: redriven': ['oncekey_messages_redriven_total'],
  'Time per message': ['oncekey_message_duration_seconds_count'],
}

/** Shares of what is counted elsewhere, what is now and not in a time, and the latency of all steps but one. */
const COUNT_NOTHING = [
  'Share of duplicates',
  'Keys per request',
  'Failure ratio',
  'Error ratio of the store',
  'Live claims',
  'Stuck claims',
  'Stuck claims, now',
  'Processes measured',
  'Store latency',
]

const SCRAPE_EVERY_MS = 500

describeWith(['prometheus', 'postgres'], 'docs/dashboards/grafana.json, of services under load', () => {
  let services: Readonly<Record<'bank' | 'shop', MeasuredService>>
  let prometheus: PrometheusServer
  /** From a scrape before the load to one after it, in seconds. */
  let measured: Readonly<Record<string, { readonly start: number; readonly end: number }>>

  const jobs = () => Object.entries(services)

  /** When each service was scraped first after now. */
  async function nextScrapes(): Promise<Record<string, number>> {
    const from = Date.now() / 1000
    const times: Record<string, number> = {}
    while (Object.keys(times).length < jobs().length) {
      await new Promise((resolve) => setTimeout(resolve, 50))
      for (const { labels, value } of await prometheus.query('timestamp(oncekey_store_warnings_total)'))
        if (value > from) times[labels.job ?? ''] ??= value
    }
    return times
  }

  /** What a query says of one service from before the load until after it, exactly. */
  const ofService = (job: string): Choice & { readonly start: number; readonly end: number } => {
    const { start, end } = measured[job] ?? expect.fail(job)
    // A millisecond more, so that the first scrape is in it, whether or not the beginning of a range belongs to it.
    const ms = Math.round((end - start) * 1000) + 1
    return { variables: { job: [job] }, rateIntervalMs: ms, rangeMs: ms, start, end }
  }

  beforeAll(async () => {
    const [bank, shop] = await Promise.all([aMeasuredBank(), aMeasuredShop(postgresUrl)])
    services = { bank, shop }
    prometheus = await startPrometheus({
      targets: { bank: bank.target, shop: shop.target },
      rules: [RULES],
      scrapeEveryMs: SCRAPE_EVERY_MS,
    })
  })
  afterAll(async () => {
    await prometheus?.stop()
    await Promise.all(jobs().map(([, service]) => service.close()))
  })

  it('shows the runs that are held, and those that are stuck, while they are', {
    timeout: 60_000,
  }, async () => {
    const all = { rateIntervalMs: 2000, rangeMs: 60_000 }
    const shown = async (panel: string, job: string): Promise<Record<string, number>> => {
      const { expression } = queries.find((one) => one.panel === panel) ?? expect.fail(panel)
      const samples = await prometheus.query(filledIn(expression, { ...all, variables: { job: [job] } }))
      return Object.fromEntries(
        samples.filter(({ value }) => value !== 0).map(({ labels, value }) => [labels.route ?? '', value]),
      )
    }
    const PATIENT = { timeout: 20_000 }
    for (const [job, service] of jobs()) {
      const { live, stuck, letGo } = await service.hold()
      await expect.poll(() => shown('Live claims', job), PATIENT).toEqual(live)
      await expect.poll(() => shown('Stuck claims', job), PATIENT).toEqual(stuck)
      const inAll = Object.values(stuck).reduce((sum, count) => sum + count, 0)
      expect(await shown('Stuck claims, now', job)).toEqual(inAll === 0 ? {} : { '': inAll })
      await letGo()
      await expect.poll(() => shown('Live claims', job), PATIENT).toEqual({})
      await expect.poll(() => shown('Stuck claims', job), PATIENT).toEqual({})
    }
  })

  describe('once it is over', () => {
    beforeAll(async () => {
      // Every step and every route once, so that all series are there before what is counted.
      await Promise.all(jobs().map(([, service]) => service.load(1)))
      const starts = await nextScrapes()
      await Promise.all(
        jobs().map(async ([, service]) => {
          await service.load(5)
          await (await service.hold()).letGo()
        }),
      )
      const ends = await nextScrapes()
      measured = Object.fromEntries(
        jobs().map(([job]) => [job, { start: starts[job] ?? 0, end: ends[job] ?? 0 }]),
      )
    }, 60_000)

    it.each(queries)('has data: $panel, $legend', async ({ expression }) => {
      const { start, end } = measured.shop ?? expect.fail()
      const graph = filledIn(expression, {
        rateIntervalMs: 4 * SCRAPE_EVERY_MS,
        rangeMs: Math.round((end - start) * 1000),
      })
      const series = await prometheus.queryRange(graph, { start, end, step: SCRAPE_EVERY_MS / 1000 })
      const values = series.flatMap((one) => one.values).filter((value) => Number.isFinite(value))
      expect(values.length).toBeGreaterThan(0)
      if (expression.includes('stuck_claims')) return
      expect(Math.max(...values)).toBeGreaterThan(0)
    })

    it.each(queries)('equals what was sent: $panel, $legend', async ({ panel, legend, expression }) => {
      const counts = COUNTS[panel] ?? COUNTS[`${panel}: ${legend.split(' ')[0]}`]
      expect(counts === undefined).toBe(COUNT_NOTHING.includes(panel))
      let nonZero = 0
      for (const [job, service] of jobs()) {
        const { start, end, ...choice } = ofService(job)
        const sent = service.sent.during({ start, end })
        const buckets = /(\w+)_bucket(\{[^}]*\})/.exec(expression)
        // Of a quantile: how many values it is taken of.
        const counting =
          buckets === null ? expression : `sum(increase(${buckets[1]}_count${buckets[2]}[$__range]))`
        if (counting.startsWith('count(')) {
          expect(await prometheus.query(filledIn(counting, choice), end)).toMatchObject([{ value: 1 }])
          nonZero += 1
          continue
        }
        const wanted =
          sent.expected(counting) ?? expect.fail(`This counts nothing that is known: ${counting}`)
        const per = wanted.kind === 'rate' ? choice.rateIntervalMs / 1000 : 1
        const samples = await prometheus.query(filledIn(counting, choice), end)
        const found = new Map(samples.map(({ labels, value }) => [labelsText(labels), value * per]))
        for (const [series, value] of found)
          if (!Number.isNaN(value)) expectAbout(value, wanted.values.get(series) ?? 0, `${job} ${series}`)
        for (const [series, value] of wanted.values) {
          expectAbout(found.get(series), value, `${job} ${series}`)
          if (value > 0) nonZero += 1
        }
        if (counts === undefined) continue
        const sum = [...found.values()].reduce((so, value) => so + value, 0)
        expectAbout(sum, sent.total(...counts), `all of ${job}`)
      }
      if (!expression.includes('stuck_claims') && !expression.includes('live_claims'))
        expect(nonZero).toBeGreaterThan(0)
    })

    it('offers what was measured in its variables', async () => {
      const offered: Record<string, readonly unknown[]> = {}
      for (const { name, query } of dashboard.variables) {
        const [, metric, label] = /^label_values\((.+), (\w+)\)$/.exec(query) ?? []
        if (metric === undefined) continue
        const match = filledIn(metric, { rateIntervalMs: 0, rangeMs: 0 })
        offered[name] = (await prometheus.api(`label/${label}/values`, { 'match[]': match })) as unknown[]
      }
      expect(offered).toMatchObject({
        job: ['bank', 'shop'],
        instance: [services.bank.target, services.shop.target].toSorted(),
        route: expect.arrayContaining(['POST /transfers', 'POST /payments', 'move', 'message billing']),
        consumer: ['billing'],
      })
    })

    it('narrows to a route that is chosen, whatever signs it has', async () => {
      const { end, ...choice } = ofService('shop')
      const { expression } = queries.find(({ panel }) => panel === 'New keys') ?? expect.fail()
      for (const route of [['POST /payments'], ['POST /payments', 'move'], ['message (b.*']]) {
        const variables = { ...choice.variables, route }
        const samples = await prometheus.query(filledIn(expression, { ...choice, variables }), end)
        const known = route.filter((one) => !one.includes('('))
        expect(samples.map(({ labels }) => labels.route).toSorted()).toEqual(known.toSorted())
      }
    })

    it('is watched by alerts that are evaluated, and of which the unknown outcome fires', async () => {
      const { groups } = (await prometheus.api('rules')) as {
        readonly groups: readonly {
          readonly rules: readonly {
            readonly name: string
            readonly health: string
            readonly state: string
            readonly labels: { readonly severity: string }
            readonly annotations: Readonly<Record<string, string>>
          }[]
        }[]
      }
      const alerts = groups.flatMap((group) => group.rules)
      for (const { name, health, labels, annotations } of alerts) {
        expect([name, health]).toEqual([name, 'ok'])
        expect(['critical', 'warning']).toContain(labels.severity)
        expect(annotations.summary).toBeTruthy()
        expect(annotations.description).toBeTruthy()
        expect(annotations.runbook_url).toBe(`docs/operations.md#${name.toLowerCase()}`)
      }
      const firing = alerts.filter(({ state }) => state === 'firing').map(({ name }) => name)
      expect(firing).toEqual(
        expect.arrayContaining([
          'OncekeyOutcomeUnknown',
          'OncekeyOutcomeLost',
          'OncekeyUnprotected',
          'OncekeyReconcileFails',
          'OncekeyAnswersNotKept',
          'OncekeyMessagesDead',
          'OncekeyStoreWarning',
        ]),
      )
      expect(firing).not.toContain('OncekeyNotMeasured')
    })
  })
})

/** As exact as Prometheus is: it stretches what it saw to the ends of the range, which a busy machine scrapes a little late. */
function expectAbout(value: number | undefined, wanted: number, what: string): void {
  expect(Math.abs((value ?? Number.NaN) - wanted), `${what}: ${value} of ${wanted}`).toBeLessThan(
    0.05 + wanted / 500,
  )
}
