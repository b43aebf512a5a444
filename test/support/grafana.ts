import { readFile } from 'node:fs/promises'

/** One query of a panel. */
export interface PanelQuery {
  readonly panel: string
  readonly expression: string
  readonly legend: string
}

/** A panel that shows something. */
export interface Panel {
  readonly type: string
  readonly title: string
  readonly description?: string
  readonly fieldConfig: { readonly defaults: { readonly unit?: string } }
  readonly targets: readonly { readonly expr: string; readonly legendFormat: string }[]
}

/** A dashboard of Grafana, as it is imported. */
export interface Dashboard {
  readonly panels: readonly Panel[]
  readonly variables: readonly { readonly name: string; readonly query: string }[]
}

interface Exported {
  readonly panels: readonly (Panel & { readonly panels?: readonly Panel[] })[]
  readonly templating: {
    readonly list: readonly { readonly name: string; readonly query: string | { readonly query: string } }[]
  }
}

/** Reads a dashboard from the file that Grafana imports. Rows are no panels. */
export async function readDashboard(file: URL): Promise<Dashboard> {
  const { panels, templating } = JSON.parse(await readFile(file, 'utf8')) as Exported
  return {
    panels: panels.flatMap((one) => (one.type === 'row' ? (one.panels ?? []) : [one])),
    variables: templating.list.map(({ name, query }) => ({
      name,
      query: typeof query === 'string' ? query : query.query,
    })),
  }
}

/** All queries of all panels. */
export function queriesOf({ panels }: Dashboard): readonly PanelQuery[] {
  return panels.flatMap(({ title, targets }) =>
    targets.map(({ expr, legendFormat }) => ({ panel: title, expression: expr, legend: legendFormat })),
  )
}

/** What is chosen above the dashboard. A variable without a choice is `All`. */
export interface Choice {
  readonly variables?: Readonly<Record<string, readonly string[]>>
  readonly rateIntervalMs: number
  readonly rangeMs: number
}

/** Puts what is chosen into a query, as Grafana does it for Prometheus. */
export function filledIn(expression: string, { variables = {}, rateIntervalMs, rangeMs }: Choice): string {
  const values: Readonly<Record<string, string>> = {
    $__rate_interval: `${rateIntervalMs}ms`,
    $__range: `${rangeMs}ms`,
  }
  return expression.replace(/\$\w+/g, (name) => values[name] ?? chosen(variables[name.slice(1)]))
}

/** `allValue` of the variables, one value, or a group of several. Their signs of regular expressions are escaped. */
function chosen(values: readonly string[] | undefined): string {
  if (values === undefined) return '.*'
  const escaped = values.map((value) => value.replace(/[\\^$*+?.()|[\]{}]/g, '\\\\$&'))
  return escaped.length === 1 ? (escaped[0] as string) : `(${escaped.join('|')})`
}
