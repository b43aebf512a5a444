import type { ClaimRequest, ClaimResult, Outcome, StoredRecord } from '../../src/contract/store.js'
import { type LifeOfAKey, lifeOfAKey } from './life-of-a-key.js'

/** What a client was answered: by a handler, at once or again, or with a refusal. */
export type Reply =
  | { readonly kind: 'answer'; readonly text: string }
  | { readonly kind: 'refusal'; readonly code: string }

/** Who sends a request with the key. */
export interface Asker {
  readonly name: string
  readonly process: string
  readonly fingerprint: string
}

/** How a handler ended. */
export interface HandlerEnd {
  /** What its client gets. */
  readonly text: string
  /** A part of it that is in no other answer. */
  readonly mark: string
  /** It said that nothing happened. */
  readonly didNothing: boolean
}

/** A claim that was granted, and what became of it. */
export interface GrantedRun {
  readonly process: string
  readonly token: string
  readonly fence: number
  readonly fingerprint: string
  /** Until when its process knows that the lease holds, if it is never renewed. */
  readonly holdsUntilMs: number
  /** Whose request it answers, and its signal, once its handler has started. */
  asker: Asker | undefined
  signal: AbortSignal | undefined
  effects: number
  end: HandlerEnd | undefined
  isReleased: boolean
  /** What its process was told: that it holds the key, that it ended, that it lost the key, and must tell its handler. */
  readonly told: { granted: boolean; over: boolean; lost: boolean; abort: boolean }
  /** Which of its steps were lost on their way, or took longer than its process waits. */
  readonly failed: Set<string>
}

/** What the application allows. */
export interface Allowed {
  /** That what is unknown runs again. */
  readonly rerun: boolean
  /** Whether the effect is a part of the commit that keeps the outcome. */
  readonly atomic: boolean
  /** The answer with which it settles what is unknown, where it can. */
  readonly settledText?: string | undefined
}

/** What a request must be met with. */
export type Expected = 'run' | 'replay' | 'in-progress' | 'unknown' | 'mismatch'

/** The book of one key: what really happened, beside what anybody believes, and every promise that was broken. */
export interface KeyLedger {
  readonly breaches: readonly string[]
  readonly life: LifeOfAKey
  readonly effects: number
  readonly runs: readonly GrantedRun[]
  /** The name of the record, once somebody has claimed it. */
  readonly id: string | undefined

  // What happens at the store.
  claimed(process: string, request: ClaimRequest, answer: ClaimResult, askedAtMs: number): void
  completed(token: string, outcome: Outcome, held: boolean): void
  released(token: string, held: boolean): void
  settled(outcome: Outcome, done: boolean): void
  watched(process: string): void

  // What a process asks, and is told.
  asked(process: string, step: string, nowMs: number): void
  told(process: string, step: string, token: string | undefined, answer: unknown): void
  failed(process: string, step: string, token: string | undefined): void
  hasFailed(process: string): boolean
  reportedLoss(process: string, fence: number): void

  // What handlers do, and what clients get.
  started(asker: Asker, fence: number, signal: AbortSignal): GrantedRun
  paid(run: GrantedRun): void
  ended(run: GrantedRun, end: HandlerEnd): void
  replied(asker: Asker, reply: Reply): void

  /** Checks what must hold in every state. */
  look(): void
  /** Checks that somebody who waits while nothing happens could not have been woken. */
  waits(asker: Asker): void
  /** Checks how everything ended. */
  reckon(given: { readonly hasCrashed: boolean }): void
  /** What a request with this fingerprint must be met with now. */
  expectedFor(fingerprint: string): Expected
  breach(what: string): void
}

/** The steps that end a claim when they are answered with `true`. */
const ENDS = new Set(['complete', 'release', 'commit'])

