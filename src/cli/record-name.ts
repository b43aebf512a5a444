import { keyProblem, recordId } from '../contract/key.js'
import { UsageError } from './command.js'

/** The options that say which record is meant, as `parseArgs` takes them. */
export const RECORD_OPTIONS = {
  id: { type: 'string' },
  scope: { type: 'string' },
  namespace: { type: 'string' },
} as const

/** What those options were given as. */
export interface RecordFlags {
  readonly id?: string | undefined
  readonly scope?: string | undefined
  readonly namespace?: string | undefined
}

/** What `--help` says about them. */
export const RECORD_HELP = `The record, in one of two ways:
  --id=ID              as "oncekey list" shows it
  KEY --scope SCOPE    the key as the client sent it, and the scope that the application gives it: 'shared' where it is
                       registered with scope: 'shared'. A key that begins with - stands after --
  --namespace NAME     with KEY: the namespace that the application is registered with ('')
`

/** A record that is meant, and how it was named, for messages. */
export interface RecordName {
  readonly id: string
  readonly said: string
}

/**
 * Which record is meant.
 *
 * @throws {UsageError} when none is named, or two are, or the name can be none.
 */
export function recordName(positionals: readonly string[], flags: RecordFlags): RecordName {
  const { id, scope, namespace = '' } = flags
  const [key, ...others] = positionals
  if (others.length > 0)
    throw new UsageError(`one key is enough, in quotes where it has spaces; got also ${others.join(' ')}`)
  if (id !== undefined) {
    if (key !== undefined || scope !== undefined)
      throw new UsageError('name the record by --id=ID, or by KEY --scope SCOPE, not by both')
    if (!/^[\w-]{43}$/.test(id)) throw new UsageError('an id has 43 characters, as "oncekey list" shows them')
    return { id, said: `id ${id}` }
  }
  if (key === undefined) throw new UsageError('name the record: KEY --scope SCOPE, or --id=ID')
  if (scope === undefined || scope === '')
    throw new UsageError(
      `name the scope of the key: --scope SCOPE. If you do not know it: npx oncekey list --key=KEY`,
    )
  const problem = keyProblem(key)
  if (problem !== undefined) throw new UsageError(`${problem}`)
  const said = `key "${key}" in scope "${scope}"${namespace === '' ? ', without a namespace' : ` of namespace "${namespace}"`}`
  return { id: recordId({ namespace, scope, key }), said }
}
