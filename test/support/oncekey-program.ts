import { execFile } from 'node:child_process'

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
  return new Promise((resolve, reject) => {
    execFile(process.execPath, [ONCEKEY, ...args], (error, out, err) => {
      if (error !== null && typeof error.code !== 'number') return reject(error)
      resolve({ code: error === null ? 0 : Number(error.code), out, err })
    })
  })
}
