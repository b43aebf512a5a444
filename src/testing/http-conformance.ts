import { OptionsError } from '../contract/errors.js'
import { DRAFT, type HttpCheck, type HttpConformanceTier } from './http-check.js'
import { CAREFUL_CHECKS } from './http-checks-careful.js'
import { DRAFT_CHECKS } from './http-checks-draft.js'
import { KEY_CHECKS } from './http-checks-keys.js'
import { REPLAY_CHECKS } from './http-checks-replays.js'
import { type EffectsEvidence, type EffectsWitness, foundWitness, namedWitness } from './http-effects.js'
import { type HttpAnswer, NoAnswerError } from './http-exchange.js'
import { type HttpTarget, type ResolvedTarget, resolveTarget } from './http-target.js'
import {
  Breach,
  beginTrial,
  isSuccess,
  type KeyStyle,
  NotJudged,
  shown,
  type Trial,
  type TrialOptions,
} from './http-trial.js'

/** One promise of an HTTP server with idempotency keys, and how to see whether a server keeps it. */
export interface HttpConformanceCase {
  /** Stable, for programs. */
  readonly id: string
  readonly tier: HttpConformanceTier
  /** The id, and what the server does. */
  readonly name: string
  /** Where that is written. */
  readonly source: string
  /**
   * Rejects when the server does something else, and also when that cannot be judged. Then the target should name what
   * the check needs, or the check be left out: a test that looks at nothing must not pass. Cases of one target run one
   * after the other, however they are called.
   */
  run(target: HttpTarget): Promise<void>
}

/** What became of one check. */
export interface HttpConformanceResult {
  readonly id: string
  readonly tier: HttpConformanceTier
  readonly title: string
  readonly source: string
  readonly status: 'passed' | 'failed' | 'skipped'
  readonly expected: string
  /** What the server did, or why that cannot be judged. */
  readonly seen: string
  /** How many effects the check saw; `null` where it did not look at them, or could not see them. */
  readonly effects: number | null
}

/** What became of all checks. */
export interface HttpConformanceReport {
  /** Of this shape. Fields may be added within a format, and nothing else changes. */
  readonly format: 1
  readonly target: { readonly url: string; readonly method: string }
  /** The revision of the draft that the checks cite. */
  readonly draft: string
  /** How effects were known. */
  readonly effects: { readonly evidence: EffectsEvidence; readonly source: string }
  readonly passed: number
  readonly failed: number
  readonly skipped: number
  /** In the order in which they were made. */
  readonly checks: readonly HttpConformanceResult[]
}

/** What the checks ask of a server. */
export interface HttpConformanceCost {
  readonly checks: number
  /** How many requests are sent to the endpoint, but for those that wait for a running operation. */
  readonly requests: number
  /** How many effects they have on a server that does it right. On another it may be one for every request. */
  readonly effects: number
}

/** The server cannot be checked: nobody answers there, or the operation that it was to be checked with fails. */
export class TargetUnfitError extends Error {
  override readonly name = 'TargetUnfitError'
}

const ALL_CHECKS: readonly HttpCheck[] = [...DRAFT_CHECKS, ...CAREFUL_CHECKS, ...REPLAY_CHECKS, ...KEY_CHECKS]

/**
 * Every promise of an HTTP server with idempotency keys. Run all of them against yours, with any test runner:
 *
 * ```ts
 * it.each(httpConformance)('$name', ({ run }) => run(target))
 * ```
 *
 * They know only HTTP. The requests are real and have effects.
 */
export const httpConformance: readonly HttpConformanceCase[] = ALL_CHECKS.map((check) => ({
  id: check.id,
  tier: check.tier,
  name: `${check.id}: ${check.title}`,
  source: check.source,
  async run(target) {
    const { status, expected, seen } = await inTurn(target, (session) => judge(check, session))
    if (status === 'failed') throw new Error(`Expected: ${expected}. Seen: ${seen} (${check.source})`)
    if (status === 'skipped')
      throw new Error(`Cannot be judged: ${seen}. Name what it needs, or leave "${check.id}" out`)
  },
}))

/** Which checks are made. */
export interface HttpConformanceChoice {
  /** The ids of those that are made. */
  readonly only?: readonly string[]
  /** The ids of those that are not made. */
  readonly without?: readonly string[]
}

/** How a server is checked. */
export interface HttpConformanceOptions extends HttpConformanceChoice {
  /** Is told of each result when it is there. */
  readonly onResult?: (result: HttpConformanceResult) => void
}

/**
 * Makes every check, one after the other, and tells what became of each.
 *
 * @throws {OptionsError} naming the option that is wrong.
 * @throws {TargetUnfitError} when the server cannot be checked at all.
 */
