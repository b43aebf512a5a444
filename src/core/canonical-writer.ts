import { createHash, type Hash, hash } from 'node:crypto'
import { sortByName } from './name-order.js'

/** How many levels a value may have. */
export const MAX_DEPTH = 1000
const BYTES = 16 * 1024
/** Above this many characters the built-in encoder is faster than a loop here. */
const LONG = 100
/** How much of a long string is written at once. With nothing but escapes it takes six times as many bytes. */
const PIECE = 2048
/** Objects of so many members are tables, whose members are faster to look up than to list. */
const TABLE = 1000

/** How an ASCII character is written in a string: 0 as itself, 1 as `\u00..`, else as a backslash and this one. */
const ESCAPES = new Uint8Array(128).fill(1, 0, 0x20)
for (const [character, letter] of ['\bb', '\tt', '\nn', '\ff', '\rr', '""', '\\\\'])
  ESCAPES[character?.charCodeAt(0) ?? 0] = letter?.charCodeAt(0) ?? 0
const HEX = Buffer.from('0123456789abcdef')

const COMMA = 0x2c
const COLON = 0x3a
const QUOTE = 0x22
const BACKSLASH = 0x5c
const POINT = 0x2e
const ZERO = 0x30

/** Numbers with up to four decimal places have a short way. */
const PLACES = 10_000

/** More bytes than one value has, and still a small integer: fields that are always that are fastest. */
const A_LOT = 2 ** 30 - 2 * BYTES

// Strings have half a dozen kinds in V8, and after four of them a method is looked up anew for every character.
const { charCodeAt } = String.prototype

const NOTHING: readonly never[] = []

/** A text that goes before a value. An object, because equal texts are found out slowly, and the same object at once. */
export interface CanonicalPrefix {
  readonly text: string
}

/** A list or an object that is being written. */
class Frame {
  /** `undefined` for a list. */
  names: readonly string[] | undefined
  values: readonly unknown[] = NOTHING
  index = 0
  isEmpty = true

  /** The frame stays for the next value, and must not keep this one. */
  forget(): void {
    this.names = undefined
    this.values = NOTHING
  }
}

/**
 * Writes the canonical JSON of a value into a hash, and can stop on its way. It keeps its place in a list of its own, and
 * not on the stack, so that it can go on later.
 */
export class CanonicalWriter {
  readonly #bytes = Buffer.allocUnsafeSlow(BYTES)
  readonly #words = new Int32Array(this.#bytes.buffer, 0, BYTES / 4)
  #end = 0
  /** Where full buffers have gone; `undefined` as long as one holds everything. */
  #sha: Hash | undefined
  #hashed = 0
  /** What the buffer begins with: it is nearly always that of the request before. */
  #prefix: CanonicalPrefix | undefined
  #prefixEnd = 0
  /** Lists and objects that are open, from the outside in; those past the depth are kept for the next ones. */
  readonly #frames: Frame[] = []
  #depth = 0
  /** Where in the buffer it is time to stop; past its end as long as there are buffers to fill before. */
  #stopEnd = 0
  /** A long string that is not written to its end. */
  #long: string | undefined
  #longAt = 0

  /** How many bytes have been written. */
  get written(): number {
    return this.#hashed + this.#end
  }

  /** Begins with a prefix and a value. What was begun before is forgotten. */
  begin(prefix: CanonicalPrefix, value: unknown): void {
    this.#sha = undefined
    this.#hashed = 0
    this.#stopEnd = A_LOT
    this.#writePrefix(prefix)
    const plain = plainOf(value)
    if (hasJson(plain)) this.#value(plain)
    else this.#ascii('undefined')
  }

