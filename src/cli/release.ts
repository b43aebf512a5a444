import { parseArgs } from 'node:util'
import { askAndEnd, called } from './ask-and-end.js'
import { CHANGE_HELP, CHANGE_OPTIONS } from './audit-trail.js'
import type { Command } from './command.js'
import { RECORD_HELP, RECORD_OPTIONS, recordName } from './record-name.js'
import { EXIT_HELP, STORE_HELP, STORE_OPTIONS } from './store-flags.js'

const HELP = `oncekey release: frees an unknown key, so that a retry runs the operation again.

Usage: oncekey release KEY --scope SCOPE [options]
       oncekey release --id=ID [options]

Only for what has not happened: if it has, a retry makes it happen twice. Find out first, in your books or at the provider.
It shows the record, says what will be done, and asks. What has ended meanwhile stays as it is.

${RECORD_HELP}
${CHANGE_HELP}
What is shown:
  --json               one JSON document, on standard output: what was done

${STORE_HELP}
${EXIT_HELP('there is no such record, it is not unknown (any more), or you said no; nothing was changed')}`

/** `oncekey release`: forgets an unknown operation. */
export const release: Command = {
  name: 'release',
  summary: 'frees an unknown key whose operation did not happen: a retry runs it',
  help: HELP,
  async run(args, output) {
    const { values: flags, positionals } = parseArgs({
      args: [...args],
      allowPositionals: true,
      options: { ...STORE_OPTIONS, ...RECORD_OPTIONS, ...CHANGE_OPTIONS, json: { type: 'boolean' } },
    })
    return askAndEnd(recordName(positionals, flags), flags, output, (record) => ({
      resolution: 'release',
      ttlMs: 0,
      plan: `The key is freed: a retry of ${called(record)} runs it. If it did happen, it happens twice.`,
      question: 'Are you sure that it did not happen?',
      done: `Released: a retry of ${called(record)} runs it.`,
      status: undefined,
    }))
  },
}
