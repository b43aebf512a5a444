import { METHODS } from 'node:http'
import type { StoredRecord } from '../contract/store.js'

const METHOD_NAMES: ReadonlySet<string> = new Set(METHODS)

/**
 * Whether a record is of an HTTP request: its route begins with a method of HTTP. Functions have names, which may have
 * spaces too, and messages routes of their own.
 */
export function isOfHttp({ meta }: { readonly meta: Pick<StoredRecord['meta'], 'route'> }): boolean {
  const [, method = ''] = /^(\S+) \S/.exec(meta.route) ?? []
  return METHOD_NAMES.has(method)
}
