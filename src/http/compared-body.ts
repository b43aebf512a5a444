import { createHash } from 'node:crypto'

/**
 * A body as it is compared with that of a retry: JSON as whoever parses it later will see it, so that the order of fields
 * does not matter, and anything else byte for byte.
 *
 * @param textOf gives the bytes as text; asked only where they are JSON.
 */
export function asParsed(
  bytes: Uint8Array,
  contentType: string | null | undefined,
  textOf: () => string,
): unknown {
  if (!/^application\/(?:[^;]*\+)?json\s*(?:;|$)/i.test(contentType ?? '')) return bytes
  try {
    return JSON.parse(textOf()) as unknown
  } catch {
    // It is for the handler or its parser to refuse this.
    return bytes
  }
}

/** SHA-256 of the received bytes. */
export function digestOf(bytes: Uint8Array): Uint8Array {
  return createHash('sha256').update(bytes).digest()
}
