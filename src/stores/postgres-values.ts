/** The types of columns that the store reads, by the number that Postgres gives them. */
const PARSERS: Readonly<Record<number, (text: string) => unknown>> = {
  17: bytesIn,
  21: Number,
  23: Number,
  25: String,
  701: Number,
}

/** The types that `parseValue` knows. */
export const PARSED_TYPES: readonly number[] = Object.keys(PARSERS).map(Number)

/**
 * A value that Postgres gave as text, as the store reads it. Clients can be told to parse types in ways of their own, and
 * the store must not depend on that.
 */
export function parseValue(type: number, text: string): unknown {
  return PARSERS[type]?.(text) ?? text
}

/** Bytes as they are printed: in hex, or in the older form where `bytea_output` asks for it. */
function bytesIn(text: string): Buffer {
  if (text.startsWith('\\x')) return Buffer.from(text.slice(2), 'hex')
  const bytes = text.replace(/\\(\\|[0-7]{3})/g, (_, code: string) =>
    code === '\\' ? code : String.fromCharCode(Number.parseInt(code, 8)),
  )
  return Buffer.from(bytes, 'latin1')
}
