import { shellWord } from './printable.js'
import type { StoreLocation } from './store-location.js'

/** The options that say which store is meant, as `parseArgs` takes them. */
export const STORE_OPTIONS = {
  store: { type: 'string' },
  prefix: { type: 'string' },
  schema: { type: 'string' },
  table: { type: 'string' },
} as const

/** What those options were given as. */
export interface StoreFlags {
  readonly store?: string | undefined
  readonly prefix?: string | undefined
  readonly schema?: string | undefined
  readonly table?: string | undefined
}

/** What `--help` says about them. */
export const STORE_HELP = `The store:
  --store URL          redis://, rediss://, postgres:// or postgresql://. Without it ONCEKEY_STORE in the environment; without
                       that DATABASE_URL or REDIS_URL, where only one of them is set. Others see the command line: a
                       password is better in the environment
  --prefix TEXT        Redis: what keys begin with, the keyPrefix of the application's client before it ('oncekey:')
  --schema NAME        Postgres: the schema of the tables (the first of the connection's search path)
  --table NAME         Postgres: the table of records ('oncekey_records')
`

/** What `--help` of commands says about exit codes. */
export const EXIT_HELP = (no: string): string => `Exit codes:
  0  done
  1  ${no}
  2  the command line is wrong, or nobody said yes; nothing was changed
  3  the store cannot be reached, is not fit to be used, or failed
`

/**
 * A command that goes on from here, with the options that said which store this is. Values stand after `=`:
 * an id may begin with `-`.
 */
export function commandLine(location: StoreLocation, flags: StoreFlags, ...words: readonly string[]): string {
  const { prefix, schema, table } = flags
  const options = Object.entries({ store: location.flag, prefix, schema, table }).flatMap(([name, value]) =>
    value === undefined ? [] : [`--${name}=${shellWord(value)}`],
  )
  return ['npx oncekey', ...words, ...options].join(' ')
}
