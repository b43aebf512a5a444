import { vi } from 'vitest'

/** Keeps what a replays tier warns of from the console, until mocks are restored. @returns the list that it goes to. */
export function replaysWarnings(): readonly string[] {
  const warnings: string[] = []
  const emitWarning = process.emitWarning.bind(process)
  vi.spyOn(process, 'emitWarning').mockImplementation((warning: string | Error, ...rest: unknown[]) => {
    if (String(rest[0]) === 'OncekeyReplaysWarning') warnings.push(String(warning))
    else emitWarning(warning, ...(rest as []))
  })
  return warnings
}