/** Opens the book of a key. */
export function keyLedger(allowed: Allowed): KeyLedger {
  const breaches: string[] = []
  const breach = (what: string): void => {
    breaches.push(what)
  }
  const life = lifeOfAKey(breach)
  const runs: GrantedRun[] = []
  const claimsUnderway = new Map<string, number>()
  const faults = new Map<string, number>()
  /** How each process found the record when it last looked. */
  const lastSeen = new Map<string, string>()
  const watchedAt = new Map<string, number>()
  let keptText: string | undefined
  let keptRun: GrantedRun | undefined
  let id: string | undefined
  let moment = 0
  let changedAt = 0

  const runOf = (token: string | undefined): GrantedRun | undefined => runs.find((run) => run.token === token)
  const effects = (): number => runs.reduce((sum, run) => sum + run.effects, 0)

  function count(counts: Map<string, number>, name: string, by: 1 | -1): void {
    counts.set(name, (counts.get(name) ?? 0) + by)
  }

  function changed(): void {
    moment += 1
    changedAt = moment
  }

  function checkOwnAnswer(run: GrantedRun, end: HandlerEnd): void {
    if (run === keptRun || (run.failed.has('complete') && !allowed.atomic)) return
    if (end.didNothing && (run.isReleased || run.failed.has('release') || run.told.lost)) return
    breach(`${nameOf(run)} was answered before its outcome was kept, or known to be unkeepable`)
  }

  function checkAnswer(asker: Asker, text: string): void {
    const own = runs.find((run) => run.asker === asker)
    // What is kept never changes, so all who are answered with it, or with what became it, are answered alike.
    if (own?.end?.text === text) checkOwnAnswer(own, own.end)
    else if (keptText !== text) breach(`${asker.name} got an answer that nobody kept: ${text}`)
    else if (life.fingerprint !== asker.fingerprint)
      breach(`${asker.name} got the answer to another request: ${text}`)
  }

  function checkRefusal(asker: Asker, code: string): void {
    const own = runs.find((run) => run.asker === asker)
    const others = runs.filter((run) => run !== own)
    const isSame = (run: GrantedRun): boolean => run.fingerprint === asker.fingerprint
    const seen = lastSeen.get(asker.process)
    // A run that was overtaken is told to ask again where a retry runs what is unknown.
    const asksAgain = allowed.rerun && own?.told.lost === true && seen === 'unknown'
    const mayBe: Readonly<Record<string, boolean>> = {
      IDEMPOTENCY_KEY_REUSED: !runs.every(isSame),
      IDEMPOTENCY_KEY_IN_PROGRESS:
        others.some(isSame) && (seen === 'running' || seen === 'acquired' || asksAgain),
      IDEMPOTENCY_OUTCOME_UNKNOWN: runs.some(isSame) && seen === 'unknown' && !asksAgain,
      IDEMPOTENCY_STORE_UNAVAILABLE: faults.has(asker.process),
      IDEMPOTENCY_COMMIT_UNDECIDED: own?.failed.has('commit') === true,
    }
    if (mayBe[code] !== true) breach(`${asker.name} was refused with ${code} for no reason`)
    if (own === undefined || own.told.lost || code === 'IDEMPOTENCY_COMMIT_UNDECIDED') return
    const hasRolledBack = allowed.atomic && own.effects === 0
    if (!hasRolledBack)
      breach(`${asker.name} was refused with ${code}, although its handler ran and its claim was not lost`)
  }

  return {
    breaches,
    life,
    runs,
    get effects() {
      return effects()
    },
    get id() {
      return id
    },

    claimed(process, request, answer, askedAtMs) {
      id = request.id
      life.claimed(request, answer)
      if (request.takeOver && !allowed.rerun) breach(`${process} asked for a take-over that nobody allowed`)
      if (answer.status !== 'acquired' || runOf(request.token) !== undefined) return
      const { token, fingerprint, leaseMs } = request
      runs.push(grantedRun({ process, token, fence: answer.fence, fingerprint }, askedAtMs + leaseMs))
    },

    completed(token, outcome, held) {
      const wasKept = life.kept !== undefined
      life.completed(token, outcome, held)
      const run = runOf(token)
      if (run?.end === undefined) breach('an outcome was to be kept before its handler had ended')
      else if (run.end.didNothing) breach(`the outcome of ${nameOf(run)} was to be kept, which did nothing`)
      else if (!`${outcome.head}${Buffer.from(outcome.body ?? [])}`.includes(run.end.mark))
        breach(`what was to be kept of ${nameOf(run)} is not its answer`)
      if (wasKept || life.kept === undefined) return
      changed()
      keptRun = run
      keptText = run?.end?.text
    },

    released(token, held) {
      life.released(token, held)
      if (!held) return
      changed()
      const run = runOf(token)
      if (run === undefined) return
      run.isReleased = true
      if (run.effects > 0) breach(`the claim of ${nameOf(run)} was given back, although it had its effect`)
    },

    settled(outcome, done) {
      life.settled(outcome, done)
      if (!done) return
      changed()
      keptText = allowed.settledText
    },

    watched(process) {
      moment += 1
      watchedAt.set(process, moment)
    },

    asked(process, step, nowMs) {
      if (step !== 'claim') return
      if ((claimsUnderway.get(process) ?? 0) > 0)
        breach(`${process} asked the store for a second claim while it had no answer to the first`)
      count(claimsUnderway, process, 1)
      const holds = (run: GrantedRun): boolean => {
        const { granted, over, lost } = run.told
        return run.process === process && granted && !over && !lost && nowMs < run.holdsUntilMs
      }
      if (runs.some(holds)) breach(`${process} asked the store for a claim that it holds itself`)
    },

    told(process, step, token, answer) {
      if (step === 'claim') count(claimsUnderway, process, -1)
      if (step === 'claim' || step === 'find') lastSeen.set(process, statusOf(answer))
      // A process that looks for the end of its own run finds it.
      if (step === 'find' && life.kept !== undefined)
        for (const run of runs) run.told.over ||= run.process === process
      const run = runOf(token)
      if (run === undefined) return
      if (step === 'claim') run.told.granted = true
      else if (answer === true) run.told.over ||= ENDS.has(step)
      // After its handler has ended, only the answer to its last step says so.
      else if (step !== 'renew' || run.end === undefined) {
        run.told.lost = true
        // Where a release is refused, the outcome may have been kept before it: that is looked up first.
        run.told.abort ||= step !== 'release'
      }
    },

    failed(process, step, token) {
      if (step === 'claim') count(claimsUnderway, process, -1)
      count(faults, process, 1)
      runOf(token)?.failed.add(step)
    },

    hasFailed: (process) => faults.has(process),

    reportedLoss(process, fence) {
      const isLost = (run: GrantedRun): boolean =>
        (run !== keptRun && (life.fence > fence || life.kept !== undefined)) ||
        // It may be lost for all that its process knows.
        run.failed.has('renew')
      if (!runs.some((run) => run.process === process && run.fence === fence && isLost(run)))
        breach(`${process} reported that it lost the claim with fence ${fence}, which it did not lose`)
    },

    started(asker, fence, signal) {
      const isMine = (run: GrantedRun): boolean =>
        run.process === asker.process && run.fence === fence && run.told.granted && run.asker === undefined
      let run = runs.find(isMine)
      if (run === undefined) {
        breach(`the handler of ${asker.name} started without a claim`)
        run = grantedRun({ process: asker.process, token: '', fence, fingerprint: asker.fingerprint }, 0)
      }
      if (run.fingerprint !== asker.fingerprint)
        breach(`the handler of ${asker.name} started under a claim for another request`)
      for (const other of runs) {
        if (other.asker === undefined || (other.effects === 0 && other.isReleased)) continue
        if (!allowed.rerun || other.fence === fence)
          breach(`the handler of ${asker.name} started, although that of ${nameOf(other)} had`)
      }
      run.asker = asker
      run.signal = signal
      return run
    },

    paid(run) {
      run.effects += 1
      if (run.effects > 1) breach(`${nameOf(run)} had its effect twice`)
      if (run.isReleased) breach(`${nameOf(run)} had its effect after its claim was given back`)
      if ((!allowed.rerun || allowed.atomic) && effects() > 1) breach('the effect happened twice')
    },

    ended(run, end) {
      run.end = end
    },

    replied(asker, reply) {
      if (reply.kind === 'answer') checkAnswer(asker, reply.text)
      else checkRefusal(asker, reply.code)
    },

    look() {
      for (const run of runs) {
        if (!run.told.abort || run.signal === undefined || run.signal.aborted) continue
        breach(`${nameOf(run)} was told that its claim is lost, and its signal has not aborted`)
      }
    },

    waits(asker) {
      // A process whose call failed does not know yet what has changed.
      if (faults.has(asker.process)) return
      if (life.state !== 'absent' && life.state !== 'completed') return
      if ((watchedAt.get(asker.process) ?? 0) > changedAt) return
      breach(`${asker.name} waits, and nobody has woken it`)
    },

    reckon({ hasCrashed }) {
      if (life.state === 'absent' && effects() > 0) breach('an effect happened, and its key is free')
      if (hasCrashed) return
      const isFree = life.state === 'absent' && (faults.size > 0 || runs.every(({ end }) => end?.didNothing))
      // A take-over that is given back leaves the operation as unknown as it was.
      const isOpen = life.state === 'unknown' && runs.some(({ fence, isReleased }) => fence > 1 && isReleased)
      if (life.state !== 'completed' && !isFree && !isOpen)
        breach(`everybody has come to an end, and the key is ${life.state}`)
    },

    expectedFor(fingerprint) {
      const { state } = life
      if (state === 'absent') return 'run'
      if (fingerprint !== life.fingerprint) return 'mismatch'
      if (state === 'completed') return 'replay'
      if (state === 'running') return 'in-progress'
      if (allowed.rerun) return 'run'
      return allowed.settledText === undefined ? 'unknown' : 'replay'
    },

    breach,
  }
}

function grantedRun(
  granted: Pick<GrantedRun, 'process' | 'token' | 'fence' | 'fingerprint'>,
  holdsUntilMs: number,
): GrantedRun {
  return {
    ...granted,
    holdsUntilMs,
    asker: undefined,
    signal: undefined,
    effects: 0,
    end: undefined,
    isReleased: false,
    told: { granted: false, over: false, lost: false, abort: false },
    failed: new Set(),
  }
}

function statusOf(answer: unknown): string {
  return (answer as ClaimResult | StoredRecord | undefined)?.status ?? 'absent'
}

function nameOf({ asker, process, fence }: GrantedRun): string {
  return `the run of ${asker?.name ?? process} with fence ${fence}`
}
