import { draft, type HttpCheck } from './http-check.js'
import type { HttpAnswer } from './http-exchange.js'
import { meetRunning } from './http-overlap.js'
import {
  cannotJudge,
  demand,
  demandRefusal,
  demandSame,
  demandSuccess,
  isSuccess,
  shown,
  type Trial,
} from './http-trial.js'

/** What the IETF draft says of servers. */
export const DRAFT_CHECKS: readonly HttpCheck[] = [
  {
    id: 'first-request',
    tier: 'draft',
    title: 'carries out a request with a new key',
    source: draft('2.6, first time request'),
    expected: 'an answer of success, and one effect',
    cost: { requests: 1, effects: 1 },
    async run(trial) {
      const first = await trial.begin().send()
      demandSuccess(first)
      await trial.demandEffects(1)
      return shown(first)
    },
  },
  {
    id: 'retry',
    tier: 'draft',
    title: 'answers a retry with the result of the first request',
    source: draft('2.6, duplicate request, retry'),
    expected: 'the status and the bytes of the first answer, and one effect',
    cost: { requests: 3, effects: 1 },
    async run(trial) {
      trial.needsEvidence()
      const operation = trial.begin()
      const first = await operation.send()
      demandSuccess(first)
      demandSame(first, await operation.send())
      demandSame(first, await operation.send(), 'the second retry')
      await trial.demandEffects(1)
      return `the same answer three times: ${shown(first)}`
    },
  },
  {
    id: 'new-key',
    tier: 'draft',
    title: 'takes the same request under another key for another operation',
    source: draft('2.2'),
    expected: 'two answers of success, and two effects',
    cost: { requests: 2, effects: 2 },
    async run(trial) {
      trial.needsEvidence()
      const one = trial.begin()
      demandSuccess(await one.send())
      const other = await trial.begin({ body: one.body }).send()
      demandSuccess(other, 'the same request under another key')
      await trial.demandEffects(2)
      return `two keys, and then ${shown(other)}`
    },
  },
  {
    id: 'key-string',
    tier: 'draft',
    title: 'takes every string of RFC 9651 for a key, quoted',
    source: `${draft('2.1')}; RFC 9651, sections 3.3.3 and 3.1.2`,
    expected: 'keys with spaces, escapes and parameters are keys: a success, its retry, one effect each',
    cost: { requests: 6, effects: 3 },
    async run(trial) {
      trial.needsEvidence()
      const unique = crypto.randomUUID()
      const lines = [
        `"${unique}"`,
        `"order ${unique}, \\"first\\" \\\\ {}"`,
        `"parameter-${unique}";v=1;test`,
      ]
      for (const line of lines) {
        const operation = trial.begin()
        const first = await operation.send({ keyLines: [line] })
        demandSuccess(first, `the key ${line}`)
        demandSame(first, await operation.send({ keyLines: [line] }), `the retry with the key ${line}`)
      }
      await trial.demandEffects(lines.length)
      return `${lines.length} kinds of keys were taken`
    },
  },
  {
    id: 'missing-key',
    tier: 'draft',
    title: 'refuses a request without a key where one is required',
    source: draft('2.7'),
    expected: '400, and no effect',
    cost: { requests: 1, effects: 0 },
    async run(trial) {
      const answer = await withoutKey(trial)
      demandRefusal(answer, [400], 'a request without a key')
      await trial.demandEffects(0)
      return shown(answer)
    },
  },
  {
    id: 'missing-key-link',
    tier: 'draft',
    title: 'says where the documentation is when a key is missing',
    source: draft('2.7'),
    expected: 'a link in the body, or a header Link with rel="describedby"',
    cost: { requests: 1, effects: 0 },
    async run(trial) {
      return demandLink(await withoutKey(trial))
    },
  },
  {
    id: 'reuse',
    tier: 'draft',
    title: 'refuses a key that was used for another payload',
    source: draft('2.7; 2.2 and 2.4'),
    expected: '422, and no effect but the first',
    cost: { requests: 2, effects: 1 },
    async run(trial) {
      const operation = trial.begin()
      const body = operation.otherBody()
      demandSuccess(await operation.send())
      const answer = await operation.send({ body })
      demandRefusal(answer, [422], 'another payload under the key')
      await trial.demandEffects(1)
      return shown(answer)
    },
  },
  {
    id: 'reuse-link',
    tier: 'draft',
    title: 'says where the documentation is when a key is reused',
    source: draft('2.7'),
    expected: 'a link in the body, or a header Link with rel="describedby"',
    cost: { requests: 2, effects: 1 },
    async run(trial) {
      const operation = trial.begin()
      const body = operation.otherBody()
      demandSuccess(await operation.send())
      const answer = await operation.send({ body })
      if (isSuccess(answer)) cannotJudge('another payload under the key was not refused: see "reuse"')
      return demandLink(answer)
    },
  },
  {
    id: 'concurrent',
    tier: 'draft',
    title: 'refuses a duplicate while the first request is running',
    source: draft('2.6, concurrent request; 2.7'),
    expected: '409 for the duplicate, a success for the first, and one effect',
    cost: { requests: 2, effects: 1, race: true },
    async run(trial) {
      const { first, refusal } = await meetRunning(trial)
      demandSuccess(first)
      demandRefusal(refusal, [409], 'a duplicate while the first was running')
      await trial.demandEffects(1)
      return shown(refusal)
    },
  },
  {
    id: 'concurrent-described',
    tier: 'draft',
    title: 'says what is wrong when it refuses a duplicate of a running request',
    source: draft('2.7'),
    expected: '409 with a description in its body, or with a header Link with rel="describedby"',
    cost: { requests: 2, effects: 1, race: true },
    async run(trial) {
      const { refusal } = await meetRunning(trial)
      if (isSuccess(refusal))
        cannotJudge('a duplicate of a running request was not refused: see "concurrent"')
      demand(refusal.body.length > 0 || hasLinkHeader(refusal), `${shown(refusal)} and no such link`)
      return shown(refusal)
    },
  },
  failureIsKept('clientError', 'error-client', [400, 499], 'a final failure of the client'),
  failureIsKept('serverError', 'error-server', [500, 599], 'a failure of the server'),
  {
    id: 'patch',
    tier: 'draft',
    title: 'does the same for PATCH',
    source: draft('1'),
    expected: 'the status and the bytes of the first answer, and one effect',
    cost: { requests: 2, effects: 1 },
    async run(trial) {
      const operation = trial.begin({ name: 'patch' })
      trial.needsEvidence()
      const first = await operation.send()
      demandSuccess(first)
      demandSame(first, await operation.send())
      await trial.demandEffects(1)
      return `the same answer twice: ${shown(first)}`
    },
  },
]

