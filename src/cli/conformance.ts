import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import {
  checkHttpConformance,
  formatHttpConformance,
  type HttpConformanceChoice,
  type HttpTarget,
  type HttpTargetOperation,
  httpConformance,
  httpConformanceCost,
  TargetUnfitError,
} from '../testing/test-kit.js'
import { type Command, EXIT, type Output, UsageError } from './command.js'

const HELP = `oncekey conformance: checks how a server keeps Idempotency-Key, by HTTP alone.

Usage: oncekey conformance URL [options]
       oncekey conformance --target FILE [options]

It sends real requests, which have real effects: use a test system. Before the first one it says how many.

The operation:
  --method METHOD             POST unless you say otherwise
  --body JSON | @FILE         {{n}} becomes the number of an operation, {{uuid}} a random text, so that no two
                              operations send the same. Without it: {"n":"{{n}}"}, which is a number
  --header 'Name: value'      sent with every request; may be repeated
  --key-header NAME           Idempotency-Key unless you say otherwise
  --required                  the server refuses requests without a key

What lets more be judged:
  --effects URL               answers GET with the number of effects so far, or {"effects": number}
  --effect-id NAME | /FIELD   a header of answers, or a JSON pointer into them, that is another one for every effect
  --caller-header 'N: value'  twice: what makes two callers of a request
  --operation NAME=URL        an operation that takes the same body: slow, patch, clientError, serverError, binary,
                              empty, streamed, large; may be repeated
  --target FILE               all of it as JSON; the options above go before it

How it is done:
  --parallel N                duplicates in a race: 10 unless you say otherwise
  --timeout DURATION          how long an answer may take: 30s unless you say otherwise
  --held                      the server lets duplicates wait for the first one's answer
  --only ID,...               makes these checks alone
  --without ID,...            leaves these checks out
  --strict                    what cannot be judged counts as failed
  --dry-run                   says what would be checked, and sends nothing
  --json                      the report as JSON, on standard output

Exit codes:
  0  all that was judged passed
  1  a check failed; with --strict, or one was skipped
  2  the command line is wrong, or the server cannot be checked: nobody answers, or the operation does not succeed
`

/** `oncekey conformance URL`: the checks of `httpConformance`, from the command line. */
export const conformance: Command = {
  name: 'conformance',
  summary: 'checks how a server keeps Idempotency-Key, by HTTP alone',
  help: HELP,
  async run(args, output) {
    const { values: flags, positionals } = parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        method: { type: 'string' },
        body: { type: 'string' },
        header: { type: 'string', multiple: true },
        'key-header': { type: 'string' },
        required: { type: 'boolean' },
        effects: { type: 'string' },
        'effect-id': { type: 'string' },
        'caller-header': { type: 'string', multiple: true },
        operation: { type: 'string', multiple: true },
        target: { type: 'string' },
        parallel: { type: 'string' },
        timeout: { type: 'string' },
        held: { type: 'boolean' },
        only: { type: 'string' },
        without: { type: 'string' },
        strict: { type: 'boolean' },
        'dry-run': { type: 'boolean' },
        json: { type: 'boolean' },
      },
    })
    const [url, ...others] = positionals
    if (others.length > 0) throw new UsageError(`one URL is enough; got also ${others.join(' ')}`)
    const described = flags.target === undefined ? {} : readTarget(flags.target)
    const callers = flags['caller-header']?.map(headerIn)
    if (callers !== undefined && callers.length !== 2)
      throw new UsageError('--caller-header makes two callers: give it twice')
    const target = withoutUndefined({
      ...described,
      url: url ?? described.url,
      method: flags.method ?? described.method,
      body: flags.body === undefined ? described.body : bodyIn(flags.body),
      headers: { ...described.headers, ...Object.assign({}, ...(flags.header ?? []).map(headerIn)) },
      keyHeader: flags['key-header'] ?? described.keyHeader,
      required: flags.required ?? described.required,
      effects: flags.effects ?? described.effects,
      effectId: flags['effect-id'] ?? described.effectId,
      callers: callers ?? described.callers,
      operations: { ...described.operations, ...operationsIn(flags.operation ?? []) },
      parallel: flags.parallel === undefined ? described.parallel : Number(flags.parallel),
      timeout: flags.timeout === undefined ? described.timeout : millisecondsOr(flags.timeout),
      duplicates: flags.held === true ? 'held' : described.duplicates,
    })
    if (target.url === undefined)
      throw new UsageError('name the URL to check; see oncekey conformance --help')
    const choice = withoutUndefined({ only: listIn(flags.only), without: listIn(flags.without) })
    announce(target as HttpTarget, choice as HttpConformanceChoice, output)
    if (flags['dry-run'] === true) return listChecks(choice as HttpConformanceChoice, output)

    const report = await check(target as HttpTarget, choice as HttpConformanceChoice)
    output.out(flags.json === true ? `${JSON.stringify(report, null, 2)}\n` : formatHttpConformance(report))
    return report.failed > 0 || (flags.strict === true && report.skipped > 0) ? EXIT.failed : EXIT.ok
  },
}

