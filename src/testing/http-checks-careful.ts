import { draft, type HttpCheck } from './http-check.js'
import { jsonOf } from './http-effects.js'
import type { HttpAnswer } from './http-exchange.js'
import { meetRunning } from './http-overlap.js'
import {
  cannotJudge,
  demand,
  demandRefusal,
  demandSame,
  demandSuccess,
  isSuccess,
  POLL_MS,
  shown,
  type TestedOperation,
  type Trial,
} from './http-trial.js'

/** What careful servers do about callers, races, mistakes, and clients that leave; and how they refuse. */
export const CAREFUL_CHECKS: readonly HttpCheck[] = [
  {
    id: 'caller-isolation',
    tier: 'careful',
    title: 'keeps the keys of two callers apart',
    source: draft('5, "a unique composite key"'),
    expected: 'for one key of two callers two effects, and each retry its own answer',
    cost: { requests: 4, effects: 2 },
    async run(trial) {
      if (trial.target.callers === undefined)
        cannotJudge('the target names no "callers" (--caller-header, twice)')
      trial.needsEvidence()
      const ours = trial.begin({ caller: 0 })
      const theirs = trial.begin({ caller: 1, key: ours.key, body: ours.body })
      const ourAnswer = await ours.send()
      const theirAnswer = await theirs.send()
      demandSuccess(ourAnswer, 'the first caller')
      demandSuccess(theirAnswer, 'the second caller, with the same key,')
      await trial.demandEffects(2)
      demandSame(ourAnswer, await ours.send(), "the first caller's retry")
      demandSame(theirAnswer, await theirs.send(), "the second caller's retry")
      await trial.demandEffects(2)
      return `${shown(ourAnswer)}, and for the second caller ${shown(theirAnswer)}`
    },
  },
  {
    id: 'race',
    tier: 'careful',
    title: 'lets one of many parallel duplicates have the effect',
    source: draft('2.6, concurrent request'),
    expected: 'each gets the one answer or 409, a later retry gets it too, and there is one effect',
    cost: { requests: 2, effects: 1, race: true },
    async run(trial) {
      trial.needsEvidence()
      const { parallel, operations } = trial.target
      const operation = trial.begin(operations.slow === undefined ? {} : { name: 'slow' })
      const answers = await Promise.all(Array.from({ length: parallel }, () => operation.send()))
      const settled = await operation.settled()
      demandSuccess(settled, 'the retry after the race')
      for (const answer of answers) {
        if (answer.status !== 409) demandSame(settled, answer, 'a duplicate')
      }
      await trial.demandEffects(1)
      const refused = answers.filter(({ status }) => status === 409).length
      return `${parallel - refused} of ${parallel} got the answer, ${refused} got 409`
    },
  },
  {
    id: 'concurrent-other-payload',
    tier: 'careful',
    title: 'refuses another payload under the key of a running request',
    source: draft('2.7; 2.2'),
    expected: '422 or 409, and one effect',
    cost: { requests: 2, effects: 1 },
    async run(trial) {
      const { refusal } = await meetRunning(trial, (otherBody) => ({ body: otherBody() }))
      demandRefusal(refusal, [422, 409], 'another payload under the key of a running request')
      await trial.demandEffects(1)
      return shown(refusal)
    },
  },
  {
    id: 'concurrent-retry-after',
    tier: 'careful',
    title: 'tells a duplicate of a running request when to come again',
    source: 'RFC 9110, section 10.2.3',
    expected: '409 with Retry-After: seconds or a date',
    cost: { requests: 2, effects: 1, race: true },
    async run(trial) {
      const { refusal } = await meetRunning(trial)
      if (isSuccess(refusal))
        cannotJudge('a duplicate of a running request was not refused: see "concurrent"')
      const retryAfter = refusal.headers['retry-after']?.[0]
      const isTime =
        retryAfter !== undefined && (/^\d+$/.test(retryAfter) || !Number.isNaN(Date.parse(retryAfter)))
      demand(isTime, `${shown(refusal)}, Retry-After: ${retryAfter ?? 'not there'}`)
      return `Retry-After: ${retryAfter}`
    },
  },
  {
    id: 'reuse-leaves-first',
    tier: 'careful',
    title: 'still answers the first request after its key was tried for another',
    source: draft('2.6, duplicate request, retry'),
    expected: 'the status and the bytes of the first answer, and one effect',
    cost: { requests: 3, effects: 1 },
    async run(trial) {
      const operation = trial.begin()
      const body = operation.otherBody()
      const first = await operation.send()
      demandSuccess(first)
      if (isSuccess(await operation.send({ body })))
        cannotJudge('another payload under the key was not refused: see "reuse"')
      demandSame(first, await operation.send())
      await trial.demandEffects(1)
      return `again ${shown(first)}`
    },
  },
  {
    id: 'invalid-not-kept',
    tier: 'careful',
    title: 'lets a request that was refused before it began be corrected under its key',
    source: draft('2.7, "clients MUST correct the requests"'),
    expected: 'a success for the corrected request, and one effect',
    cost: { requests: 2, effects: 1 },
    async run(trial) {
      const mistaken = trial.begin({ name: 'invalid' })
      const refusal = await mistaken.send()
      if (refusal.status < 400 || refusal.status > 499)
        cannotJudge(`the operation "invalid" was answered with ${shown(refusal)}`)
      const corrected = await trial.begin({ key: mistaken.key }).send()
      demandSuccess(corrected, 'the corrected request')
      await trial.demandEffects(1)
      return `${shown(refusal)}, then ${shown(corrected)}`
    },
  },
  {
    id: 'cut',
    tier: 'careful',
    title: 'finishes an operation whose client has left, and keeps its answer',
    source: draft('1, "the client is left uncertain"'),
    expected: 'the retry gets the answer, and there is one effect',
    cost: { requests: 4, effects: 1 },
    async run(trial) {
      const operation = trial.begin({ name: 'slow' })
      trial.needsCount()
      const left = operation.start()
      await left.sent
      // The first is running once a duplicate is refused. Where duplicates wait, they would wait for it to end.
      const held = trial.target.duplicates === 'held'
      const duplicate = held ? await effectsBegin(trial) : await operation.send()
      left.cut()
      const answer = await operation.settled()
      demandSuccess(answer, 'the retry after the connection was cut')
      demandSame(answer, await operation.settled(), 'the second retry')
      await trial.demandEffects(1)
      if (duplicate?.status === answer.status)
        cannotJudge('the operation "slow" had ended before its client left')
      return shown(answer)
    },
  },
  {
    id: 'problem-json',
    tier: 'careful',
    title: 'refuses with problems that programs can read',
    source: 'RFC 9457, sections 3 and 3.1',
    expected: 'application/problem+json with type, title, detail, and a status that is that of the answer',
    cost: { requests: 6, effects: 2 },
    async run(trial) {
      const refusals = await someRefusals(trial)
      for (const { what, answer } of refusals) {
        const type = answer.headers['content-type']?.[0] ?? 'no Content-Type'
        demand(/^application\/problem\+json\b/i.test(type), `${what}: ${answer.status}, ${type}`)
        const problem = jsonOf(answer) as Record<string, unknown> | null | undefined
        for (const name of ['type', 'title', 'detail'])
          demand(typeof problem?.[name] === 'string', `${what}: ${shown(answer)}, without "${name}"`)
        demand(problem?.status === answer.status, `${what}: ${shown(answer)}, without its status`)
      }
      return listed(refusals)
    },
  },
  {
    id: 'problem-no-store',
    tier: 'careful',
    title: 'keeps caches from storing its refusals',
    source: 'RFC 9111, section 5.2.2.5',
    expected: 'Cache-Control: no-store',
    cost: { requests: 6, effects: 2 },
    async run(trial) {
      const refusals = await someRefusals(trial)
      for (const { what, answer } of refusals) {
        const cacheControl = answer.headers['cache-control']?.join(', ') ?? 'not there'
        demand(
          /\bno-store\b/i.test(cacheControl),
          `${what}: ${answer.status}, Cache-Control: ${cacheControl}`,
        )
      }
      return listed(refusals)
    },
  },
  {
    id: 'problem-discreet',
    tier: 'careful',
    title: 'says nothing of the first request when its key is tried for another',
    source: draft('5, data leaks'),
    expected: 'no text of the first request or its answer in the refusal',
    cost: { requests: 2, effects: 1 },
    async run(trial) {
      const operation = trial.begin()
      const body = operation.otherBody()
      const first = await operation.send()
      const answer = await operation.send({ body })
      if (isSuccess(answer)) cannotJudge('another payload under the key was not refused: see "reuse"')
      const secrets = [...textsIn(operation.body), ...textsIn(first.body)].filter(
        (text) => !body.includes(text),
      )
      if (secrets.length === 0)
        cannotJudge('the first request and its answer have no text of their own to look for: use {{uuid}}')
      const everything = `${JSON.stringify(answer.headers)} ${answer.body.toString()}`
      const told = secrets.find((text) => everything.includes(text))
      demand(told === undefined, `${shown(answer)} tells "${told}"`)
      return `${secrets.length} texts of the first request are not in it`
    },
  },
]

