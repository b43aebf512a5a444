import type { Evidence, ModeReport, WrongKey } from './verdict.js'

const COLUMNS: readonly (readonly [heading: string, value: (report: ModeReport) => string | number])[] = [
  ['mode', ({ mode }) => mode],
  ['operations', ({ operations }) => operations],
  ['succeeded', ({ succeeded }) => succeeded],
  ['refused', ({ refused }) => refused],
  ['unknown', ({ unknown }) => unknown],
  ['of these with an effect', ({ unknownWithEffect }) => unknownWithEffect],
  ['hit in the middle', ({ hits }) => hits],
  ['take-overs', ({ takeOvers }) => takeOvers],
  ['overtaken, wrote nothing', ({ overtaken }) => overtaken],
  ['kept, first answer lost', ({ answersLost }) => answersLost],
  ['called downstream again', ({ calledAgain }) => calledAgain],
  ['transactions repeated', ({ repeated }) => repeated],
  ['commits undecided', ({ undecided }) => undecided],
  ['wrong', ({ wrong, faults }) => wrong.length + faults.length],
]

/** What the modes came to, as a table. */
export function tableOf(reports: readonly ModeReport[]): string {
  const rows = [
    COLUMNS.map(([heading]) => heading),
    COLUMNS.map(() => '---'),
    ...reports.map((report) => COLUMNS.map(([, value]) => String(value(report)))),
  ]
  return rows.map((row) => `| ${row.join(' | ')} |`).join('\n')
}

const SHOWN_KEYS = 5
const AROUND_MS = 3000

/** The histories of the first wrong keys: what clients and servers saw, what was done meanwhile, and what there is. */
export function historiesOf(wrong: readonly WrongKey[], evidence: Evidence): string {
  const shown = wrong.slice(0, SHOWN_KEYS).map((one) => historyOf(one, evidence))
  const left = wrong.length - shown.length
  return [...shown, ...(left > 0 ? [`... and ${left} more`] : [])].join('\n\n')
}

function historyOf({ history, faults }: WrongKey, evidence: Evidence): string {
  const { operation, ended, seen } = history
  const { key, mode } = operation
  const times = seen.flatMap((entry) => (entry.from === 'client' ? [entry.sentAt, entry.at] : [entry.at]))
  const from = Math.min(...times)
  const lines = [
    ...seen.flatMap((entry) => {
      if (entry.from === 'server') {
        const { type, fence, detail } = entry
        return [
          {
            at: entry.at,
            text: `server ${entry.server}: ${[type, fence, detail].filter(Boolean).join(' ')}`,
          },
        ]
      }
      const { server, status, code, isReplay, body, sentAt } = entry
      const got = [status, code, isReplay ? 'replay' : undefined, code === undefined ? body : undefined]
      return [
        { at: sentAt, text: `client asks ${server}` },
        {
          at: entry.at,
          text: `client got from ${server} after ${entry.at - sentAt} ms: ${got.filter(Boolean).join(' ')}`,
        },
      ]
    }),
    ...evidence.log.deeds
      .filter(({ at }) => times.some((time) => Math.abs(time - at) < AROUND_MS))
      .map(({ at, what }) => ({ at, text: `        ${what}` })),
  ].sort((a, b) => a.at - b.at)
  return [
    `${key} (${mode}): ${faults.join('; ')}. Ended: ${ended ?? 'never'}.`,
    ...lines.map(({ at, text }) => `  ${String(at - from).padStart(7)} ms  ${text}`),
    `  asked for: ${JSON.stringify(operation.body)}`,
    `  effects: ${JSON.stringify(evidence.effects.get(key) ?? [])}`,
    `  provider: called ${evidence.calls.get(key) ?? 0} times, charges ${JSON.stringify(evidence.charges.get(key) ?? [])}`,
    `  record: ${evidence.records.get(key)?.text ?? 'none'}`,
  ].join('\n')
}