  /**
   * Goes on, and stops soon after `bytes` more have been written.
   *
   * @returns whether that was all.
   */
  writeOn(bytes = A_LOT): boolean {
    this.#stopEnd = this.#end + bytes
    if (this.#long !== undefined) this.#writeLong(this.#long)
    while (this.#depth > 0) {
      if (this.#end >= this.#stopEnd) return false
      const frame = this.#frames[this.#depth - 1] as Frame
      if (frame.names === undefined) this.#list(frame)
      else this.#object(frame, frame.names)
    }
    return this.#long === undefined
  }

  /** The hash of all that was written, base64url. */
  digest(): string {
    // Faster to make than `subarray`, which makes a Buffer.
    const last = new Uint8Array(this.#bytes.buffer, 0, this.#end)
    if (this.#sha === undefined) return hash('sha256', last, 'base64url')
    return this.#sha.update(last).digest('base64url')
  }

  /** Lets go of the value, wherever it stopped. */
  end(): void {
    for (; this.#depth > 0; this.#depth -= 1) (this.#frames[this.#depth - 1] as Frame).forget()
    this.#long = undefined
    this.#sha = undefined
  }

  #writePrefix(prefix: CanonicalPrefix): void {
    this.#end = this.#prefixEnd
    if (prefix === this.#prefix) return
    this.#end = 0
    this.#prefix = undefined
    const { text } = prefix
    if (text.length * 3 > BYTES) {
      this.#flush().update(text)
      return
    }
    this.#end = this.#bytes.write(text)
    this.#prefix = prefix
    this.#prefixEnd = this.#end
  }

  /**
   * Writes what `plainOf` gives.
   *
   * @returns whether the frame has to be left: another one is open now, or it is time to stop.
   */
  #value(value: unknown): boolean {
    if (typeof value === 'string') this.#string(value)
    else if (typeof value === 'number') this.#number(value)
    else if (value === null) this.#ascii('null')
    else if (typeof value === 'object') {
      this.#open(value)
      return true
    } else if (typeof value === 'boolean') this.#ascii(value ? 'true' : 'false')
    else if (typeof value === 'bigint') throw new TypeError('JSON has no form for a bigint')
    // The place in a list of what has no form.
    else this.#ascii('null')
    return this.#end >= this.#stopEnd
  }

  #open(value: object): void {
    if (this.#depth === MAX_DEPTH) throw new RangeError(`It nests deeper than ${MAX_DEPTH} levels`)
    let frame = this.#frames[this.#depth]
    if (frame === undefined) {
      frame = new Frame()
      this.#frames.push(frame)
    }
    this.#depth += 1
    frame.index = 0
    frame.isEmpty = true
    if (Array.isArray(value)) {
      frame.names = undefined
      frame.values = value
      this.#byte(0x5b)
      return
    }
    const names = Object.keys(value)
    frame.names = names
    if (names.length > 0) {
      const object = value as Readonly<Record<string, unknown>>
      const values = names.length > TABLE ? names.map((name) => object[name]) : Object.values(object)
      sortByName(names, values)
      frame.values = values
    }
    this.#byte(0x7b)
  }

  #list(frame: Frame): void {
    const { values } = frame
    for (let index = frame.index; index < values.length; index += 1) {
      if (index > 0) this.#byte(COMMA)
      if (this.#value(plainOf(values[index]))) {
        frame.index = index + 1
        return
      }
    }
    this.#close(frame, 0x5d)
  }

  #object(frame: Frame, names: readonly string[]): void {
    const { values } = frame
    for (let index = frame.index; index < names.length; index += 1) {
      const plain = plainOf(values[index])
      if (!hasJson(plain)) continue
      if (!frame.isEmpty) this.#byte(COMMA)
      frame.isEmpty = false
      this.#string(names[index] as string)
      if (this.#long !== undefined) this.#writeLong(this.#long, true)
      this.#byte(COLON)
      if (this.#value(plain)) {
        frame.index = index + 1
        return
      }
    }
    this.#close(frame, 0x7d)
  }

  #close(frame: Frame, bracket: number): void {
    frame.forget()
    this.#depth -= 1
    this.#byte(bracket)
  }

  #string(value: string): void {
    const { length } = value
    if (length > LONG) {
      this.#byte(QUOTE)
      this.#long = value
      this.#longAt = 0
      this.#writeLong(value)
      return
    }
    this.#makeRoom(length * 6 + 2)
    this.#bytes[this.#end++] = QUOTE
    this.#characters(value)
    this.#bytes[this.#end++] = QUOTE
  }

  /** Goes on with a long string. */
  #writeLong(value: string, isAll = false): void {
    const { length } = value
    while (this.#longAt < length) {
      if (this.#end >= this.#stopEnd && !isAll) return
      const from = this.#longAt
      let to = Math.min(from + PIECE, length)
      // The halves of a pair stay together.
      if (to < length && (charCodeAt.call(value, to - 1) & 0xfc00) === 0xd800) to -= 1
      this.#piece(from === 0 && to === length ? value : value.slice(from, to))
      this.#longAt = to
    }
    this.#long = undefined
    this.#byte(QUOTE)
  }

  #piece(text: string): void {
    this.#makeRoom(text.length * 6)
    const end = this.#end + this.#bytes.write(text, this.#end)
    if (text.isWellFormed() && this.#isPlain(this.#end, end)) this.#end = end
    else this.#characters(text)
  }

  /** Whether these bytes are written in a string as they are. Looks at four of them at once. */
  #isPlain(from: number, to: number): boolean {
    const bytes = this.#bytes
    const words = this.#words
    let at = from
    for (; at < to && (at & 3) !== 0; at += 1) if (isSpecial(bytes[at] as number)) return false
    let found = 0
    for (const last = to & ~3; at < last; at += 4) {
      const word = words[at >> 2] as number
      // A byte below 0x21 sets its highest bit in the difference. The quote is 0x20 after its second bit was turned.
      const belowSpace = ((word ^ 0x02020202) - 0x21212121) & ~word
      const backslash = word ^ 0x5c5c5c5c
      found |= belowSpace | ((backslash - 0x01010101) & ~backslash)
    }
    // What a byte borrows from the next can look like a find, and hides none.
    if ((found & 0x80808080) !== 0) return false
    for (; at < to; at += 1) if (isSpecial(bytes[at] as number)) return false
    return true
  }

