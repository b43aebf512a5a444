import type { IdempotencyStore } from '../contract/store.js'
import { StoreFailedError, UsageError } from './command.js'
import type { StoreLocation } from './store-location.js'

/** What a backend offers an operator. */
export interface OpenedStore {
  readonly store: IdempotencyStore & Required<Pick<IdempotencyStore, 'list'>>
  /** Removes what has expired; absent where the backend does that by itself. */
  readonly sweep?: () => Promise<number>
  /** How many records have expired and wait for a sweep. */
  readonly expired?: () => Promise<number>
  /** The tables of the backend; absent where it has none. */
  readonly tables?: {
    /** What is missing, in a sentence; `undefined` where nothing is. */
    missing(): Promise<string | undefined>
    migrate(): Promise<void>
  }
  close(): Promise<void>
}

/** Why something could not be done, in the words of the client or the server. */
export function reasonOf(error: unknown): string {
  // A host with several addresses has an error for each.
  if (error instanceof AggregateError && error.errors.length > 0) return reasonOf(error.errors[0])
  if (!(error instanceof Error)) return String(error)
  return error.message || String((error as NodeJS.ErrnoException).code ?? error.name)
}

/** How long a store may take to be reached. */
export const REACHED_WITHIN_MS = 5000

/**
 * Waits for a store to be reached.
 *
 * @throws {StoreFailedError} when it is not, or not in time.
 */
export async function reached<T>(location: StoreLocation, reaching: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const tooLate = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${REACHED_WITHIN_MS} ms`)), REACHED_WITHIN_MS)
  })
  try {
    return await Promise.race([reaching, tooLate])
  } catch (error) {
    throw new StoreFailedError(`${location.shown} cannot be reached: ${reasonOf(error)}`, { cause: error })
  } finally {
    clearTimeout(timer)
  }
}

/**
 * Imports the client of a backend, which the application has and this package does not bring.
 *
 * @throws {UsageError} naming the package when it is not installed.
 */
export async function clientPackage<T>(name: string, load: () => Promise<T>): Promise<T> {
  try {
    return await load()
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw error
    throw new UsageError(
      `the package ${name} is not installed here: run "npm install ${name}", or call the command where your application is installed`,
      { cause: error },
    )
  }
}
