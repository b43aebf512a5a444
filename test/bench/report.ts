import { median, ROUNDS, SECONDS } from './measure.js'
import type { Bar, BarGroup } from './picture.js'

/** One variant in one round. */
export interface Measured {
  /** Answers a second. */
  readonly rate: number
  /** Processor time of the server for an answer. */
  readonly cpuMicros: number
  /** Processor time of Redis or Postgres for an answer. */
  readonly storeCpuMicros: number
  /** Milliseconds. */
  readonly p50: number
  readonly p99: number
}

/**
 * Prints a table. Ratios are to the first variant, and medians of the ratios of single rounds: rounds differ more than
 * what is compared inside one.
 */
export function reportComparison(
  { title, connections = 100 }: { readonly title: string; readonly connections?: number },
  measured: ReadonlyMap<string, readonly Measured[]>,
): BarGroup {
  console.log(`\n### ${title}\n`)
  console.log(`${connections} connections, ${ROUNDS} rounds of ${SECONDS} s.\n`)
  console.log('| server | a second | ratio | server CPU, µs | ratio | store CPU, µs | p50, ms | p99, ms |')
  console.log('|---|---|---|---|---|---|---|---|')
  const base = [...measured.values()][0] ?? []
  const bars: Bar[] = []
  for (const [name, rounds] of measured) {
    const of = (value: keyof Measured): number => median(rounds.map((round) => round[value]))
    const ratio = (value: keyof Measured): number =>
      median(rounds.map((round, index) => round[value] / (base[index]?.[value] ?? Number.NaN)))
    bars.push({ name, ratio: ratio('cpuMicros') })
    const cells = [
      name,
      Math.round(of('rate')),
      ratio('rate').toFixed(2),
      of('cpuMicros').toFixed(1),
      ratio('cpuMicros').toFixed(2),
      of('storeCpuMicros').toFixed(1),
      of('p50').toFixed(2),
      of('p99').toFixed(2),
    ]
    console.log(`| ${cells.join(' | ')} |`)
  }
  return { title, bars }
}
