import { parseArgs } from 'node:util'
import type { DeadMessage } from '../contract/inbox.js'
import { type Command, EXIT } from './command.js'
import { assertConsumer, INBOX_HELP, INBOX_OPTIONS, withInbox } from './inbox-flags.js'
import { cut, table } from './layout.js'
import { withStore } from './operator-store.js'
import { printable, printableJson, shellWord } from './printable.js'
import { commandLine, EXIT_HELP, STORE_HELP, STORE_OPTIONS } from './store-flags.js'
import { isoTime, lengthText } from './times.js'

const HELP = `oncekey messages: lists the dead messages of a consumer: those that were given up.

Usage: oncekey messages --consumer NAME [--source SOURCE] [options]

"oncekey redrive" lets one be processed when it is delivered again.

${INBOX_HELP}  --source SOURCE      only those of this source: the topic, stream or queue, as a rule

What is shown:
  --json               one JSON document a line (NDJSON), as they are found

${STORE_HELP}
${EXIT_HELP('there is none')}`

/** `oncekey messages`: the dead messages of an inbox. */
export const messages: Command = {
  name: 'messages',
  summary: 'lists the dead messages of a consumer',
  help: HELP,
  async run(args, output) {
    const { values: flags } = parseArgs({
      args: [...args],
      options: { ...STORE_OPTIONS, ...INBOX_OPTIONS, json: { type: 'boolean' } },
    })
    assertConsumer(flags)
    return withStore(flags, (store) =>
      withInbox(store, flags, async (inbox) => {
        const found: DeadMessage[] = []
        const query = flags.source === undefined ? {} : { source: flags.source }
        for await (const message of store.reading(inbox.listDead(query))) {
          if (output.isClosed()) break
          found.push(message)
          if (flags.json === true) output.out(`${printableJson({ format: 1, ...viewOf(message) })}\n`)
        }
        const oldest = found.sort((a, b) => a.diedAt - b.diedAt)[0]
        if (oldest === undefined) {
          output.err(`No message of ${printable(inbox.consumer)} is dead in ${store.location.shown}.\n`)
          return EXIT.failed
        }
        if (flags.json === true) return EXIT.ok
        output.out(messageTable(found))
        const { namespace, leases } = flags
        const { source, key } = oldest
        const which = Object.entries({ key, source, consumer: flags.consumer, namespace }).flatMap(
          ([name, value]) => (value === undefined ? [] : [`--${name}=${shellWord(value)}`]),
        )
        if (leases === true) which.push('--leases')
        const again = commandLine(store.location, flags, 'redrive', ...which)
        output.err(`\nLet one be processed when it is delivered again: ${again}\n`)
        return EXIT.ok
      }),
    )
  },
}

function viewOf({ source, key, attempts, error, firstSeenAt, diedAt }: DeadMessage) {
  return { source, key, attempts, error, firstSeen: isoTime(firstSeenAt), died: isoTime(diedAt) }
}

/** Dead messages for people. Sources and keys are never cut: they are what one goes on with. */
export function messageTable(found: readonly DeadMessage[]): string {
  const rows = found.map(({ source, key, attempts, error, diedAt }) => [
    isoTime(diedAt) ?? '?',
    lengthText(Date.now() - diedAt),
    attempts,
    printable(source),
    printable(key),
    cut(printable(error), 60),
  ])
  return table([['DIED', 'AGE', 'ATTEMPTS', 'SOURCE', 'KEY', 'ERROR'], ...rows])
}
