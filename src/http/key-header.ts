import type { IncomingMessage } from 'node:http'
import { KeyInvalidError } from '../contract/errors.js'

/** What a request says of its headers, as Node's `IncomingMessage` does: joined, and line by line. */
export type HeaderLines = Pick<IncomingMessage, 'headers' | 'rawHeaders'>

/** Which headers may name a key: as they are written, and in lower case. */
export interface HeaderNames {
  readonly headerNames: readonly string[]
  readonly headerKeys: readonly string[]
}

/** A character of a key without quotes, as a regular expression that any description of an API can hold. */
export const BARE_KEY_PATTERN = '[A-Za-z0-9_.:~+/=@-]'

/** A key in quotes, without parameters, of 1 to 255 characters. */
export const QUOTED_KEY_PATTERN = String.raw`"(?:[ !#-\[\]-~]|\\["\\]){1,255}"`

/** A key without quotes, as most clients send it. */
const BARE_KEY = new RegExp(`^${BARE_KEY_PATTERN}+$`)

const SF_STRING = String.raw`"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"`
const SF_NUMBER = String.raw`-?[0-9]{1,15}(?:\.[0-9]{1,3})?`
const SF_TOKEN = String.raw`[A-Za-z*][A-Za-z0-9!#$%&'*+.^_\x60|~:/-]*`
const SF_BARE_ITEM = String.raw`(?:${SF_STRING}|${SF_NUMBER}|${SF_TOKEN}|:[A-Za-z0-9+/=]*:|\?[01]|@-?[0-9]{1,15})`
const SF_PARAMETER = `; *[a-z*][a-z0-9_.*-]*(?:=${SF_BARE_ITEM})?`

/**
 * A String item of RFC 9651 (section 3.3.3), with parameters (section 3.1.2) that are checked and ignored. No two
 * alternatives begin with the same character, so matching takes time in proportion to the header's length.
 */
const QUOTED_KEY = new RegExp(`^(${SF_STRING})(?:${SF_PARAMETER})*$`)

/**
 * The key that a header's value names: `"abc"`, `"abc";v=1` and `abc` are one key.
 *
 * @throws {KeyInvalidError} when it is neither an RFC 9651 String nor a bare key.
 */
export function parseKeyHeader(value: string, header: string): string {
  if (BARE_KEY.test(value)) return value
  const quoted = QUOTED_KEY.exec(value)?.[1]
  if (quoted !== undefined) return quoted.slice(1, -1).replace(/\\(["\\])/g, '$1')
  throw new KeyInvalidError(
    `The header ${header} must hold one key: a quoted string, or letters, digits and the characters _.:~+/=@-`,
  )
}

/**
 * The key that a request's headers name, or `undefined` when none of them is there.
 *
 * @throws {KeyInvalidError} when a header is malformed or repeated, or two headers name different keys.
 */
export function keyFromHeaders(
  request: HeaderLines,
  { headerNames: names, headerKeys }: HeaderNames,
): string | undefined {
  let key: string | undefined
  for (let index = 0; index < headerKeys.length; index += 1) {
    const value = request.headers[headerKeys[index] as string]
    if (value === undefined) continue
    const name = names[index] as string
    // Node joins repeated lines with a comma, and two halves of a quoted string would join to a valid one.
    if (typeof value !== 'string' || (value.includes(',') && isRepeated(request, name)))
      throw new KeyInvalidError(`The header ${name} must not be repeated`)
    const named = parseKeyHeader(value, name)
    if (key !== undefined && key !== named)
      throw new KeyInvalidError(`The headers ${names.join(', ')} must not name different keys`)
    key = named
  }
  return key
}

function isRepeated({ rawHeaders }: HeaderLines, name: string): boolean {
  const lines = rawHeaders.filter((raw, index) => index % 2 === 0 && raw.toLowerCase() === name.toLowerCase())
  return lines.length > 1
}