export async function checkHttpConformance(
  target: HttpTarget,
  options: HttpConformanceOptions = {},
): Promise<HttpConformanceReport> {
  const chosen = chosenChecks(options)
  const resolved = resolveTarget(target)
  const session = await openSession(resolved)
  const checks: HttpConformanceResult[] = []
  for (const check of chosen) {
    const result = await judge(check, session)
    checks.push(result)
    options.onResult?.(result)
  }
  const count = (status: HttpConformanceResult['status']): number =>
    checks.filter((check) => check.status === status).length
  const { evidence, source } = session.witness
  return {
    format: 1,
    target: { url: resolved.main.url.href, method: resolved.main.method },
    draft: DRAFT,
    effects: { evidence, source },
    passed: count('passed'),
    failed: count('failed'),
    skipped: count('skipped'),
    checks,
  }
}

/**
 * What the checks will ask of a server, without asking it for anything.
 *
 * @throws {OptionsError} naming the option that is wrong.
 */
export function httpConformanceCost(
  target: HttpTarget,
  choice: HttpConformanceChoice = {},
): HttpConformanceCost {
  const checks = chosenChecks(choice)
  const { parallel } = resolveTarget(target)
  const sum = (of: (check: HttpCheck) => number): number =>
    checks.reduce((total, check) => total + of(check), 0)
  return {
    checks: checks.length,
    requests: PREPARATION + sum(({ cost }) => cost.requests + (cost.race === true ? parallel : 0)),
    effects: PREPARATION + sum(({ cost }) => cost.effects),
  }
}

/** How many operations are carried out before the first check, at most. */
const PREPARATION = 3

function chosenChecks({ only, without = [] }: HttpConformanceChoice): readonly HttpCheck[] {
  const ids = ALL_CHECKS.map(({ id }) => id)
  for (const id of [...(only ?? []), ...without]) {
    if (!ids.includes(id))
      throw new OptionsError(`httpConformance: there is no check "${id}"; there are ${ids.join(', ')}`)
  }
  return ALL_CHECKS.filter(({ id }) => (only?.includes(id) ?? true) && !without.includes(id))
}

interface Turns {
  readonly session: Promise<TrialOptions>
  last: Promise<unknown>
}

/** What is found out about a target once, and the check that is being made there. */
const TURNS = new WeakMap<HttpTarget, Turns>()

/** Effects are counted over a whole check, so two checks of one target must not be made at a time. */
function inTurn<T>(target: HttpTarget, work: (session: TrialOptions) => Promise<T>): Promise<T> {
  const turns = TURNS.get(target) ?? takeTurns(target)
  const done = turns.last.then(async () => work(await turns.session))
  turns.last = done.catch(() => {})
  return done
}

function takeTurns(target: HttpTarget): Turns {
  const session = openSession(resolveTarget(target))
  // Whoever has a turn is told. A server that is not up yet may be so at the next one.
  session.catch(() => TURNS.delete(target))
  const turns = { session, last: Promise.resolve() }
  TURNS.set(target, turns)
  return turns
}

async function judge(check: HttpCheck, session: TrialOptions): Promise<HttpConformanceResult> {
  const { id, tier, title, source, expected } = check
  let trial: Trial | undefined
  const result = (status: HttpConformanceResult['status'], seen: string): HttpConformanceResult => ({
    id,
    tier,
    title,
    source,
    status,
    expected,
    seen,
    effects: trial?.lastEffects() ?? null,
  })
  try {
    trial = await beginTrial(session)
    return result('passed', await check.run(trial))
  } catch (error) {
    if (error instanceof NotJudged) return result('skipped', error.message)
    if (error instanceof Breach || error instanceof NoAnswerError) return result('failed', error.message)
    throw error
  }
}

/** Finds out how the server wants its keys, and how its effects can be seen. */
async function openSession(target: ResolvedTarget): Promise<TrialOptions> {
  let numbers = 0
  const nextNumber = (): number => (numbers += 1)
  const shared = { target, nextNumber }
  const named = namedWitness(target)
  try {
    if (named?.count !== undefined) await named.count()
    const quoted = await tryOut(shared, 'quoted')
    // What an operation is answered with is looked at by checks of their own. Here it only has to work at all.
    const bare = isSuccess(quoted) ? undefined : await tryOut(shared, 'bare')
    const keyStyle: KeyStyle = bare === undefined ? 'quoted' : 'bare'
    const first = bare ?? quoted
    if (!isSuccess(first))
      throw new TargetUnfitError(
        `${target.main.method} ${target.main.url} was answered with ${shown(quoted)}; give it what it needs to succeed`,
      )
    const witness = named ?? foundWitness(first, await tryOut(shared, keyStyle))
    return { ...shared, keyStyle, witness }
  } catch (error) {
    if (error instanceof NoAnswerError)
      throw new TargetUnfitError(`${target.main.url} gives no answer: ${error.message}`, { cause: error })
    throw error
  }
}

const UNSEEN: EffectsWitness = {
  evidence: 'not seen',
  source: 'nothing',
  count: undefined,
  nameIn: () => undefined,
}

async function tryOut(
  shared: Pick<TrialOptions, 'target' | 'nextNumber'>,
  keyStyle: KeyStyle,
): Promise<HttpAnswer> {
  const trial = await beginTrial({ ...shared, keyStyle, witness: UNSEEN })
  return trial.begin().send()
}
