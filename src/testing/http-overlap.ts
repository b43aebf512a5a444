import type { HttpAnswer } from './http-exchange.js'
import { cannotJudge, isSuccess, type Trial, type Variation } from './http-trial.js'

/** What two requests under one key, at the same time, were answered with. */
export interface Overlap {
  /** Of the one that was carried out. */
  readonly first: HttpAnswer
  /** Of the one that met the first running. A success where the server did not refuse it. */
  readonly refusal: HttpAnswer
}

const TRIES = 3

/**
 * Lets a request meet the first one while that runs: by means of the operation `slow`, and else in a race, where that may
 * not come about. On a busy machine the first may have ended when the second arrives, so a success is not believed at once.
 */
export async function meetRunning(
  trial: Trial,
  variationOf?: (body: () => Buffer) => Variation,
): Promise<Overlap> {
  const { operations, duplicates } = trial.target
  if (duplicates === 'held' && variationOf === undefined)
    cannotJudge('the target says that duplicates wait for the answer of the first')
  if (operations.slow === undefined) return meetInRace(trial, variationOf)
  for (let tries = 1; ; tries += 1) {
    await trial.recount()
    const operation = trial.begin({ name: 'slow' })
    const variation = variationOf?.(operation.otherBody) ?? {}
    const started = operation.start()
    await started.sent
    const second = await operation.send(variation)
    const overlap = inOrder(await started.answer, second)
    if (!isSuccess(overlap.refusal) || tries === TRIES) return overlap
  }
}

async function meetInRace(trial: Trial, variationOf?: (body: () => Buffer) => Variation): Promise<Overlap> {
  const why = 'no request met the first one running: name an operation "slow" that takes a second'
  if (variationOf !== undefined) cannotJudge(why)
  const operation = trial.begin()
  const answers = await Promise.all(Array.from({ length: trial.target.parallel }, () => operation.send()))
  const refusal = answers.find(({ status }) => status === 409)
  return {
    first: answers.find(isSuccess) ?? (await operation.settled()),
    refusal: refusal ?? cannotJudge(why),
  }
}

/** Two requests may arrive in either order, and then the one that was sent first is refused. */
function inOrder(one: HttpAnswer, other: HttpAnswer): Overlap {
  return isSuccess(one) || !isSuccess(other) ? { first: one, refusal: other } : { first: other, refusal: one }
}
