import { execFile, spawn } from 'node:child_process'
import { findProgram } from './program.js'

/** The built program: `npm run build` makes it. */
export const ONCEKEY = new URL('../../dist/cli/oncekey.js', import.meta.url).pathname

/** How a run of the program ended. */
export interface ProgramRun {
  readonly code: number
  readonly out: string
  readonly err: string
}

/** Runs the built program to its end. */
export function runOncekey(...args: readonly string[]): Promise<ProgramRun> {
  return runOncekeyIn({}, ...args)
}

/** Runs the built program to its end, without a terminal and without a store but the one in `environment`. */
export function runOncekeyIn(
  environment: Readonly<Record<string, string>>,
  ...args: readonly string[]
): Promise<ProgramRun> {
  return runProgram(process.execPath, [ONCEKEY, ...args], environment)
}

/** Runs what the program tells an operator to type, in a shell; `npx oncekey` is the built program. */
export function typeInShell(
  environment: Readonly<Record<string, string>>,
  typed: string,
): Promise<ProgramRun> {
  return runProgram('/bin/sh', ['-c', asTyped(typed)], environment)
}

/** Whether the program can be run at a terminal here. */
export const hasTerminals = process.platform === 'linux' && findProgram('script') !== undefined

/** How a run at a terminal ended: what stood on the screen, and the exit code. */
export interface TerminalRun {
  readonly code: number
  readonly screen: string
}

/**
 * Types a command at a terminal, and `answer` once it asks.
 *
 * @param asked is waited for between the question and its answer.
 */
export async function typeAtTerminal(
  environment: Readonly<Record<string, string>>,
  typed: string,
  answer: string,
  asked: () => Promise<void> = async () => {},
): Promise<TerminalRun> {
  const child = spawn('script', ['-qec', asTyped(typed), '/dev/null'], {
    env: environmentWith(environment),
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  let screen = ''
  let isAnswered = false
  child.stdout.on('data', (bytes: Buffer) => {
    screen += bytes.toString()
    if (isAnswered || !screen.includes('[y/N]')) return
    isAnswered = true
    asked().then(
      () => child.stdin.write(answer),
      (error: Error) => child.stdin.destroy(error),
    )
  })
  const code = await new Promise<number>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (ended) => resolve(ended ?? -1))
  })
  return { code, screen: screen.replaceAll('\r\n', '\n') }
}

function runProgram(
  file: string,
  args: readonly string[],
  environment: Readonly<Record<string, string>>,
): Promise<ProgramRun> {
  return new Promise((resolve, reject) => {
    execFile(file, args, { env: environmentWith(environment) }, (error, out, err) => {
      if (error !== null && typeof error.code !== 'number') return reject(error)
      resolve({ code: error === null ? 0 : Number(error.code), out, err })
    })
  })
}

function asTyped(typed: string): string {
  return typed.replace(/^npx oncekey/, `'${process.execPath}' '${ONCEKEY}'`)
}

/** The environment of this process, without the stores and the settings that it may name. */
function environmentWith(environment: Readonly<Record<string, string>>): NodeJS.ProcessEnv {
  const { DATABASE_URL, REDIS_URL, ONCEKEY_STORE, ONCEKEY_AUDIT_LOG, ONCEKEY_SEALING_KEYS, ...rest } =
    process.env
  return { ...rest, ...environment }
}
