import { OptionsError } from '../contract/errors.js'
import type { StepName } from './postgres-steps.js'

/** The names of the store's tables, quoted and with their schema. */
export interface TableNames {
  /** The records. */
  readonly table: string
  /** Which migrations each table of records has had. */
  readonly migrations: string
  /** The index that sweeping uses, quoted, without a schema. */
  readonly expiryIndex: string
  /** The function that claims, with its schema. */
  readonly claim: string
  /** The function that makes several claims, with its schema. */
  readonly claims: string
  /** The function that completes in a transaction, with its schema. */
  readonly complete: string
  /** The functions of each step of whoever holds a claim, with their schema. */
  readonly steps: Readonly<Record<StepName, { readonly one: string; readonly many: string }>>
  /** What belongs to the messages that were processed. */
  readonly inbox: InboxNames
  /** The table of records as a literal: what it is called among the migrations. */
  readonly literal: string
}

/** The names of what belongs to the messages, quoted and with their schema. */
export interface InboxNames {
  /** The messages. */
  readonly messages: string
  /** The high watermarks. */
  readonly marks: string
  /** The indexes, quoted, without a schema. */
  readonly expiryIndex: string
  readonly deadIndex: string
  /** The functions that enter a message by its id, by its position, and several messages, with their schema. */
  readonly enter: string
  readonly mark: string
  readonly enterMany: string
  /** The function that enters a message which was met before, with its schema. */
  readonly known: string
  /** The function that notes an attempt, with its schema. */
  readonly note: string
}

/**
 * Names everything that belongs to a table of records.
 *
 * @throws {OptionsError} when a name is no identifier.
 */
export function tableNames({
  schema,
  table = 'oncekey_records',
}: {
  readonly schema?: string
  readonly table?: string
} = {}): TableNames {
  assertIdentifier('table', table)
  if (schema !== undefined) assertIdentifier('schema', schema)
  const within = schema === undefined ? '' : `${quoted(schema)}.`
  return {
    table: within + quoted(table),
    migrations: `${within}oncekey_migrations`,
    expiryIndex: quoted(`${table}_expiry`),
    claim: within + quoted(`${table}_claim`),
    claims: within + quoted(`${table}_claims`),
    complete: within + quoted(`${table}_compl`),
    steps: {
      renew: { one: within + quoted(`${table}_renew`), many: within + quoted(`${table}_renews`) },
      complete: { one: within + quoted(`${table}_keep`), many: within + quoted(`${table}_keeps`) },
      release: { one: within + quoted(`${table}_free`), many: within + quoted(`${table}_frees`) },
    },
    inbox: {
      messages: within + quoted(`${table}_inbox`),
      marks: within + quoted(`${table}_marks`),
      expiryIndex: quoted(`${table}_in_exp`),
      deadIndex: quoted(`${table}_dead`),
      enter: within + quoted(`${table}_enter`),
      mark: within + quoted(`${table}_mark`),
      known: within + quoted(`${table}_known`),
      enterMany: within + quoted(`${table}_enters`),
      note: within + quoted(`${table}_note`),
    },
    literal: `'${table.replaceAll("'", "''")}'`,
  }
}

/** Postgres cuts names after 63 bytes, and two tables that differ later would be one. */
function assertIdentifier(option: string, name: unknown): void {
  const isOne = typeof name === 'string' && name !== '' && !name.includes('\0')
  // A dollar sign could end the quotes that its statements are written in.
  if (isOne && !name.includes('$') && Buffer.byteLength(name) <= 56) return
  throw new OptionsError(
    `postgresStore: option "${option}" must be a name of 1 to 56 bytes without $; got ${JSON.stringify(name)}`,
  )
}

function quoted(identifier: string): string {
  return `"${identifier.replaceAll('"', '""')}"`
}
