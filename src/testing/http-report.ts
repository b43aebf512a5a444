import type { HttpConformanceReport, HttpConformanceResult } from './http-conformance.js'

const TIERS = [
  { tier: 'draft', heading: 'The IETF draft' },
  { tier: 'careful', heading: 'What careful servers do besides' },
] as const

const MARKS = { passed: 'pass', failed: 'FAIL', skipped: 'skip' } as const

/** A report as text for people: by tier, what failed with what was expected and seen, what was skipped with why. */
export function formatHttpConformance(report: HttpConformanceReport): string {
  const { target, effects, passed, failed, skipped } = report
  return [
    `${target.method} ${target.url}`,
    `Effects are ${effects.evidence}: ${effects.source}`,
    ...TIERS.flatMap(({ tier, heading }) =>
      section(
        heading,
        report.checks.filter((check) => check.tier === tier),
      ),
    ),
    '',
    `${passed} passed, ${failed} failed, ${skipped} skipped`,
    ...(skipped > 0 ? ['What was skipped was not judged: it may be right or wrong.'] : []),
    '',
  ].join('\n')
}

function section(heading: string, checks: readonly HttpConformanceResult[]): readonly string[] {
  return checks.length === 0 ? [] : ['', heading, ...checks.flatMap(lines)]
}

function lines({
  id,
  status,
  title,
  source,
  expected,
  seen,
  effects,
}: HttpConformanceResult): readonly string[] {
  return [
    `  ${MARKS[status]}  ${id}: ${title}`,
    `          source    ${source}`,
    `          expected  ${expected}`,
    `          ${status === 'skipped' ? 'why     ' : 'seen    '}  ${seen}${effects === null ? '' : `; effects: ${effects}`}`,
  ]
}
