/**
 * What must not reach a terminal as it is: control characters, which could move the cursor, colour the screen or type for
 * the operator; marks that turn the direction of writing; separators of lines; lone surrogates.
 */
const UNPRINTABLE =
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for
  /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g

/** A text as it may be shown in a line: what could do something to a terminal is written as `\u001b`. */
export function printable(text: string): string {
  return text.replace(UNPRINTABLE, escaped)
}

/** A text of several lines as it may be shown: with its line feeds and tabs. */
export function printableLines(text: string): string {
  return text.replace(UNPRINTABLE, (character) =>
    character === '\n' || character === '\t' ? character : escaped(character),
  )
}

/** A value as JSON that may be shown: the same document, with more of its characters escaped. */
export function printableJson(value: unknown, indent?: number): string {
  // Line feeds that JSON itself has are between its values, never in a text.
  return JSON.stringify(value, null, indent).replace(UNPRINTABLE, (character) =>
    character === '\n' ? character : escaped(character),
  )
}

/** A text for a shell of POSIX, quoted where it has to be. What must not reach a terminal is escaped, and another word then. */
export function shellWord(given: string): string {
  const text = printable(given)
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`
}

function escaped(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`
}
