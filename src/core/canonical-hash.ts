import { createHash, type Hash, hash } from 'node:crypto'

/**
 * SHA-256 over a text and the canonical JSON of a value, base64url.
 *
 * Canonical means: names sorted by their UTF-16 code units at every level, no white space, otherwise what
 * `JSON.stringify` writes. The bytes go to the hash as they are made, so that a body of 1 MiB needs no second copy of
 * itself, and takes about as long as it took to parse.
 *
 * @throws {RangeError} when it nests deeper than 1000 levels.
 * @throws {TypeError} when it holds what JSON cannot say, or itself.
 */
export function hashCanonical(text: string, value: unknown): string {
  const writer = idle ?? new CanonicalWriter()
  // What a `toJSON` calls may come here again.
  idle = undefined
  try {
    return writer.hash(text, value)
  } catch (error) {
    if (error instanceof RangeError && whyTooDeep(value, new Set()) === 'cycle')
      throw new TypeError('It holds itself')
    throw error
  } finally {
    idle = writer
  }
}

let idle: CanonicalWriter | undefined

const MAX_DEPTH = 1000
const BYTES = 16 * 1024
/** Above this many characters, or elements, the built-in functions are faster than a loop here. */
const LONG = 120
const MANY = 8
/** Up to so many names are sorted here. */
const FEW = 16

/** How an ASCII character is written in a string: 0 as itself, 1 as `\u00..`, else as a backslash and this one. */
const ESCAPES = new Uint8Array(128).fill(1, 0, 0x20)
for (const [character, letter] of ['\bb', '\tt', '\nn', '\ff', '\rr', '""', '\\\\'])
  ESCAPES[character?.charCodeAt(0) ?? 0] = letter?.charCodeAt(0) ?? 0

const COMMA = 0x2c
const COLON = 0x3a
const QUOTE = 0x22
const BACKSLASH = 0x5c

class CanonicalWriter {
  readonly #bytes = Buffer.allocUnsafeSlow(BYTES)
  #end = 0
  /** Where full buffers have gone; `undefined` as long as one holds everything. */
  #sha: Hash | undefined

  hash(text: string, value: unknown): string {
    this.#end = 0
    this.#sha = undefined
    this.#text(text)
    const plain = plainOf(value)
    if (hasJson(plain)) this.#value(plain, 0)
    else this.#ascii('undefined')
    const last = this.#bytes.subarray(0, this.#end)
    if (this.#sha === undefined) return hash('sha256', last, 'base64url')
    return (this.#sha as Hash).update(last).digest('base64url')
  }

  #value(value: unknown, depth: number): void {
    if (typeof value === 'string') this.#string(value)
    else if (typeof value === 'number') this.#ascii(Number.isFinite(value) ? `${value}` : 'null')
    else if (typeof value === 'boolean') this.#ascii(value ? 'true' : 'false')
    else if (value === null) this.#ascii('null')
    // Its TypeError says what a bigint is.
    else if (typeof value !== 'object') this.#text(JSON.stringify(value))
    else if (depth === MAX_DEPTH) throw new RangeError(`It nests deeper than ${MAX_DEPTH} levels`)
    else if (Array.isArray(value)) this.#array(value, depth + 1)
    else this.#object(value as Readonly<Record<string, unknown>>, depth + 1)
  }

  #array(list: readonly unknown[], depth: number): void {
    // Without objects in it there is nothing to sort.
    if (list.length > MANY && list.every(isPrimitive)) {
      this.#text(JSON.stringify(list))
      return
    }
    this.#byte(0x5b)
    for (let index = 0; index < list.length; index += 1) {
      if (index > 0) this.#byte(COMMA)
      const plain = plainOf(list[index])
      if (hasJson(plain)) this.#value(plain, depth)
      else this.#ascii('null')
    }
    this.#byte(0x5d)
  }

