import { createInbox, type Inbox } from '../messages/inbox.js'
import { UsageError } from './command.js'
import type { OperatorStore } from './operator-store.js'

/** The options that say which inbox is meant, as `parseArgs` takes them. */
export const INBOX_OPTIONS = {
  consumer: { type: 'string' },
  source: { type: 'string' },
  namespace: { type: 'string' },
  leases: { type: 'boolean' },
} as const

/** What those options were given as. */
export interface InboxFlags {
  readonly consumer?: string | undefined
  readonly source?: string | undefined
  readonly namespace?: string | undefined
  readonly leases?: boolean | undefined
}

/** What `--help` says about them. */
export const INBOX_HELP = `The inbox:
  --consumer NAME      the consumer that its createInbox names
  --namespace NAME     the namespace that it names ('')
  --leases             it has mode: 'lease', in Postgres. In Redis it has no other
`

/**
 * Makes the inbox that the options name, for its operators' steps, and closes it after `work`.
 *
 * @throws {UsageError} when no consumer is named.
 */
export async function withInbox<T>(
  { backend }: OperatorStore,
  { consumer = '', namespace = '', leases = false }: InboxFlags,
  work: (inbox: Pick<Inbox, 'consumer' | 'listDead' | 'redrive'>) => Promise<T>,
): Promise<T> {
  const inbox = createInbox({
    ...{ store: backend, consumer, namespace, sweep: false, storeTimeout: '5s' },
    ...(leases && { mode: 'lease' }),
  })
  try {
    return await work(inbox)
  } finally {
    await inbox.close()
  }
}

/**
 * Refuses options that name no consumer, before any store is asked.
 *
 * @throws {UsageError}
 */
export function assertConsumer({ consumer }: InboxFlags): void {
  if (consumer === undefined || consumer === '')
    throw new UsageError('name the consumer: --consumer NAME, as createInbox has it')
}
