import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onFreePorts } from './free-port.js'
import { findProgram, startProgram } from './program.js'

/** Where Prometheus is, or `undefined` when it is not installed. Debian's package has `promtool` too. */
export function findPrometheus(): string | undefined {
  return findPromtool() === undefined ? undefined : findProgram('prometheus')
}

/** Where the checker of Prometheus' rules is. */
export function findPromtool(): string | undefined {
  return findProgram('promtool')
}

/** A Prometheus server that belongs to one test. */
export interface PrometheusServer {
  /** Asks its HTTP API, and gives the `data` of the answer. @throws what Prometheus says of a query that is wrong. */
  api(path: string, parameters?: Readonly<Record<string, string>>): Promise<unknown>
  /** What an expression gives at a time in seconds, by default now. */
  query(expression: string, time?: number): Promise<readonly Sample[]>
  /** What a graph of an expression shows. Times and steps are in seconds. */
  queryRange(
    expression: string,
    range: { readonly start: number; readonly end: number; readonly step: number },
  ): Promise<readonly Series[]>
  stop(): Promise<void>
}

/** One value, with its labels. */
export interface Sample {
  readonly labels: Readonly<Record<string, string>>
  readonly value: number
}

/** Values over time, with their labels. */
export interface Series {
  readonly labels: Readonly<Record<string, string>>
  readonly values: readonly number[]
}

type Answered = {
  readonly result: readonly {
    readonly metric: Record<string, string>
    readonly value: readonly [number, string]
    readonly values: readonly (readonly [number, string])[]
  }[]
}

/** Starts Prometheus on a free port of the loopback interface, with its data in a temporary folder. */
export async function startPrometheus(options: {
  /** Hosts and ports of what it scrapes at `/metrics`, by the name of their job. */
  readonly targets: Readonly<Record<string, string>>
  readonly rules: readonly string[]
  readonly scrapeEveryMs: number
}): Promise<PrometheusServer> {
  const file = findPrometheus()
  if (file === undefined) throw new Error('Prometheus is not installed')
  const folder = await mkdtemp(join(tmpdir(), 'oncekey-prometheus-'))
  const every = `${options.scrapeEveryMs}ms`
  // JSON is YAML.
  const config = {
    global: { scrape_interval: every, scrape_timeout: every, evaluation_interval: every },
    rule_files: options.rules,
    scrape_configs: Object.entries(options.targets).map(([job, target]) => ({
      job_name: job,
      static_configs: [{ targets: [target] }],
    })),
  }
  const configFile = join(folder, 'prometheus.yml')
  await writeFile(configFile, JSON.stringify(config))
  return onFreePorts(1, async (port) => {
    const url = `http://127.0.0.1:${port}`
    const program = await startProgram({
      file,
      args: [
        `--config.file=${configFile}`,
        `--storage.tsdb.path=${join(folder, 'data')}`,
        `--web.listen-address=127.0.0.1:${port}`,
      ],
      isReady: async () => (await fetch(`${url}/-/ready`)).ok,
    })

    async function api(path: string, parameters: Readonly<Record<string, string>> = {}): Promise<unknown> {
      const response = await fetch(`${url}/api/v1/${path}?${new URLSearchParams(parameters)}`)
      const answer = (await response.json()) as { readonly data: unknown; readonly error?: string }
      if (!response.ok) throw new Error(`Prometheus says: ${answer.error}`)
      return answer.data
    }

    return {
      api,
      async query(query, time = Date.now() / 1000) {
        const { result } = (await api('query', { query, time: String(time) })) as Answered
        return result.map(({ metric, value }) => ({ labels: metric, value: Number(value[1]) }))
      },
      async queryRange(query, { start, end, step }) {
        const range = { start: String(start), end: String(end), step: String(step) }
        const { result } = (await api('query_range', { query, ...range })) as Answered
        return result.map(({ metric, values }) => ({
          labels: metric,
          values: values.map(([, value]) => Number(value)),
        }))
      },
      async stop() {
        await program.stop()
        await rm(folder, { recursive: true, force: true })
      },
    }
  })
}
