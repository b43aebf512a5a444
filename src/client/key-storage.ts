import { newKey } from './operation-key.js'

type MaybePromise<T> = T | Promise<T>

/** Where keys outlive a page or a process: two functions, or three, that work at once or later. A `Map` is one. */
export interface KeyStorage {
  get(name: string): MaybePromise<string | null | undefined>
  set(name: string, value: string): unknown
  /** Without it, an empty text takes the place of a key that is done. */
  remove?(name: string): unknown
}

/** The part of `sessionStorage` and `localStorage` that the client uses. */
export interface ItemStorage {
  getItem(name: string): MaybePromise<string | null>
  setItem(name: string, value: string): unknown
  removeItem(name: string): unknown
}

/** A key, and since when a server may know it, in milliseconds by this machine's clock. */
export interface OperationKey {
  readonly key: string
  readonly createdAt: number
}

/**
 * The key of an operation: the stored one, or a new one that is stored before anybody gets it. Of any number of
 * callers at once, in this process or in other tabs, all get the same.
 *
 * @throws what the storage throws, and when it holds something else under the operation's name.
 */
export function storedKey(storage: KeyStorage | ItemStorage, operation: string): Promise<OperationKey> {
  return inTurn(storage, operation, async (act) => {
    const text = await act('get')
    if (!text) {
      const made = { key: newKey(), createdAt: Date.now() }
      await act('set', textOf(made))
      return made
    }
    const [createdAt, key] = String(text).split(' ')
    if (key && Number(createdAt) > 0) return { key, createdAt: Number(createdAt) }
    throw new Error(`"${text}" is no key`)
  })
}

/**
 * Forgets the key of an operation, so that the next call of that name makes a new one. Only for an operation of which
 * you know how it ended: a new key is a new operation.
 *
 * @param only forgets this key alone, and leaves another one that was stored meanwhile.
 */
export function forgetOperation(
  storage: KeyStorage | ItemStorage,
  operation: string,
  only?: OperationKey,
): Promise<void> {
  return inTurn(storage, operation, async (act) => {
    if (only && (await act('get')) !== textOf(only)) return
    // Emptied first: not every storage can remove.
    await act('set', '')
    await act('remove')
  })
}

function textOf({ key, createdAt }: OperationKey): string {
  return `${createdAt} ${key}`
}

/** Does something with one entry of a storage. */
type Act = (action: 'get' | 'set' | 'remove', value?: string) => unknown

/** The part of `navigator` that keeps tabs apart. Older Nodes lack it, and pages that came over plain HTTP. */
interface Navigator {
  readonly locks?: { request<T>(name: string, work: () => Promise<T>): Promise<T> }
}

/** The last piece of work on each entry of a storage that somebody works on. */
const turns = new WeakMap<object, Record<string, Promise<unknown>>>()

/** Looking and storing are two steps, so nobody may come between: work on an operation's entry goes one by one. */
function inTurn<T>(
  storage: KeyStorage | ItemStorage,
  operation: string,
  work: (act: Act) => Promise<T>,
): Promise<T> {
  const name = `oncekey:${operation}`
  // Both kinds of storage call their functions alike, but for the end of the names.
  const functions = storage as unknown as Readonly<
    Record<string, ((...texts: unknown[]) => unknown) | undefined>
  >
  const act: Act = (action, value) =>
    (functions[`${action}Item`] ?? functions[action])?.call(storage, name, value)
  const { locks } = (globalThis as { readonly navigator?: Navigator }).navigator ?? {}
  const queue = turns.get(storage) ?? {}
  turns.set(storage, queue)
  const turn = Promise.resolve(queue[name])
    // Whoever asked for the work before was told how it ended.
    .catch(() => {})
    .then(() => (locks ? locks.request(name, () => work(act)) : work(act)))
  queue[name] = turn
  return turn.finally(() => {
    if (queue[name] === turn) delete queue[name]
  })
}
