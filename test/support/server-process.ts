import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'

/** A process of a program under `test/programs` that serves. */
export interface ServerProcess {
  readonly url: string
  /** Stops the process in the middle of whatever it does. */
  stop(): void
  resume(): void
  /** Resolves when the process has ended, whoever ended it. */
  readonly ended: Promise<void>
  /** Asks the process to end, and waits until it has. */
  end(): Promise<void>
  /** Ends the process without any warning, and waits until it is gone. */
  kill(): Promise<void>
}

/** Starts a compiled program with its options, and waits until it has written the address that it listens on. */
export async function startServerProcess(program: string, options: unknown): Promise<ServerProcess> {
  const file = new URL(`../../.build/test/programs/${program}.js`, import.meta.url).pathname
  const child = spawn(process.execPath, [file, JSON.stringify(options)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  // A test run that is interrupted leaves no server behind.
  const reap = (): void => void child.kill('SIGKILL')
  process.once('exit', reap)
  child.once('exit', () => process.off('exit', reap))
  const url = await new Promise<string>((resolve, reject) => {
    createInterface(child.stdout).once('line', resolve)
    child.once('exit', (code) => reject(new Error(`The server ended with ${code}`)))
  })
  return {
    url,
    ended: exited,
    stop: () => void child.kill('SIGSTOP'),
    resume: () => void child.kill('SIGCONT'),
    async end() {
      child.kill('SIGTERM')
      await exited
    },
    async kill() {
      child.kill('SIGKILL')
      await exited
    },
  }
}

/** What a request was answered with. */
export interface Answered {
  readonly status: number
  readonly isReplay: boolean
  readonly body: Readonly<Record<string, unknown>>
}

/** Sends a request with a key, and gives what it was answered with. */
export async function post(
  url: string,
  key: string,
  headers: Readonly<Record<string, string>> = {},
): Promise<Answered> {
  const answer = await fetch(url, {
    method: 'POST',
    headers: { 'idempotency-key': key, 'content-type': 'application/json', ...headers },
    body: '{"amount":5}',
  })
  return {
    status: answer.status,
    isReplay: answer.headers.has('idempotent-replayed'),
    body: (await answer.json()) as Answered['body'],
  }
}
