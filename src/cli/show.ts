import { parseArgs } from 'node:util'
import type { StoredRecord } from '../contract/store.js'
import { isOfHttp } from '../operator/is-of-http.js'
import { type Command, EXIT, type Output } from './command.js'
import { type OperatorStore, withStore } from './operator-store.js'
import { printable, printableJson } from './printable.js'
import { RECORD_HELP, RECORD_OPTIONS, type RecordName, recordName } from './record-name.js'
import { bodyText, recordText, recordView } from './record-view.js'
import { commandLine, EXIT_HELP, STORE_HELP, STORE_OPTIONS, type StoreFlags } from './store-flags.js'

const HELP = `oncekey show: says what is known of a key.

Usage: oncekey show KEY --scope SCOPE [options]
       oncekey show --id=ID [options]

Of an unknown one it says how to go on: with "oncekey settle" or "oncekey release".

${RECORD_HELP}
What is shown:
  --body               headers and body of the answer that is kept, too. They are what a customer was told: without this
                       nothing of them is shown. Sealed ones need ONCEKEY_SEALING_KEYS in the environment
  --json               one JSON document, on standard output

${STORE_HELP}
${EXIT_HELP('there is no such record')}`

/** `oncekey show`: one record. */
export const show: Command = {
  name: 'show',
  summary: 'says what is known of a key, and how to go on',
  help: HELP,
  async run(args, output) {
    const { values: flags, positionals } = parseArgs({
      args: [...args],
      allowPositionals: true,
      options: { ...STORE_OPTIONS, ...RECORD_OPTIONS, body: { type: 'boolean' }, json: { type: 'boolean' } },
    })
    const name = recordName(positionals, flags)
    return withStore(flags, async (store) => {
      const record = await store.find(name.id)
      if (record === undefined) return notFound(name, store, flags, output)
      const view = recordView(record, flags.body)
      if (flags.json === true) output.out(`${printableJson(view, 2)}\n`)
      else output.out(recordText(view) + (flags.body === true ? bodyText(view) : ''))
      if (record.status === 'unknown') output.err(waysOn(record, store, flags))
      return EXIT.ok
    })
  },
}

/** Says that there is no such record, and what that can mean. */
export function notFound(
  { said }: RecordName,
  { location }: OperatorStore,
  flags: StoreFlags,
  output: Output,
): number {
  output.err(
    `There is no record of ${printable(said)} in ${location.shown}.
It was never claimed, was released, or has expired; or scope, namespace or the options of the store are not those of the
application. Whatever the scope: ${commandLine(location, flags, 'list', '--key=KEY')}\n`,
  )
  return EXIT.failed
}

/** What can be done about an unknown record. */
function waysOn(record: StoredRecord, { location }: OperatorStore, flags: StoreFlags): string {
  const { id, meta } = record
  const isHttp = isOfHttp(record)
  const line = (...words: readonly string[]): string => commandLine(location, flags, ...words)
  if (isMessageRoute(meta.route))
    return `
This is an attempt at a message. Its inbox decides about it when the message comes again. Only if it never does, and the attempt
did not happen:
    ${line('release', `--id=${id}`)}
`
  const answer = isHttp ? ['--status=201', `--body='{"id":"..."}'`] : [`--value='{"id":"..."}'`]
  return `
Find out whether it happened: in your books, or at the provider. Retries are refused until somebody says.
  It happened; retries get the answer that you give:
    ${line('settle', `--id=${id}`, ...answer)}
  It happened, and its answer cannot be given any more; retries are told so:
    ${line('settle', `--id=${id}`, '--tombstone', ...(isHttp ? ['--status=201'] : []))}
  It did not happen; a retry runs it:
    ${line('release', `--id=${id}`)}
`
}

/** Whether a record is of an attempt at a message, which only its inbox can read. */
export function isMessageRoute(route: string): boolean {
  return route.startsWith('message ')
}
