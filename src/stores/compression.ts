import { promisify } from 'node:util'
import { deflate, deflateSync, inflate, inflateSync } from 'node:zlib'
import { OptionsError } from '../contract/errors.js'
import type { MaybePromise } from '../contract/maybe-promise.js'

/** Which bodies are compressed. */
export interface CompressionOptions {
  /** Bodies of more bytes than this are compressed, where that makes them shorter. Below some 500 it rarely pays. */
  readonly aboveBytes: number
}

/**
 * Up to so many bytes a body is done at once, which takes a quarter of a millisecond at the most. A thread of its own takes
 * longer than that to be asked. Larger ones go there.
 */
const AT_ONCE_BYTES = 16_384

/** Longer bodies are not compressed, and what says that it was one is not believed. */
const MOST_BYTES = 64 * 1024 * 1024

const deflateElsewhere = promisify(deflate)
const inflateElsewhere = promisify<Buffer, { maxOutputLength: number }, Buffer>(inflate)

/**
 * Reads the option of a store.
 *
 * @returns how many bytes a body must have more than, to be compressed: infinitely many without the option.
 * @throws {OptionsError} when it is wrong.
 */
export function compressedAbove(given: CompressionOptions | undefined, store: string): number {
  if (given === undefined) return Number.POSITIVE_INFINITY
  const aboveBytes = (given as Partial<CompressionOptions> | null)?.aboveBytes
  if (Number.isSafeInteger(aboveBytes) && Number(aboveBytes) >= 0) return Number(aboveBytes)
  throw new OptionsError(
    `${store}: option "compress.aboveBytes" must be a whole number of bytes, such as 1024; got ${String(aboveBytes)}`,
  )
}

/** Compresses a body (zlib, RFC 1950). `undefined` when it is too long, or would not get shorter. */
export function compressed(body: Buffer): MaybePromise<Buffer | undefined> {
  if (body.byteLength > MOST_BYTES) return undefined
  const ifShorter = (bytes: Buffer) => (bytes.byteLength < body.byteLength ? bytes : undefined)
  if (body.byteLength <= AT_ONCE_BYTES) return ifShorter(deflateSync(body))
  return deflateElsewhere(body).then(ifShorter)
}

/**
 * Gives back what was compressed. Never more than `length` bytes are made.
 *
 * @throws what zlib says, or a RangeError, when it is not what a body of this length was compressed to.
 */
export function decompressed(bytes: Buffer, length: number): MaybePromise<Buffer> {
  if (!(length <= MOST_BYTES)) throw new RangeError(`A body of ${length} bytes is never compressed`)
  const ifWhole = (body: Buffer): Buffer => {
    if (body.byteLength === length) return body
    throw new RangeError(`The body has ${body.byteLength} bytes instead of ${length}`)
  }
  // Zlib takes no limit of 0, and such a body is never compressed.
  const limit = { maxOutputLength: Math.max(1, length) }
  if (length <= AT_ONCE_BYTES) return ifWhole(inflateSync(bytes, limit))
  return inflateElsewhere(bytes, limit).then(ifWhole)
}