  #object(object: Readonly<Record<string, unknown>>, depth: number): void {
    this.#byte(0x7b)
    let isFirst = true
    for (const name of sorted(Object.keys(object))) {
      const plain = plainOf(object[name])
      if (!hasJson(plain)) continue
      if (!isFirst) this.#byte(COMMA)
      isFirst = false
      this.#string(name)
      this.#byte(COLON)
      this.#value(plain, depth)
    }
    this.#byte(0x7d)
  }

  #string(value: string): void {
    if (value.length > LONG || !this.#writeString(value)) this.#text(JSON.stringify(value))
  }

  /** @returns `false`, with nothing written, for a string with rare characters. */
  #writeString(value: string): boolean {
    const { length } = value
    this.#makeRoom(length * 3 + 2)
    const bytes = this.#bytes
    let end = this.#end
    bytes[end++] = QUOTE
    for (let index = 0; index < length; index += 1) {
      const code = value.charCodeAt(index)
      if (code < 0x80) {
        const letter = ESCAPES[code] as number
        if (letter === 1) return false
        if (letter !== 0) bytes[end++] = BACKSLASH
        bytes[end++] = letter || code
      } else if (code < 0x800) {
        bytes[end++] = 0xc0 | (code >> 6)
        bytes[end++] = 0x80 | (code & 0x3f)
      } else if (code < 0xd800 || code > 0xdfff) {
        bytes[end++] = 0xe0 | (code >> 12)
        bytes[end++] = 0x80 | ((code >> 6) & 0x3f)
        bytes[end++] = 0x80 | (code & 0x3f)
      } else return false
    }
    bytes[end++] = QUOTE
    this.#end = end
    return true
  }

  #ascii(text: string): void {
    const { length } = text
    this.#makeRoom(length)
    const bytes = this.#bytes
    let end = this.#end
    for (let index = 0; index < length; index += 1) bytes[end++] = text.charCodeAt(index)
    this.#end = end
  }

  #text(text: string): void {
    if (text.length * 3 > BYTES) {
      this.#flush().update(text)
      return
    }
    this.#makeRoom(text.length * 3)
    this.#end += this.#bytes.write(text, this.#end)
  }

  #byte(byte: number): void {
    this.#makeRoom(1)
    this.#bytes[this.#end++] = byte
  }

  #makeRoom(bytes: number): void {
    if (this.#end + bytes > BYTES) this.#flush()
  }

  #flush(): Hash {
    this.#sha ??= createHash('sha256')
    this.#sha.update(this.#bytes.subarray(0, this.#end))
    this.#end = 0
    return this.#sha
  }
}

/** What the first path that nests too deep comes to. Asked only when there is one: it costs a set of all parents. */
function whyTooDeep(value: unknown, parents: Set<unknown>): 'cycle' | 'deep' | undefined {
  if (typeof value !== 'object' || value === null) return undefined
  if (parents.has(value)) return 'cycle'
  if (parents.size > MAX_DEPTH) return 'deep'
  parents.add(value)
  for (const member of Object.values(value)) {
    const why = whyTooDeep(member, parents)
    if (why !== undefined) return why
  }
  parents.delete(value)
  return undefined
}

/** What stands for a value in JSON. */
function plainOf(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value
  const { toJSON } = value as { readonly toJSON?: unknown }
  return typeof toJSON === 'function' ? (toJSON.call(value) as unknown) : value
}

/** Whether JSON has a form for it. Members without one are left out. */
function hasJson(value: unknown): boolean {
  return value !== undefined && typeof value !== 'function' && typeof value !== 'symbol'
}

function isPrimitive(value: unknown): boolean {
  return typeof value !== 'object' || value === null
}

/** Sorts names in place. Most objects have a few, for which `sort` takes memory and more time. */
function sorted(names: string[]): readonly string[] {
  if (names.length > FEW) return names.sort()
  for (let index = 1; index < names.length; index += 1) {
    const name = names[index] as string
    let place = index
    while (place > 0 && (names[place - 1] as string) > name) {
      names[place] = names[place - 1] as string
      place -= 1
    }
    names[place] = name
  }
  return names
}
