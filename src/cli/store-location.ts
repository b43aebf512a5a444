import { UsageError } from './command.js'

/** Where a store is. */
export interface StoreLocation {
  readonly kind: 'redis' | 'postgres'
  readonly url: string
  /** The URL without its password and its options, for people. */
  readonly shown: string
  /** What names it on a command line, for whoever is told how to go on; `undefined` where the environment does. */
  readonly flag: string | undefined
}

const KINDS: Readonly<Record<string, StoreLocation['kind']>> = {
  'redis:': 'redis',
  'rediss:': 'redis',
  'postgres:': 'postgres',
  'postgresql:': 'postgres',
}

const HOW =
  'name it with --store URL, or as ONCEKEY_STORE in the environment: redis://, rediss://, postgres:// or postgresql://'

/**
 * Which store is meant. Two that are set in the environment are not chosen between: what is settled in the wrong one is
 * not settled.
 *
 * @throws {UsageError} when none is named, or two are, or what is named is no such URL.
 */
export function storeLocation(
  given: string | undefined,
  environment: Readonly<Record<string, string | undefined>> = process.env,
): StoreLocation {
  const { ONCEKEY_STORE, DATABASE_URL, REDIS_URL } = environment
  if (given !== undefined) return located(given, '--store', true)
  if (ONCEKEY_STORE) return located(ONCEKEY_STORE, 'ONCEKEY_STORE')
  if (DATABASE_URL && REDIS_URL)
    throw new UsageError(`DATABASE_URL and REDIS_URL are both set, and either may hold the records: ${HOW}`)
  if (DATABASE_URL) return located(DATABASE_URL, 'DATABASE_URL')
  if (REDIS_URL) return located(REDIS_URL, 'REDIS_URL')
  throw new UsageError(`no store is named: ${HOW}`)
}

function located(given: string, from: string, isFlag = false): StoreLocation {
  const url = URL.canParse(given) ? new URL(given) : undefined
  const kind = KINDS[url?.protocol ?? '']
  // What was given is not shown: it may hold a password.
  if (url === undefined || kind === undefined)
    throw new UsageError(
      `${from} is no URL of a store. It begins with redis://, rediss://, postgres:// or postgresql://, and in a password each of : / ? # @ % is written as %3A %2F %3F %23 %40 %25`,
    )
  if (`${url.pathname}${url.search}${url.hash}`.includes('@'))
    throw new UsageError(
      `${from} has an @ after its host. In a password each of : / ? # @ % is written as %3A %2F %3F %23 %40 %25`,
    )
  if (![url.username, url.password, url.host, url.pathname].every(isEncoded))
    throw new UsageError(
      `${from} has a % that begins no %XX of UTF-8. In a password each of : / ? # @ % is written as %3A %2F %3F %23 %40 %25`,
    )
  const user = url.username === '' ? '' : `${url.username}@`
  const shown = `${url.protocol}//${user}${url.host}${url.pathname}`
  const isBare = url.password === '' && url.search === ''
  return { kind, url: given, shown, flag: isFlag ? (isBare ? given : 'URL') : undefined }
}

/** Whether clients of the store can decode a part of a URL. */
function isEncoded(part: string): boolean {
  try {
    decodeURIComponent(part)
    return true
  } catch {
    return false
  }
}