function failureIsKept(
  name: 'clientError' | 'serverError',
  id: string,
  [from, to]: readonly [number, number],
  what: string,
): HttpCheck {
  return {
    id,
    tier: 'draft',
    title: `answers a retry of ${what} with that failure`,
    source: draft('2.6, duplicate request, retry'),
    expected: 'the status and the bytes of the first answer, and no further effect',
    cost: { requests: 2, effects: 1 },
    async run(trial) {
      const operation = trial.begin({ name })
      const first = await operation.send()
      if (first.status < from || first.status > to)
        cannotJudge(`the operation "${name}" was answered with ${shown(first)}`)
      // Whether a failure counts as an effect is the server's to say. What its retry adds is ours.
      await trial.recount()
      demandSame(first, await operation.send())
      await trial.demandEffects(0)
      return `the same answer twice: ${shown(first)}`
    },
  }
}

async function withoutKey(trial: Trial): Promise<HttpAnswer> {
  const { required } = trial.target
  if (required === false) cannotJudge('the target says that a key is not required')
  const answer = await trial.begin().send({ keyLines: [] })
  if (required === undefined && isSuccess(answer))
    cannotJudge('a request without a key was carried out; name "required" (--required) where that is wrong')
  return answer
}

function demandLink(answer: HttpAnswer): string {
  demand(/https?:\/\//.test(answer.body.toString()) || hasLinkHeader(answer), `${shown(answer)} and no link`)
  return hasLinkHeader(answer) ? `Link: ${answer.headers.link}` : shown(answer)
}

function hasLinkHeader({ headers }: HttpAnswer): boolean {
  return headers.link?.some((link) => /;\s*rel="?[^";]*\bdescribedby\b/.test(link)) ?? false
}
