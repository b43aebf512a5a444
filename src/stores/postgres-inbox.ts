import { CommitUndecidedError, StoreUnavailableError, TransactionMisuseError } from '../contract/errors.js'
import type {
  DeadMessage,
  EnterSettings,
  InboxEntry,
  InboxFinding,
  InboxStep,
  InboxTable,
  NotedAttempt,
  NoteSettings,
} from '../contract/inbox.js'
import type { ExecuteStatement, StatementValue, TransactionSettings } from '../contract/store.js'
import type { DriverEnd, DriverTransaction, PostgresDriver } from './postgres-driver.js'
import { DEAD, ENTERED, FOREIGN } from './postgres-inbox-functions.js'
import type { InboxNames } from './postgres-names.js'
import { batchText } from './postgres-steps.js'
import {
  ASSIGN_NUMBER,
  bytesLiteral,
  HERE,
  type TwofoldStatement,
  textLiteral,
  twofold,
} from './postgres-text.js'

/** What the table of messages needs of its store. */
export interface InboxContext {
  readonly names: InboxNames
  /** Runs one statement, and again where the database refuses it only for a conflict with others. */
  query(text: string, values: unknown[]): Promise<readonly unknown[]>
  readonly transaction: PostgresDriver['transaction']
  /** Runs a transaction again, whole, after such a conflict. */
  repeatedly<T>(settings: TransactionSettings, attempt: () => Promise<T>): Promise<T>
  /** Sends a statement through the application's client, and gives its rows. */
  ask(
    execute: ExecuteStatement,
    statement: TwofoldStatement,
    values: readonly StatementValue[],
  ): Promise<readonly unknown[]>
}

const DEAD_PAGE = 500
const FORGET_PAGE = 5000

/** Keeps in Postgres which messages were processed. */
export function postgresInbox(context: InboxContext): InboxTable {
  const { names, query, repeatedly, ask } = context
  const { messages, marks } = names
  const statements = inboxStatements(names)

  return {
    async transaction(step, work, settings) {
      let begun: DriverTransaction | undefined
      const attempt = async (
        transaction: DriverTransaction,
      ): Promise<DriverEnd<{ readonly value: unknown }>> => {
        begun = transaction
        const { value, completion } = await work({
          client: transaction.client,
          ...begunWith(step, transaction.first),
        })
        if (completion !== undefined) throw new Error('A transaction of messages completes no claim')
        return { value: { value }, last: undefined }
      }
      try {
        const { value } = await repeatedly(settings, () => {
          begun = undefined
          return context.transaction(settings, attempt, statements.first(step))
        })
        return { committed: true, value: value as never }
      } catch (error) {
        if (begun === undefined && isLocked(error)) return { committed: false }
        // Whoever gave the transaction up has closed its connection, too.
        if (settings.signal.aborted || error instanceof CommitUndecidedError || !begun?.isLost()) throw error
        throw new StoreUnavailableError('The connection was lost in the middle of a transaction', {
          cause: error,
        })
      }
    },

    async note(entry, settings) {
      try {
        return notedOf(await query(statements.note(entry, settings), []))
      } catch (error) {
        if (isLocked(error)) return undefined
        throw error
      }
    },

    async enterIn(execute, entry, settings) {
      const [numbered] = (await ask(execute, ASSIGN_NUMBER, [])) as { readonly done: string }[]
      const values = [JSON.stringify([asked(entry, 0)]), numbered?.done ?? '']
      let rows: readonly unknown[]
      try {
        rows = await ask(execute, statements.enterIn(entry.consumer, settings), values)
      } catch (error) {
        if (isLocked(error)) return undefined
        throw error
      }
      if (rows.length === 1) return findingOf(rows[0])
      throw new TransactionMisuseError(
        'enlist(): its statements run each for itself. Give it what runs them in your transaction: "tx", and not "db"',
      )
    },

    async *dead(consumer, source) {
      for (let after = Buffer.alloc(0); ; ) {
        const rows = (await query(statements.dead, [consumer, source ?? null, after, DEAD_PAGE])) as DeadRow[]
        for (const row of rows) yield deadMessageOf(row)
        const last = rows.at(-1)
        if (last === undefined || rows.length < DEAD_PAGE) return
        after = Buffer.from(last.id)
      }
    },

    async redrive(id) {
      return (await query(statements.redrive, [idBytes(id)])).length === 1
    },

    async forget(id) {
      const text = `delete from ${messages} where id = $1::bytea returning 1 as done`
      return (await query(text, [idBytes(id)])).length === 1
    },

    async forgetSource(consumer, source) {
      const gone = await query(
        `delete from ${marks} where consumer = $1::text and topic = $2::text returning 1 as done`,
        [consumer, source],
      )
      let removed = gone.length
      for (let after: Buffer | null = Buffer.alloc(0); after !== null; ) {
        const rows = await query(statements.forgetPage, [consumer, source, after, FORGET_PAGE])
        const page = rows[0] as { readonly removed: number; readonly last: Uint8Array | null }
        removed += page.removed
        after = page.last && Buffer.from(page.last)
      }
      return removed
    },
  }
}

