/** A piece of a page, in which everything that came from outside is escaped already. Only `html` makes it. */
export class Html {
  readonly #text: string

  constructor(pieces: TemplateStringsArray, values: readonly Content[]) {
    this.#text = String.raw({ raw: pieces }, ...values.map(asText))
  }

  toString(): string {
    return this.#text
  }
}

/** What may stand in a page. Text is escaped; `undefined`, `null` and `false` are nothing. */
export type Content = Html | string | number | undefined | null | false | readonly Content[]

/**
 * Writes HTML. Every value is escaped, but for what `html` itself has made: text from outside cannot become markup. Values
 * stand between tags, or in an attribute with quotes; nowhere else.
 */
export function html(pieces: TemplateStringsArray, ...values: readonly Content[]): Html {
  return new Html(pieces, values)
}

function asText(content: Content): string {
  if (content === undefined || content === null || content === false) return ''
  if (content instanceof Html) return content.toString()
  if (typeof content === 'object') return content.map(asText).join('')
  return String(content).replace(/[&<>"'`]/g, (character) => `&#${character.charCodeAt(0)};`)
}
