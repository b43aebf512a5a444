import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'

/** A server program that this process started. */
export interface RunningProgram {
  readonly pid: number
  /** Stops it in the middle of whatever it does, with all processes that it started. */
  pause(): void
  resume(): void
  /** Ends it with `signal`, and waits until it is gone. */
  stop(signal?: NodeJS.Signals): Promise<void>
}

/** What to start, and how to see that it is ready. */
export interface ProgramOptions {
  readonly file: string
  readonly args: readonly string[]
  readonly uid?: number
  readonly gid?: number
  readonly cwd?: string
  /** All of its environment. @default that of this process */
  readonly env?: NodeJS.ProcessEnv
  /** Whether it answers by now. */
  readonly isReady: () => Promise<boolean>
  /** @default 30 seconds */
  readonly readyWithinMs?: number
}

const READY_WITHIN_MS = 30_000

/**
 * Starts a server in a process group of its own and waits until it is ready.
 *
 * @throws when it ends or is not ready in time, with what it wrote.
 */
export async function startProgram(options: ProgramOptions): Promise<RunningProgram> {
  const { file, args, uid, gid, cwd, env } = options
  const child = spawn(file, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
    ...(uid !== undefined && { uid }),
    ...(gid !== undefined && { gid }),
    ...(cwd !== undefined && { cwd }),
    ...(env !== undefined && { env }),
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk) => {
      output = `${output}${chunk}`.slice(-4000)
    })
  const { pid } = child
  if (pid === undefined) {
    const [error] = (await new Promise((resolve) => child.once('error', (...cause) => resolve(cause)))) as [
      Error,
    ]
    throw error
  }
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  const signalGroup = (signal: NodeJS.Signals): void => {
    try {
      process.kill(-pid, signal)
    } catch {
      // It has ended already.
    }
  }
  // A test run that is interrupted leaves no server behind.
  const kill = (): void => signalGroup('SIGKILL')
  process.once('exit', kill)

  if (!(await becomesReady(options.isReady, () => hasEnded(child), options.readyWithinMs))) {
    kill()
    throw new Error(`${file} did not start: ${output}`)
  }
  return {
    pid,
    pause: () => signalGroup('SIGSTOP'),
    resume: () => signalGroup('SIGCONT'),
    async stop(signal = 'SIGTERM') {
      signalGroup('SIGCONT')
      child.kill(signal)
      await exited
      process.off('exit', kill)
    },
  }
}

/** Waits until a server answers. `false` when it has ended before, or takes too long. */
export async function becomesReady(
  isReady: ProgramOptions['isReady'],
  hasEnded: () => boolean = () => false,
  readyWithinMs = READY_WITHIN_MS,
): Promise<boolean> {
  const givesUpAt = Date.now() + readyWithinMs
  while (!(await isReady().catch(() => false))) {
    if (hasEnded() || Date.now() > givesUpAt) return false
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  return true
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null
}

/** Where a program is: on the PATH, or in one of `folders` (patterns, the last match wins). `undefined` if nowhere. */
export function findProgram(name: string, folders: readonly string[] = []): string | undefined {
  const inPath = (process.env.PATH ?? '').split(delimiter).map((folder) => join(folder, name))
  const elsewhere = folders.flatMap((folder) => findIn(folder, name))
  return [...inPath, ...elsewhere.reverse()].find(isExecutable)
}

function findIn(pattern: string, name: string): string[] {
  const listed = spawnSync('sh', ['-c', `ls -d ${pattern}/${name} 2>/dev/null | sort -V`], {
    encoding: 'utf8',
  })
  return listed.stdout.split('\n').filter((line) => line !== '')
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK)
    return true
  } catch {
    return false
  }
}
