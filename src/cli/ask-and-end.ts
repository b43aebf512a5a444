import type { Outcome, StoredRecord } from '../contract/store.js'
import { stateOf } from '../core/record-counts.js'
import { endUnknown } from '../operator/end-unknown.js'
import { type ChangeFlags, withAuditTrail } from './audit-trail.js'
import { EXIT, type Output, StoreFailedError } from './command.js'
import { confirm } from './confirm.js'
import { type OperatorStore, withStore } from './operator-store.js'
import { printable, printableJson } from './printable.js'
import type { RecordName } from './record-name.js'
import { recordText, recordView } from './record-view.js'
import { notFound } from './show.js'
import type { StoreFlags } from './store-flags.js'

/** How an unknown operation is to be ended. */
export interface Ending {
  readonly resolution: Outcome | 'release'
  readonly ttlMs: number
  /** What will happen, for the operator. */
  readonly plan: string
  readonly question: string
  /** What has happened, for the operator. */
  readonly done: string
  /** The HTTP status that an outcome has, for the audit line. */
  readonly status: number | undefined
}

/**
 * Ends an unknown operation: shows it, says what will happen, asks, writes down what is about to be done, does it, and says
 * what has become of it. The store decides: only what is still unknown is ended.
 */
export async function askAndEnd(
  name: RecordName,
  flags: StoreFlags & ChangeFlags & { readonly json?: boolean | undefined },
  output: Output,
  endingOf: (record: StoredRecord, store: OperatorStore) => Ending | Promise<Ending>,
): Promise<number> {
  return withAuditTrail(flags, output, (trail) =>
    withStore(flags, async (store) => {
      const record = await store.find(name.id)
      if (record === undefined) return notFound(name, store, flags, output)
      if (record.status !== 'unknown') return notEnded(record)
      const ending = await endingOf(record, store)
      output.err(`${recordText(recordView(record))}\n${ending.plan}\n`)
      if (!(await confirm(ending.question, flags.yes))) {
        output.err('Nothing was changed.\n')
        return EXIT.failed
      }
      const { resolution: outcome, status, ttlMs } = ending
      const through = { find: store.find, settle: settledBy(store) }
      // While somebody thought about it, it may have ended, and even have become another operation of the key.
      const ended = await endUnknown(through, { seen: record, outcome, status, ttlMs }, trail)
      if (!ended.done) return notEnded(ended.now)
      const isRelease = outcome === 'release'
      if (flags.json !== true) output.out(`${ending.done}\n`)
      else report(isRelease ? 'released' : 'settled', isRelease ? undefined : await store.find(name.id))
      return EXIT.ok
    }),
  )

  function settledBy(store: OperatorStore): OperatorStore['settle'] {
    return async (...args) => {
      try {
        return await store.settle(...args)
      } catch (cause) {
        if (!(cause instanceof StoreFailedError)) throw cause
        throw new StoreFailedError(
          `${cause.message}\nWhether it was done is not known: "npx oncekey show --id=${name.id}" says`,
          { cause },
        )
      }
    }
  }

  function notEnded(now: StoredRecord | undefined): number {
    if (now === undefined)
      output.err('Nothing was changed: the record is gone, released by somebody else or expired.\n')
    else
      output.err(
        `Nothing was changed: only what is unknown can be settled or released, and this is ${NOW[stateOf(now)]}.\n\n${recordText(recordView(now))}`,
      )
    if (flags.json === true) report('nothing', now)
    return EXIT.failed
  }

  function report(done: 'settled' | 'released' | 'nothing', now: StoredRecord | undefined): void {
    const record = now === undefined ? null : recordView(now)
    output.out(`${printableJson({ format: 1, done, record }, 2)}\n`)
  }
}

const NOW = {
  running: 'running: wait until it has ended, or its lease has lapsed',
  unknown: 'another attempt than the one that was shown: look again',
  completed: 'completed now',
  tombstone: 'completed now, without its answer',
} as const

/** How a record is called in a sentence. */
export function called({ meta }: StoredRecord): string {
  return `"${printable(meta.key)}" of ${printable(meta.route)}`
}
