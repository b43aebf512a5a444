import { createInterface } from 'node:readline'
import { UsageError } from './command.js'

/**
 * Asks a person, at the terminal. Everything but `y` and `yes` is a no, the end of input too.
 *
 * @throws {UsageError} when there is nobody to ask.
 */
export async function confirm(question: string, isSaid: boolean | undefined): Promise<boolean> {
  if (isSaid === true) return true
  if (!process.stdin.isTTY)
    throw new UsageError('nothing was changed: there is no terminal to ask at. Say --yes to do it unasked')
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  try {
    const answer = await new Promise<string>((resolve) => {
      terminal.once('close', () => resolve(''))
      terminal.question(`${question} [y/N] `, resolve)
    })
    return /^y(es)?$/i.test(answer.trim())
  } finally {
    terminal.close()
  }
}
