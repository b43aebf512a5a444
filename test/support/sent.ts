/** What a load generator has sent and seen, under the names and labels that it should be measured by. */
export interface Sent {
  /** Notes something that happens now. */
  add(metric: string, labels?: Readonly<Record<string, string>>, by?: number): void
  /** What happened between two times, in seconds. */
  during(time: { readonly start: number; readonly end: number }): SentMeanwhile
}

/** What was sent in some time. */
export interface SentMeanwhile {
  /** How much of a metric, with one of the values of each label. */
  total(metric: string, where?: Readonly<Record<string, readonly string[]>>): number
  /**
   * What an expression of the dashboard should come to, by the labels of its series. For counts, and for shares of them;
   * `undefined` for anything else. Series that are not in it should be 0.
   */
  expected(expression: string): Expected | undefined
}

/** Values by labels, as `labelsText` writes them. */
export interface Expected {
  /** A rate has to be taken times its seconds before it is a count. A share is neither. */
  readonly kind: 'count' | 'rate' | 'share' | 'gauge'
  readonly values: ReadonlyMap<string, number>
}

/** Labels in one order, for comparing. */
export function labelsText(labels: Readonly<Record<string, string>>): string {
  return Object.keys(labels)
    .toSorted()
    .map((label) => `${label}=${labels[label]}`)
    .join(',')
}

interface Counted {
  readonly metric: string
  readonly labels: Readonly<Record<string, string>>
  readonly by: number
}

const COUNT =
  /^sum(?: by \((?<by>[\w, ]+)\))? ?\((?:(?<change>rate|increase)\()?(?<metric>\w+)\{(?<matchers>[^}]*)\}(?:\[\$\w+\]\))?\)(?: or vector\(0\))?$/
const SHARE = /^(?<part>.+\)) \/ (?:on \((?<on>\w+)\) group_left \(\) )?(?<whole>sum.+)$/

/**
 * Begins an empty account.
 *
 * @param everywhere labels that everything has.
 */
export function createSent(everywhere: () => Readonly<Record<string, string>> = () => ({})): Sent {
  const all: (Counted & { readonly at: number })[] = []
  return {
    add(metric, labels = {}, by = 1) {
      all.push({ metric, labels, by, at: Date.now() / 1000 })
    },
    during: ({ start, end }) =>
      meanwhile(
        all
          .filter(({ at }) => at > start && at < end)
          .map((one) => ({ ...one, labels: { ...one.labels, ...everywhere() } })),
      ),
  }
}

function meanwhile(all: readonly Counted[]): SentMeanwhile {
  function counted(expression: string): Expected | undefined {
    const { by = '', change, metric = '', matchers = '' } = COUNT.exec(expression)?.groups ?? {}
    if (metric === '') return undefined
    const names = by.split(', ').filter((name) => name !== '')
    const values = new Map<string, number>()
    for (const { metric: name, labels, by: count } of all) {
      if (name !== metric || !matches(labels, matchers)) continue
      const series = labelsText(Object.fromEntries(names.map((label) => [label, labels[label] ?? ''])))
      values.set(series, (values.get(series) ?? 0) + count)
    }
    return { kind: change === undefined ? 'gauge' : change === 'rate' ? 'rate' : 'count', values }
  }

  return {
    total: (metric, where = {}) =>
      all
        .filter(
          (one) =>
            one.metric === metric &&
            Object.entries(where).every(([label, values]) => values.includes(one.labels[label] ?? '')),
        )
        .reduce((sum, { by }) => sum + by, 0),

    expected(expression) {
      const { part, on, whole } = SHARE.exec(expression)?.groups ?? {}
      if (part === undefined || whole === undefined) return counted(expression)
      const [parts, wholes] = [counted(part), counted(whole)]
      if (parts === undefined || wholes === undefined) return undefined
      const values = new Map<string, number>()
      for (const [series, count] of parts.values) {
        const labels = series.split(',')
        const key = on === undefined ? series : (labels.find((label) => label.startsWith(`${on}=`)) ?? '')
        values.set(series, count / (wholes.values.get(key) ?? 0))
      }
      return { kind: 'share', values }
    },
  }
}

/** Whether labels are met by the matchers of an expression. Those with a variable are met by anything. */
function matches(labels: Readonly<Record<string, string>>, matchers: string): boolean {
  return matchers.split(', ').every((matcher) => {
    const {
      label = '',
      operator,
      value = '',
    } = /^(?<label>\w+)(?<operator>=~|!=|=)"(?<value>.*)"$/.exec(matcher)?.groups ?? {}
    if (value.startsWith('$')) return true
    const found = labels[label] ?? ''
    if (operator === '=~') return new RegExp(`^(?:${value})$`).test(found)
    return (found === value) === (operator === '=')
  })
}
