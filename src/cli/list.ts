import { parseArgs } from 'node:util'
import { scopeHash } from '../contract/key.js'
import type { ListQuery, StoredRecord } from '../contract/store.js'
import { type RecordState, stateOf } from '../core/record-counts.js'
import { type Command, EXIT, type Output, UsageError } from './command.js'
import { durationFlag } from './duration-flag.js'
import { cut, table } from './layout.js'
import { withStore } from './operator-store.js'
import { printable, printableJson, shellWord } from './printable.js'
import { type RecordView, recordView } from './record-view.js'
import { commandLine, EXIT_HELP, STORE_HELP, STORE_OPTIONS } from './store-flags.js'
import { lengthText } from './times.js'

const HELP = `oncekey list: finds records.

Usage: oncekey list [options]

Which ones; all of what is said has to fit:
  --status STATE       running, unknown, completed, or tombstone: completed without its answer
  --older-than TIME    first seen at least so long ago: 30s, 10m, 24h, 7d
  --route ROUTE        of this route, as in 'POST /payments', or of this name of a function
  --key KEY            with this key, in whatever scope
  --scope SCOPE        of this scope; with --namespace where the application has one
  --namespace NAME     with --scope: the namespace that the application is registered with ('')
  --limit N            at most so many: 50 unless you say otherwise, and all with --json

They come in no certain order, and a limit takes any of them; what is shown is sorted by age, the oldest first. Every record
may have to be read for it.

What is shown:
  --json               one JSON document a line (NDJSON), as they are found; see "oncekey show --json"

${STORE_HELP}
${EXIT_HELP('there is none')}`

const STATES: readonly RecordState[] = ['running', 'unknown', 'completed', 'tombstone']
const USUAL_LIMIT = 50

/** `oncekey list`: records that fit. */
export const list: Command = {
  name: 'list',
  summary: 'finds records: those of an unknown outcome, of a route, of a key',
  help: HELP,
  async run(args, output) {
    const { values: flags } = parseArgs({
      args: [...args],
      options: {
        ...STORE_OPTIONS,
        status: { type: 'string' },
        'older-than': { type: 'string' },
        route: { type: 'string' },
        key: { type: 'string' },
        scope: { type: 'string' },
        namespace: { type: 'string' },
        limit: { type: 'string' },
        json: { type: 'boolean' },
      },
    })
    const state = stateIn(flags.status)
    const olderThanMs = durationFlag('older-than', flags['older-than'])
    const limit = limitIn(flags.limit) ?? (flags.json === true ? Number.POSITIVE_INFINITY : USUAL_LIMIT)
    if (flags.namespace !== undefined && flags.scope === undefined)
      throw new UsageError('--namespace says which --scope is meant: records do not name it otherwise')
    const scope = flags.scope === undefined ? undefined : scopeHash(flags.namespace ?? '', flags.scope)
    const query: ListQuery = {
      ...(state !== undefined && { status: state === 'tombstone' ? 'completed' : state }),
      ...(olderThanMs !== undefined && { olderThanMs }),
      ...(flags.route !== undefined && { route: flags.route }),
    }
    const isAskedFor = (record: StoredRecord): boolean =>
      (state === undefined || stateOf(record) === state) &&
      (flags.key === undefined || record.meta.key === flags.key) &&
      (scope === undefined || record.meta.scope === scope)

    return withStore(flags, async (store) => {
      const found: RecordView[] = []
      let hasMore = false
      let count = 0
      for await (const record of store.list(query)) {
        if (output.isClosed()) break
        if (!isAskedFor(record)) continue
        if (count === limit) {
          hasMore = true
          break
        }
        count += 1
        if (flags.json === true) await write(output, `${printableJson(recordView(record))}\n`)
        else found.push(recordView(record))
      }
      if (count === 0) {
        output.err(`There is no such record in ${store.location.shown}.\n`)
        return EXIT.failed
      }
      if (flags.json === true) return EXIT.ok
      found.sort((a, b) => b.ageMs - a.ageMs)
      output.out(recordTable(found))
      if (hasMore)
        output.err(`\nThere are more than these ${limit}: --limit shows more, and filters fewer.\n`)
      const first = found[0]?.id ?? ''
      output.err(
        `\nGo on with one of them: ${commandLine(store.location, flags, 'show', `--id=${shellWord(first)}`)}\n`,
      )
      return EXIT.ok
    })
  },
}

/** Lets the end of a pipe be noticed: `| head` closes it while there is more to be read. */
async function write(output: Output, text: string): Promise<void> {
  output.out(text)
  await new Promise(setImmediate)
}

/** Ids stand last, and are never cut: they are what one goes on with. */
function recordTable(records: readonly RecordView[]): string {
  const rows = records.map(({ state, outcome, firstSeen, ageMs, route, key, id }) => [
    state,
    outcome?.status == null ? '-' : String(outcome.status),
    firstSeen ?? '?',
    lengthText(ageMs),
    cut(printable(route), 32),
    cut(printable(key), 40),
    printable(id),
  ])
  return table([['STATE', 'STATUS', 'FIRST SEEN', 'AGE', 'ROUTE', 'KEY', 'ID'], ...rows])
}

function stateIn(given: string | undefined): RecordState | undefined {
  if (given === undefined) return undefined
  const state = STATES.find((one) => one === given)
  if (state === undefined) throw new UsageError(`--status is one of ${STATES.join(', ')}; got "${given}"`)
  return state
}

function limitIn(given: string | undefined): number | undefined {
  if (given === undefined) return undefined
  if (/^[1-9]\d{0,8}$/.test(given)) return Number(given)
  throw new UsageError(`--limit is a whole number above zero; got "${given}"`)
}
