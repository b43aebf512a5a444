import { parseArgs } from 'node:util'
import type { StoredRecord } from '../contract/store.js'
import { isOfHttp } from '../operator/is-of-http.js'
import { askAndEnd, called, type Ending } from './ask-and-end.js'
import { CHANGE_HELP, CHANGE_OPTIONS } from './audit-trail.js'
import { type Command, UsageError } from './command.js'
import { durationFlag } from './duration-flag.js'
import { keptOutcome } from './kept-outcome.js'
import type { Sealing } from './operator-store.js'
import { RECORD_HELP, RECORD_OPTIONS, recordName } from './record-name.js'
import { outcomeText } from './record-view.js'
import { OUTCOME_HELP, OUTCOME_OPTIONS, type SettledOutcome, settledOutcome } from './settled-outcome.js'
import { isMessageRoute } from './show.js'
import { EXIT_HELP, STORE_HELP, STORE_OPTIONS } from './store-flags.js'
import { lengthText } from './times.js'

const HELP = `oncekey settle: says how an unknown operation ended, so that retries are answered with it.

Usage: oncekey settle KEY --scope SCOPE --status STATUS [--header 'Name: value'] [--body JSON] [options]
       oncekey settle --id=ID --status STATUS [--header 'Name: value'] [--body JSON] [options]

Only for what has happened, and is unknown: find out in your books, or at the provider. If it has not happened, "oncekey
release" lets a retry run it. It shows the record and what will be done, and asks. What has ended meanwhile stays as it is.

${RECORD_HELP}
${OUTCOME_HELP}  --ttl DURATION       how long it answers retries at least, such as 7d: 24h unless you say otherwise. As long as the record
                       would be remembered, where that is longer. Choose the ttl of the route: a retry after it runs the
                       operation again

${CHANGE_HELP}
What is shown:
  --json               one JSON document, on standard output: what was done, and the record as it is now

${STORE_HELP}
Where outcomes are sealed, ONCEKEY_SEALING_KEYS in the environment has the keys of sealedStore, with commas between: the first
one seals.

${EXIT_HELP('there is no such record, it is not unknown (any more), or you said no; nothing was changed')}`

const DAY_MS = 86_400_000

/** `oncekey settle`: gives an unknown operation its outcome. */
export const settle: Command = {
  name: 'settle',
  summary: 'ends an unknown operation that happened: retries get the answer that you give',
  help: HELP,
  async run(args, output) {
    const { values: flags, positionals } = parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        ...STORE_OPTIONS,
        ...RECORD_OPTIONS,
        ...OUTCOME_OPTIONS,
        ...CHANGE_OPTIONS,
        ttl: { type: 'string' },
        json: { type: 'boolean' },
      },
    })
    const name = recordName(positionals, flags)
    const given = settledOutcome(flags)
    const ttlMs = durationFlag('ttl', flags.ttl)
    if (ttlMs === 0) throw new UsageError('--ttl must be longer than nothing')
    return askAndEnd(name, flags, output, async (record, store) => {
      assertFits(given, record)
      const note = sealingNote(await store.sealing())
      // Never shorter than the record would have refused retries: one that comes later would run it again.
      return settling(given, record, Math.max(ttlMs ?? DAY_MS, Math.ceil(record.expiresInMs)), note)
    })
  },
}

function settling(
  { outcome, status }: SettledOutcome,
  record: StoredRecord,
  ttlMs: number,
  note: string,
): Ending {
  const kept = outcomeText(keptOutcome(outcome))
  const answer =
    outcome.body === null ? `refused with 409, for its answer is not kept (${kept})` : `answered with ${kept}`
  const sentence = `retries of ${called(record)} are ${answer}, for ${lengthText(ttlMs)}`
  return {
    resolution: outcome,
    ttlMs,
    plan: `It is settled as done: ${sentence}.${note}`,
    question: 'Did it happen, and is this its answer?',
    done: `Settled: ${sentence}.`,
    status,
  }
}

/** An outcome of the wrong kind could not be read by those that it is for. */
function assertFits({ kind }: SettledOutcome, record: StoredRecord): void {
  const { route } = record.meta
  if (isMessageRoute(route))
    throw new UsageError(
      'this is an attempt at a message, and its inbox settles it when the message comes again',
    )
  if (kind === 'http' && !isOfHttp(record))
    throw new UsageError(
      `this is a function, "${route}", and no HTTP request: give its value with --value=JSON`,
    )
  if (kind === 'value' && isOfHttp(record))
    throw new UsageError(`this is an HTTP request, ${route}: give its answer with --status=201`)
}

/**
 * What there is to say about sealing.
 *
 * @throws {UsageError} when the application could not read what is settled: it would refuse retries, for good.
 */
function sealingNote(found: Sealing): string {
  switch (found) {
    case 'no-key':
      throw new UsageError(
        'outcomes are sealed in this store, and one that is not would answer no retry: put the keys of sealedStore into ONCEKEY_SEALING_KEYS in the environment, with commas between, the first one first',
      )
    case 'other-key':
      throw new UsageError(
        'ONCEKEY_SEALING_KEYS does not open the outcomes that are sealed in this store, and one that is sealed by another key would answer no retry: put the keys of sealedStore there, with commas between, the first one first',
      )
    case 'not-known':
      return '\nIt is not sealed, and no completed record was found to tell whether outcomes are sealed here: where they are, set\nONCEKEY_SEALING_KEYS, or it would answer no retry.'
    case 'fits':
      return ''
  }
}
