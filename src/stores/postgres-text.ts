/** Bytes as a literal, of which nothing but hexadecimal digits comes from outside. */
export function bytesLiteral(bytes: Buffer): string {
  return `decode('${bytes.toString('hex')}', 'hex')`
}

/** What means itself between quotes, whatever a server makes of backslashes. */
const PLAIN = /^[A-Za-z0-9_./:@#+, -]*$/

/** Text as a literal: as it is, where nothing in it could mean anything else, or else as hexadecimal digits. */
export function textLiteral(text: string): string {
  if (PLAIN.test(text)) return `'${text}'`
  return `convert_from(${bytesLiteral(Buffer.from(text))}, 'UTF8')`
}

/** Stands where a value goes, each in its order. No name of a table has it. */
export const HERE = '\0'

/** A statement in both forms that `ExecuteStatement` takes. */
export interface TwofoldStatement {
  readonly text: string
  readonly strings: TemplateStringsArray
}

/** Makes both forms of a text with `HERE` in it. */
export function twofold(template: string): TwofoldStatement {
  const strings = template.split(HERE)
  const text = strings.reduce((before, after, index) => `${before}$${index}${after}`)
  return { text, strings: Object.freeze(Object.assign(strings, { raw: Object.freeze([...strings]) })) }
}

/** Makes a transaction one that has written, without a trace. */
export const ASSIGN_NUMBER: TwofoldStatement = twofold('select pg_current_xact_id()::text as done')
