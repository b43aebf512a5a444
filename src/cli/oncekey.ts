#!/usr/bin/env node
import { readFileSync } from 'node:fs'
import { type Command, EXIT, isExplained, type Output } from './command.js'
import { conformance } from './conformance.js'

const COMMANDS: readonly Command[] = [conformance]

const HELP = `oncekey: answers every retry of one operation with one effect and one answer.

Usage: oncekey COMMAND [options]

Commands:
${COMMANDS.map(({ name, summary }) => `  ${name.padEnd(14)}${summary}`).join('\n')}

  oncekey COMMAND --help   says everything about a command
  oncekey --version        says which version this is

Exit codes: 0 all is well, 1 something failed, 2 the command line is wrong or what it names cannot be reached.
`

const output: Output = {
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
}

// Whoever reads only the beginning (`| head`) has what it wants.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error
})

// Not process.exit(): what was written to a pipe has to get there.
process.exitCode = await main(process.argv.slice(2))

async function main(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args
  if (name === '--help' || name === '-h') return say(HELP)
  if (name === '--version') return say(`${versionOfThis()}\n`)
  const command = COMMANDS.find((one) => one.name === name)
  if (command === undefined) {
    output.err(name === undefined ? HELP : `oncekey: there is no command "${name}"\n\n${HELP}`)
    return EXIT.usage
  }
  if (rest.includes('--help') || rest.includes('-h')) return say(command.help)
  try {
    return await command.run(rest, output)
  } catch (error) {
    // A defect of ours shows where it is.
    const told = isExplained(error) ? error.message : String((error as Error)?.stack ?? error)
    output.err(`oncekey ${command.name}: ${told}\n`)
    return EXIT.usage
  }
}

function say(text: string): number {
  output.out(text)
  return EXIT.ok
}

function versionOfThis(): string {
  const file = new URL('../../package.json', import.meta.url)
  return (JSON.parse(readFileSync(file, 'utf8')) as { readonly version: string }).version
}
