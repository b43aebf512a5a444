import { parseArgs } from 'node:util'
import { countRecords } from '../core/record-counts.js'
import { type Command, EXIT } from './command.js'
import { cut, facts, table } from './layout.js'
import { withStore } from './operator-store.js'
import { printable, printableJson, shellWord } from './printable.js'
import { recordView } from './record-view.js'
import { commandLine, EXIT_HELP, STORE_HELP, STORE_OPTIONS } from './store-flags.js'
import { lengthText } from './times.js'

const HELP = `oncekey stats: counts what a store holds, by state and by route.

Usage: oncekey stats [options]

It reads every record. For numbers over time there are metrics.

What is shown:
  --json               one JSON document, on standard output

${STORE_HELP}
${EXIT_HELP('never')}`

/** `oncekey stats`: how many records there are, and of which kind. */
export const stats: Command = {
  name: 'stats',
  summary: 'counts what the store holds, by state and by route',
  help: HELP,
  async run(args, output) {
    const { values: flags } = parseArgs({
      args: [...args],
      options: { ...STORE_OPTIONS, json: { type: 'boolean' } },
    })
    return withStore(flags, async (store) => {
      const { oldestUnknown, routes, ...all } = await countRecords(store.list({}))
      const expired = (await store.expired?.()) ?? null
      const oldest = oldestUnknown && recordView(oldestUnknown)
      if (flags.json === true) {
        const document = { format: 1, ...all, routes, oldestUnknown: oldest ?? null, expired }
        output.out(`${printableJson(document, 2)}\n`)
        return EXIT.ok
      }
      const row = (name: string, counts: typeof all) => {
        const { running, unknown, completed, tombstone, total } = counts
        return [name, running, unknown, completed, tombstone, total]
      }
      output.out(
        table([
          ['ROUTE', 'RUNNING', 'UNKNOWN', 'COMPLETED', 'TOMBSTONE', 'TOTAL'],
          ...routes.map(({ route, ...counts }) => row(cut(printable(route), 48), counts)),
          row('all', all),
        ]),
      )
      output.out(
        `\n${facts([
          [
            'oldest unknown',
            oldest === undefined ? 'none' : `${oldest.firstSeen}, ${lengthText(oldest.ageMs)} ago`,
          ],
          ['expired', expired === null ? 'removed by the store itself' : `${expired}, waiting for a sweep`],
        ])}`,
      )
      if (oldest !== undefined)
        output.err(
          `\nGo on with it: ${commandLine(store.location, flags, 'show', `--id=${shellWord(oldest.id)}`)}\n`,
        )
      return EXIT.ok
    })
  },
}