/** The statements of the messages. Those that begin a transaction have no values, so that they can come with its begin. */
function inboxStatements({ messages, enter, mark, enterMany, note }: InboxNames) {
  return {
    first: (step: InboxStep): string =>
      step.type === 'note' ? noteText(step.entry, step.settings) : enterText(step.entries, step.settings),

    note: noteText,

    /** Enters a message, but only in the transaction of that number. Values: the message, the number. A row when it did. */
    enterIn: (consumer: string, settings: EnterSettings): TwofoldStatement =>
      twofold(`
select e.finding
from ${enterMany}(${common(consumer, settings)}, ${settings.countsAttempt ? 1 : 0}, ${HERE}::text) e
where pg_current_xact_id_if_assigned()::text = ${HERE}::text`),

    /** A page of the dead messages of a consumer. $1 consumer, $2 source or null, $3 the last id before it, $4 its length. */
    dead: `
select m.id, m.source, m.key, m.attempts, coalesce(m.error, '') as error,
  extract(epoch from m.created_at)::float8 * 1000 as first_seen_at,
  extract(epoch from m.died_at)::float8 * 1000 as died_at
from ${messages} m
where m.consumer = $1::text and m.status = 'dead' and ($2::text is null or m.source = $2::text) and m.id > $3::bytea
order by m.id
limit $4::int`,

    /** Lets a dead message be tried again. $1 id. One row when it was dead. It is kept until it comes. */
    redrive: `
update ${messages} m set status = 'redriven', attempts = 0, died_at = null
where m.id = $1::bytea and m.status = 'dead'
returning 1 as done`,

    /** Forgets those of a page of messages that are of a source. $1 consumer, $2 source, $3 the last id before it, $4 its length. */
    forgetPage: `
with page as materialized (
  select m.id from ${messages} m where m.id > $3::bytea order by m.id limit $4::int
), gone as (
  delete from ${messages} m using page where m.id = page.id and m.consumer = $1::text and m.source = $2::text
  returning 1
)
select (select count(*)::int from gone) as removed, (select id from page order by id desc limit 1) as last`,
  }

  function enterText(entries: readonly InboxEntry[], settings: EnterSettings): string {
    const [entry] = entries
    if (entry === undefined) return 'select 1 where false'
    const counts = settings.countsAttempt ? 1 : 0
    const shared = common(entry.consumer, settings)
    if (entries.length > 1)
      return `select * from ${enterMany}(${shared}, ${counts}, ${textLiteral(batchText(entries.map(asked)))})`
    const { position } = entry
    if (position === undefined) return `select ${enter}(${shared}, ${named(entry)}, ${counts}) as finding`
    const { topic, partition, offset, timestampMs, topicId } = position
    const where = [
      textLiteral(topic),
      partition,
      `${offset}::bigint`,
      `${timestampMs}::bigint`,
      nullable(topicId),
    ]
    return `select ${mark}(${shared}, ${named(entry)}, ${counts}, ${where.join(', ')}) as finding`
  }

  function noteText(entry: InboxEntry, settings: NoteSettings): string {
    const { attempts, maxAttempts, error } = settings
    const counted = `${attempts}, ${maxAttempts}, ${textLiteral(error)}`
    return `select * from ${note}(${common(entry.consumer, settings)}, ${named(entry)}, ${counted})`
  }
}

