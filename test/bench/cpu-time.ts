import { readdirSync, readFileSync } from 'node:fs'

/** Linux counts processor time in hundredths of a second, whatever its kernel ticks at. */
const MICROS_PER_TICK = 10_000

/**
 * Processor time that programs below this process have used so far, in microseconds: those that have one of `names`. 0 on
 * systems without `/proc`.
 */
export function cpuTimeOfPrograms(names: readonly string[]): number {
  const parents = new Map<number, number>()
  const found: { readonly pid: number; readonly ticks: number }[] = []
  for (const entry of listProcesses()) {
    const stat = readStat(entry)
    if (stat === undefined) continue
    const name = stat.slice(stat.indexOf('(') + 1, stat.lastIndexOf(')'))
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    parents.set(Number(entry), Number(fields[1]))
    if (names.includes(name))
      // With that of children that have ended, such as a connection's process.
      found.push({ pid: Number(entry), ticks: sumOf(fields.slice(11, 15)) })
  }
  const isBelowThis = (pid: number): boolean => {
    for (let at: number | undefined = pid; at !== undefined && at > 1; at = parents.get(at))
      if (at === process.pid) return true
    return false
  }
  return found
    .filter(({ pid }) => isBelowThis(pid))
    .reduce((sum, { ticks }) => sum + ticks * MICROS_PER_TICK, 0)
}

function sumOf(fields: readonly string[]): number {
  return fields.reduce((sum, field) => sum + Number(field), 0)
}

function listProcesses(): readonly string[] {
  try {
    return readdirSync('/proc').filter((name) => /^\d+$/.test(name))
  } catch {
    return []
  }
}

function readStat(pid: string): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8')
  } catch {
    // It has ended meanwhile.
    return undefined
  }
}
