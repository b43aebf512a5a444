import { findProgram } from './program.js'

/** Where Prometheus is, or `undefined` when it is not installed. Debian's package has `promtool` too. */
export function findPrometheus(): string | undefined {
  return findPromtool() === undefined ? undefined : findProgram('prometheus')
}

/** Where the checker of Prometheus' rules is. */
export function findPromtool(): string | undefined {
  return findProgram('promtool')
}