  /** Writes what stands between quotes. There must be room: six bytes for each character. */
  #characters(text: string): void {
    const { length } = text
    const bytes = this.#bytes
    let end = this.#end
    for (let index = 0; index < length; index += 1) {
      const code = charCodeAt.call(text, index)
      if (code < 0x80) {
        const letter = ESCAPES[code] as number
        if (letter === 0) bytes[end++] = code
        else if (letter === 1) end = writeEscape(bytes, end, code)
        else {
          bytes[end++] = BACKSLASH
          bytes[end++] = letter
        }
      } else if (code < 0x800) {
        bytes[end++] = 0xc0 | (code >> 6)
        bytes[end++] = 0x80 | (code & 0x3f)
      } else if (code < 0xd800 || code > 0xdfff) {
        bytes[end++] = 0xe0 | (code >> 12)
        bytes[end++] = 0x80 | ((code >> 6) & 0x3f)
        bytes[end++] = 0x80 | (code & 0x3f)
      } else {
        const point = text.codePointAt(index) as number
        // Half of a pair has no bytes in UTF-8.
        if (point <= 0xffff) end = writeEscape(bytes, end, code)
        else {
          bytes[end++] = 0xf0 | (point >> 18)
          bytes[end++] = 0x80 | ((point >> 12) & 0x3f)
          bytes[end++] = 0x80 | ((point >> 6) & 0x3f)
          bytes[end++] = 0x80 | (point & 0x3f)
          index += 1
        }
      }
    }
    this.#end = end
  }

  #number(value: number): void {
    if ((value | 0) === value && value >= 0) {
      this.#makeRoom(10)
      this.#digits(value)
      return
    }
    // An amount of money, or what else has few places, is whole when it is multiplied. Ten digits at the most are exact.
    const times = Math.round(value * PLACES)
    if (value > 0 && times < 2 ** 31 && times / PLACES === value) this.#decimal(times)
    else this.#ascii(Number.isFinite(value) ? `${value}` : 'null')
  }

  #decimal(times: number): void {
    this.#makeRoom(16)
    const whole = Math.floor(times / PLACES)
    this.#digits(whole)
    const bytes = this.#bytes
    bytes[this.#end++] = POINT
    let rest = times - whole * PLACES
    for (let place = PLACES / 10; rest > 0; place /= 10) {
      const digit = Math.floor(rest / place)
      bytes[this.#end++] = ZERO + digit
      rest -= digit * place
    }
  }

  /** Writes a whole number from 0 to 2,147,483,647. */
  #digits(value: number): void {
    const bytes = this.#bytes
    let rest = value | 0
    this.#end += lengthOf(rest)
    let at = this.#end
    while (rest >= 10) {
      const tenth = (rest / 10) | 0
      at -= 1
      bytes[at] = (ZERO + rest - tenth * 10) | 0
      rest = tenth
    }
    bytes[at - 1] = ZERO + rest
  }

  #ascii(text: string): void {
    const { length } = text
    this.#makeRoom(length)
    const bytes = this.#bytes
    let end = this.#end
    for (let index = 0; index < length; index += 1) bytes[end++] = charCodeAt.call(text, index)
    this.#end = end
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
    this.#hashed += this.#end
    this.#stopEnd -= this.#end
    this.#end = 0
    // It is written over now.
    this.#prefix = undefined
    this.#prefixEnd = 0
    return this.#sha
  }
}

/** How many digits a whole number has. */
function lengthOf(value: number): number {
  if (value < 10) return 1
  if (value < 100) return 2
  if (value < 1000) return 3
  if (value < 10_000) return 4
  if (value < 100_000) return 5
  if (value < 1_000_000) return 6
  if (value < 10_000_000) return 7
  if (value < 100_000_000) return 8
  return value < 1_000_000_000 ? 9 : 10
}

function isSpecial(byte: number): boolean {
  return byte < 0x80 && ESCAPES[byte] !== 0
}

function writeEscape(bytes: Buffer, at: number, code: number): number {
  bytes[at] = BACKSLASH
  bytes[at + 1] = 0x75
  for (let digit = 0; digit < 4; digit += 1)
    bytes[at + 2 + digit] = HEX[(code >> (12 - digit * 4)) & 15] as number
  return at + 6
}

/** What stands for a value in JSON. Applications give bigints a `toJSON`, too. */
function plainOf(value: unknown): unknown {
  if (typeof value === 'object' ? value === null : typeof value !== 'bigint') return value
  const { toJSON } = value as { readonly toJSON?: unknown }
  return typeof toJSON === 'function' ? (toJSON.call(value) as unknown) : value
}

/** Whether JSON has a form for it. Members without one are left out. */
function hasJson(value: unknown): boolean {
  return value !== undefined && typeof value !== 'function' && typeof value !== 'symbol'
}