async function check(
  target: HttpTarget,
  choice: HttpConformanceChoice,
): Promise<Awaited<ReturnType<typeof checkHttpConformance>>> {
  try {
    return await checkHttpConformance(target, choice)
  } catch (error) {
    if (error instanceof TargetUnfitError) throw new UsageError(error.message, { cause: error })
    throw error
  }
}

function announce(target: HttpTarget, choice: HttpConformanceChoice, output: Output): void {
  const { checks, requests, effects } = httpConformanceCost(target, choice)
  output.err(
    `${checks} checks send up to ${requests} real requests to ${target.method ?? 'POST'} ${target.url}. They have effects: ` +
      `up to ${effects} on a server that is right, and up to one for every request on another.\n`,
  )
}

function listChecks({ only, without = [] }: HttpConformanceChoice, output: Output): number {
  for (const { id, tier, name, source } of httpConformance) {
    if (!(only?.includes(id) ?? true) || without.includes(id)) continue
    output.out(`${tier.padEnd(9)}${name} (${source})\n`)
  }
  return EXIT.ok
}

function readTarget(file: string): Partial<HttpTarget> {
  const text = read(file)
  try {
    const target: unknown = JSON.parse(text)
    if (typeof target === 'object' && target !== null && !Array.isArray(target)) return target
  } catch (cause) {
    throw new UsageError(`${file} is not JSON: ${(cause as Error).message}`, { cause })
  }
  throw new UsageError(`${file} must hold an object: { "url": ..., ... }`)
}

function bodyIn(given: string): string {
  return given.startsWith('@') ? read(given.slice(1)) : given
}

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (cause) {
    throw new UsageError(`${file} cannot be read: ${(cause as Error).message}`, { cause })
  }
}

function headerIn(line: string): Record<string, string> {
  const colon = line.indexOf(':')
  if (colon < 1) throw new UsageError(`a header is given as 'Name: value'; got "${line}"`)
  return { [line.slice(0, colon).trim()]: line.slice(colon + 1).trim() }
}

function operationsIn(given: readonly string[]): Record<string, HttpTargetOperation> {
  return Object.fromEntries(
    given.map((text) => {
      const equals = text.indexOf('=')
      if (equals < 1) throw new UsageError(`an operation is given as NAME=URL; got "${text}"`)
      return [text.slice(0, equals), { url: text.slice(equals + 1) }]
    }),
  )
}

/** A bare number is milliseconds, as in the options of the library. */
function millisecondsOr(given: string): HttpTarget['timeout'] {
  return (/^\d+$/.test(given) ? Number(given) : given) as HttpTarget['timeout']
}

function listIn(given: string | undefined): readonly string[] | undefined {
  return given?.split(',').map((id) => id.trim())
}

/** A target says nothing of what it leaves out. */
function withoutUndefined<T extends object>(given: T): { [name in keyof T]?: Exclude<T[name], undefined> } {
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)) as {
    [name in keyof T]?: Exclude<T[name], undefined>
  }
}