interface Refusal {
  readonly what: string
  readonly answer: HttpAnswer
}

/** Whatever refusals this server can be brought to: a check about them looks at all of them. */
async function someRefusals(trial: Trial): Promise<readonly Refusal[]> {
  const { required, duplicates, operations } = trial.target
  const found = [
    { what: 'a malformed key', answer: await trial.begin().send({ keyLines: ['two words'] }) },
    ...(required === true
      ? [{ what: 'a missing key', answer: await trial.begin().send({ keyLines: [] }) }]
      : []),
    ...(await refusalOfReuse(trial.begin())),
    ...(operations.slow !== undefined && duplicates === 'refused'
      ? [{ what: 'a running request', answer: (await meetRunning(trial)).refusal }]
      : []),
  ].filter(({ answer }) => answer.status >= 400)
  return found.length > 0 ? found : cannotJudge('nothing was refused')
}

async function refusalOfReuse(operation: TestedOperation): Promise<readonly Refusal[]> {
  let body: Buffer
  try {
    body = operation.otherBody()
  } catch {
    // A target with one body only cannot show this refusal. The check "reuse" says so.
    return []
  }
  await operation.send()
  return [{ what: 'a reused key', answer: await operation.send({ body }) }]
}

function listed(refusals: readonly Refusal[]): string {
  return refusals.map(({ what, answer }) => `${answer.status} for ${what}`).join(', ')
}

async function effectsBegin(trial: Trial): Promise<undefined> {
  const givesUpAt = Date.now() + trial.target.timeoutMs
  while ((await trial.effects()) === 0 && Date.now() < givesUpAt)
    await new Promise((resolve) => setTimeout(resolve, POLL_MS))
}

/** The texts in a JSON body that are long enough to be looked for. */
function textsIn(body: Buffer): readonly string[] {
  const text = body.toString()
  return [...text.matchAll(/:\s*"([^"\\]{6,})"/g)].map((match) => match[1] ?? '')
}
