import { readFileSync } from 'node:fs'

/** A block of code of a page. */
export interface DocBlock {
  readonly language: string
  readonly text: string
}

/** The blocks of a page with code in them, in their order. */
export function docBlocks(page: string): readonly DocBlock[] {
  const text = readFileSync(new URL(`../../${page}`, import.meta.url), 'utf8')
  return [...text.matchAll(/^```(\w+)\n(.*?)^```$/gms)].map(([, language = '', code = '']) => ({
    language,
    text: code,
  }))
}

/** The one block of a page that has `part` in it. */
export function docBlock(page: string, part: string): string {
  const blocks = docBlocks(page).filter(({ text }) => text.includes(part))
  if (blocks.length !== 1 || blocks[0] === undefined)
    throw new Error(`${page} has ${blocks.length} blocks with "${part}", and not one`)
  return blocks[0].text
}
