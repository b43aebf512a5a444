import { parseArgs } from 'node:util'
import { CHANGE_HELP, CHANGE_OPTIONS, withAuditTrail } from './audit-trail.js'
import { type Command, EXIT } from './command.js'
import { confirm } from './confirm.js'
import { withStore } from './operator-store.js'
import { printableJson } from './printable.js'
import { EXIT_HELP, STORE_HELP, STORE_OPTIONS } from './store-flags.js'

const HELP = `oncekey sweep: removes what has expired.

Usage: oncekey sweep [options]

An application does it by itself, about every minute, unless its option "sweep" says otherwise. Nobody can tell an expired
record from one that is gone. One sweeps at a time: while another process does, nothing is removed here. Redis removes what
has expired by itself.

${CHANGE_HELP}
What is shown:
  --json               one JSON document, on standard output

${STORE_HELP}
${EXIT_HELP('you said no; nothing was changed')}`

/** `oncekey sweep`: removes expired records, and messages that need not be remembered any more. */
export const sweep: Command = {
  name: 'sweep',
  summary: 'removes what has expired',
  help: HELP,
  async run(args, output) {
    const { values: flags } = parseArgs({
      args: [...args],
      options: { ...STORE_OPTIONS, ...CHANGE_OPTIONS, json: { type: 'boolean' } },
    })
    return withAuditTrail(flags, output, (trail) =>
      withStore(flags, async (store) => {
        let removed = 0
        if (store.sweep !== undefined) {
          if (!(await confirm(`Remove what has expired from ${store.location.shown}?`, flags.yes))) {
            output.err('Nothing was changed.\n')
            return EXIT.failed
          }
          removed = await store.sweep()
          trail.done({ event: 'swept', removed })
        }
        if (flags.json === true) output.out(`${printableJson({ format: 1, removed }, 2)}\n`)
        else
          output.out(
            store.sweep === undefined
              ? 'Redis removes what has expired by itself.\n'
              : `${removed} expired ${removed === 1 ? 'record' : 'records'} removed.\n`,
          )
        return EXIT.ok
      }),
    )
  },
}
