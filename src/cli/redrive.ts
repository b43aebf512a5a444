import { parseArgs } from 'node:util'
import type { DeadMessage } from '../contract/inbox.js'
import { CHANGE_HELP, CHANGE_OPTIONS, withAuditTrail } from './audit-trail.js'
import { type Command, EXIT, UsageError } from './command.js'
import { confirm } from './confirm.js'
import { assertConsumer, INBOX_HELP, INBOX_OPTIONS, withInbox } from './inbox-flags.js'
import { messageTable } from './messages.js'
import { withStore } from './operator-store.js'
import { printable } from './printable.js'
import { EXIT_HELP, STORE_HELP, STORE_OPTIONS } from './store-flags.js'

const HELP = `oncekey redrive: lets a dead message be processed when it is delivered again.

Usage: oncekey redrive --key KEY --source SOURCE --consumer NAME [options]

It has all of its attempts again. Nothing is delivered by this: send the message again from where onDead has put it, with the
same key, or set the group's offset back.

${INBOX_HELP}  --source SOURCE      what the message came from, as "oncekey messages" shows it
  --key KEY            its key, as "oncekey messages" shows it

${CHANGE_HELP}
${STORE_HELP}
${EXIT_HELP('it is not dead, or you said no; nothing was changed')}`

/** `oncekey redrive`: one dead message. */
export const redrive: Command = {
  name: 'redrive',
  summary: 'lets a dead message be processed when it is delivered again',
  help: HELP,
  async run(args, output) {
    const { values: flags } = parseArgs({
      args: [...args],
      options: { ...STORE_OPTIONS, ...INBOX_OPTIONS, ...CHANGE_OPTIONS, key: { type: 'string' } },
    })
    assertConsumer(flags)
    const { key, source = '', consumer = '' } = flags
    if (key === undefined) throw new UsageError('name the message: --key KEY --source SOURCE')
    return withAuditTrail(flags, output, (trail) =>
      withStore(flags, (store) =>
        withInbox(store, flags, async (inbox) => {
          const called = `"${printable(key)}" of "${printable(source)}"`
          const message = await deadOne(store.reading(inbox.listDead({ source })), key)
          if (message === undefined) {
            output.err(`Nothing was changed: no message ${called} of ${printable(consumer)} is dead.\n`)
            return EXIT.failed
          }
          output.err(
            `${messageTable([message])}\nIt has all of its attempts again, when it is delivered again. Delivering it is up to you.\n`,
          )
          if (!(await confirm('Is it to be processed then?', flags.yes))) {
            output.err('Nothing was changed.\n')
            return EXIT.failed
          }
          const entry = { key, consumer, topic: source }
          trail.announce({ event: 'message-redriving', ...entry })
          if (!(await inbox.redrive({ source, key }))) {
            output.err(`Nothing was changed: ${called} is not dead any more.\n`)
            return EXIT.failed
          }
          trail.done({ event: 'message-redriven', ...entry })
          output.out(`Redriven: ${called} is processed when it is delivered again.\n`)
          return EXIT.ok
        }),
      ),
    )
  },
}

async function deadOne(messages: AsyncIterable<DeadMessage>, key: string): Promise<DeadMessage | undefined> {
  for await (const message of messages) if (message.key === key) return message
  return undefined
}
