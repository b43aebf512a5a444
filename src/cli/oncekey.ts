#!/usr/bin/env node
import { readFileSync } from 'node:fs'
import { EXIT, endOf, type Output } from './command.js'
import { COMMANDS } from './commands.js'
import { printableLines } from './printable.js'

const HELP = `oncekey: answers every retry of one operation with one effect and one answer.

Usage: oncekey COMMAND [options]

Commands:
${COMMANDS.map(({ name, summary }) => `  ${name.padEnd(14)}${summary}`).join('\n')}

  oncekey COMMAND --help   says everything about a command
  oncekey --version        says which version this is

A customer says that a payment is stuck, or retries are refused with IDEMPOTENCY_OUTCOME_UNKNOWN:
  1. oncekey list --status=unknown        finds it; oncekey list --key=KEY, if you know its key
  2. oncekey show --id=ID                 says what is known of it
  3. find out whether it happened: in your books, or at the provider
  4. oncekey settle --id=ID ...           it happened: retries get the answer that you give
     oncekey release --id=ID              it did not happen: a retry runs it again
  1 and 2 print the commands that go on from there. Nothing is changed before you said yes.

The store is --store URL, or ONCEKEY_STORE in the environment: redis://, rediss://, postgres:// or postgresql://.
Without both, DATABASE_URL or REDIS_URL, where only one of them is set.

Exit codes: 0 all is well; 1 the answer is no: not found, not settled, a check failed; 2 the command line is wrong, or
nobody said yes, and nothing was changed; 3 the store cannot be reached, or failed.
`

let isClosed = false
const output: Output = {
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
  isClosed: () => isClosed,
}

// Whoever reads only the beginning (`| head`) has what it wants.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error
  isClosed = true
})

// What was done is done, whether or not somebody reads about it: `2>&1 | head -1` must not make a failure of it.
process.stderr.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error
})

// Not process.exit(): what was written to a pipe has to get there.
process.exitCode = await main(process.argv.slice(2))
// A store that does not answer does not close its connection either.
if (process.exitCode === EXIT.unavailable) setTimeout(() => process.exit(), 1000).unref()

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
    const { code, told } = endOf(error)
    output.err(printableLines(`oncekey ${command.name}: ${told}\n`))
    return code
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
