import { type CanonicalPrefix, CanonicalWriter, MAX_DEPTH } from './canonical-writer.js'

/** After so many bytes a value gives the event loop back. */
const FIRST_SLICE = 8 * 1024

/**
 * SHA-256 over a text and the canonical JSON of a value, base64url.
 *
 * Canonical means: names sorted by their UTF-16 code units at every level, no white space, otherwise what
 * `JSON.stringify` writes of what a parser of JSON gives. (A `new Number(1)` is an object without names here.) The bytes go to the hash as they are made, so that a body of 1 MiB needs no second copy of
 * itself.
 *
 * @throws {RangeError} when it nests deeper than 1000 levels.
 * @throws {TypeError} when it holds what JSON cannot say, or itself.
 */
export function hashCanonical(prefix: CanonicalPrefix, value: unknown): string {
  const writer = takeWriter()
  try {
    writer.begin(prefix, value)
    let isOver = false
    while (!isOver) isOver = writer.writeOn()
    return writer.digest()
  } catch (error) {
    throw asRefusal(error, value)
  } finally {
    giveBack(writer)
  }
}

/**
 * The same, in slices: a small value is hashed at once, and a larger one gives the event loop back in between. Nobody may
 * change it meanwhile. Throws or rejects as `hashCanonical` throws.
 */
export function hashCanonicalInSlices(prefix: CanonicalPrefix, value: unknown): string | Promise<string> {
  const writer = takeWriter()
  let isOver = true
  try {
    writer.begin(prefix, value)
    isOver = writer.writeOn(FIRST_SLICE)
    return isOver ? writer.digest() : inTurn(writer, value)
  } catch (error) {
    throw asRefusal(error, value)
  } finally {
    if (isOver) giveBack(writer)
  }
}

// One after the other, so that many large values at once hold the process up no longer than one.
let lastInTurn: Promise<unknown> = Promise.resolve()

function inTurn(writer: CanonicalWriter, value: unknown): Promise<string> {
  const hash = lastInTurn.then(() => inSlices(writer, value))
  lastInTurn = hash.catch(() => {})
  return hash
}

async function inSlices(writer: CanonicalWriter, value: unknown): Promise<string> {
  try {
    // As much again as is done already: few slices, and none of more than half of the value.
    do await nextTurn()
    while (!writer.writeOn(writer.written))
    return writer.digest()
  } catch (error) {
    throw asRefusal(error, value)
  } finally {
    giveBack(writer)
  }
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve)
  })
}

let idle: CanonicalWriter | undefined

function takeWriter(): CanonicalWriter {
  const writer = idle ?? new CanonicalWriter()
  // What a `toJSON` calls may come here again.
  idle = undefined
  return writer
}

function giveBack(writer: CanonicalWriter): void {
  writer.end()
  idle = writer
}

function asRefusal(error: unknown, value: unknown): unknown {
  if (error instanceof RangeError && whyTooDeep(value, new Set()) === 'cycle')
    return new TypeError('It holds itself')
  return error
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