function common(consumer: string, { windowMs, lockTimeoutMs }: Omit<EnterSettings, 'countsAttempt'>): string {
  return `${textLiteral(consumer)}, ${windowMs}, ${Math.ceil(lockTimeoutMs)}`
}

function named({ id, source, key, fingerprint }: InboxEntry): string {
  return [bytesLiteral(idBytes(id)), textLiteral(source), textLiteral(key), nullable(fingerprint)].join(', ')
}

/** A message as one of a batch. */
function asked({ id, source, key, fingerprint, position }: InboxEntry, place: number) {
  return {
    p: place,
    id: idBytes(id).toString('hex'),
    s: source,
    k: key,
    f: fingerprint ?? null,
    ...(position && {
      t: position.topic,
      n: position.partition,
      o: String(position.offset),
      m: position.timestampMs,
      u: position.topicId ?? null,
    }),
  }
}

function idBytes(id: string): Buffer {
  return Buffer.from(id, 'base64url')
}

function nullable(text: string | undefined): string {
  return text === undefined ? 'null' : textLiteral(text)
}

interface FindingRow {
  /** Not where there is one message. */
  readonly place?: number
  readonly finding: string
}

function begunWith(step: InboxStep, rows: readonly unknown[]) {
  if (step.type === 'note') return { findings: [], noted: notedOf(rows) }
  const findings: InboxFinding[] = []
  for (const row of rows) findings[(row as FindingRow).place ?? 0] = findingOf(row)
  return { findings, noted: undefined }
}

function findingOf(row: unknown): InboxFinding {
  const { finding } = row as FindingRow
  const rest = finding.slice(1)
  if (finding.startsWith(ENTERED)) return { status: 'entered', attempt: Number(rest) }
  if (finding.startsWith(FOREIGN)) return { status: 'foreign' }
  // Nobody's fingerprint is empty.
  const fingerprint = rest === '' ? undefined : rest
  return { status: finding.startsWith(DEAD) ? 'dead' : 'processed', fingerprint }
}

function notedOf(rows: readonly unknown[]): NotedAttempt {
  const { status, attempts } = rows[0] as { status: NotedAttempt['status']; attempts: number | null }
  return status === 'open' || status === 'buried' ? { status, attempts: Number(attempts) } : { status }
}

interface DeadRow {
  readonly id: Uint8Array
  readonly source: string
  readonly key: string
  readonly attempts: number
  readonly error: string
  readonly first_seen_at: number
  readonly died_at: number
}

function deadMessageOf(row: DeadRow): DeadMessage {
  const { source, key, attempts, error, first_seen_at: firstSeenAt, died_at: diedAt } = row
  return { source, key, attempts, error, firstSeenAt: Math.round(firstSeenAt), diedAt: Math.round(diedAt) }
}

/** Whether a statement was given up because another transaction holds what it needs. Query builders wrap errors. */
function isLocked(error: unknown, depth = 0): boolean {
  if (typeof error !== 'object' || error === null || depth > 4) return false
  const { code, cause } = error as { readonly code?: unknown; readonly cause?: unknown }
  // lock_not_available
  return code === '55P03' || isLocked(cause, depth + 1)
}
