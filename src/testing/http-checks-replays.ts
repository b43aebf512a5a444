import { draft, type HttpCheck } from './http-check.js'
import type { HttpAnswer } from './http-exchange.js'
import type { HttpTargetOperationName } from './http-target.js'
import { cannotJudge, demand, demandSame, demandSuccess, shown, type Trial } from './http-trial.js'

/** Fields that say something of the answer, and not of the exchange in which it came. */
const KEPT_HEADERS = [
  'content-type',
  'content-language',
  'content-disposition',
  'content-location',
  'location',
  'etag',
  'last-modified',
  'cache-control',
  'link',
]

/** Fields that belong to one connection (RFC 9110, section 7.6.1). */
const CONNECTION_HEADERS = ['connection', 'keep-alive', 'proxy-connection', 'te', 'trailer', 'upgrade']

/** After so long, two answers cannot bear the same second, although a server may remember its date for one. */
const ANOTHER_SECOND_MS = 2100

/** What careful servers keep of an answer, and what not. */
export const REPLAY_CHECKS: readonly HttpCheck[] = [
  {
    id: 'replay-headers',
    tier: 'careful',
    title: 'replays the headers that belong to the answer',
    source: draft('2.6, "the result of the previously completed operation"'),
    expected: `the same values of ${KEPT_HEADERS.join(', ')}, where the first answer has them`,
    cost: { requests: 2, effects: 1 },
    async run(trial) {
      const { first, retry } = await twice(trial)
      const names = KEPT_HEADERS.filter((name) => first.headers[name] !== undefined)
      if (names.length === 0) cannotJudge('the first answer has no such header')
      for (const name of names)
        demand(
          fieldOf(retry, name) === fieldOf(first, name),
          `${name}: ${fieldOf(retry, name) ?? 'not there'}, at first ${fieldOf(first, name)}`,
        )
      return `the same ${names.join(', ')}`
    },
  },
  {
    id: 'replay-cookie',
    tier: 'careful',
    title: 'does not replay the cookies that the first answer set',
    source: `RFC 6265, section 4.1; ${draft('5, data leaks')}`,
    expected: 'no cookie of the first answer in the answer to its retry',
    cost: { requests: 2, effects: 1 },
    async run(trial) {
      const { first, retry } = await twice(trial)
      const cookies = first.headers['set-cookie'] ?? cannotJudge('the first answer sets no cookie')
      const replayed = retry.headers['set-cookie']?.filter((cookie) => cookies.includes(cookie)) ?? []
      demand(replayed.length === 0, `Set-Cookie: ${replayed.join('; ')}`)
      return `${cookies.length} set by the first answer, none of them by the second`
    },
  },
  {
    id: 'replay-date',
    tier: 'careful',
    title: 'dates a replay with the time at which it was sent',
    source: 'RFC 9110, section 6.6.1',
    expected: 'one Date, later than that of the first answer, two seconds later',
    cost: { requests: 2, effects: 1 },
    async run(trial) {
      const { first, retry } = await twice(trial, { pauseMs: ANOTHER_SECOND_MS })
      const dated = fieldOf(first, 'date') ?? cannotJudge('the first answer has no Date')
      const again = retry.headers.date ?? []
      demand(again.length === 1 && again[0] !== dated, `Date: ${again.join(' and ')}, at first ${dated}`)
      return `${dated}, then ${again[0]}`
    },
  },
  {
    id: 'replay-connection',
    tier: 'careful',
    title: "does not replay the fields of the first answer's connection",
    source: 'RFC 9110, section 7.6.1',
    expected: `after "Connection: close" on the first connection, another one that is kept, without its fields`,
    cost: { requests: 3, effects: 2 },
    async run(trial) {
      const kept = await trial.begin().send({ keepAlive: true })
      if (fieldOf(kept, 'connection')?.includes('close')) cannotJudge('the server closes every connection')
      const operation = trial.begin()
      const first = await operation.send()
      if (!fieldOf(first, 'connection')?.includes('close'))
        cannotJudge('the server does not say that it closes a connection')
      const retry = await operation.send({ keepAlive: true })
      for (const name of [...CONNECTION_HEADERS, ...namesIn(first)])
        demand(
          fieldOf(retry, name) === fieldOf(kept, name),
          `${name}: ${fieldOf(retry, name) ?? 'not there'}`,
        )
      return `Connection: ${fieldOf(first, 'connection')}, then ${fieldOf(retry, 'connection') ?? 'none'}`
    },
  },
  bodyIsReplayed('binary', 'bytes that are no text'),
  bodyIsReplayed('empty', 'an answer without a body'),
  bodyIsReplayed('streamed', 'a stream'),
  {
    id: 'replay-large',
    tier: 'careful',
    title: 'replays a large answer whole, or says that it was not kept',
    source: draft('2.6, duplicate request, retry'),
    expected: 'the status and the bytes of the first answer, or 409; one effect',
    cost: { requests: 2, effects: 1 },
    async run(trial) {
      const { first, retry } = await twice(trial, { name: 'large' })
      if (retry.status !== 409) demandSame(first, retry)
      await trial.demandEffects(1)
      return retry.status === 409 ? shown(retry) : `the same ${first.body.length} bytes twice`
    },
  },
]

function bodyIsReplayed(name: 'binary' | 'empty' | 'streamed', what: string): HttpCheck {
  return {
    id: `replay-${name}`,
    tier: 'careful',
    title: `replays ${what} as it was`,
    source: draft('2.6, duplicate request, retry'),
    expected: 'the status, the Content-Type and the bytes of the first answer, and one effect',
    cost: { requests: 2, effects: 1 },
    async run(trial) {
      const { first, retry } = await twice(trial, { name })
      if ((name === 'empty') !== (first.body.length === 0))
        cannotJudge(`the operation "${name}" was answered with ${shown(first)}`)
      demandSame(first, retry)
      demand(
        fieldOf(retry, 'content-type') === fieldOf(first, 'content-type'),
        `Content-Type: ${fieldOf(retry, 'content-type')}, at first ${fieldOf(first, 'content-type')}`,
      )
      await trial.demandEffects(1)
      return `the same answer twice: ${shown(first)}`
    },
  }
}

async function twice(
  trial: Trial,
  { name, pauseMs = 0 }: { readonly name?: HttpTargetOperationName; readonly pauseMs?: number } = {},
): Promise<{ readonly first: HttpAnswer; readonly retry: HttpAnswer }> {
  const operation = trial.begin(name === undefined ? {} : { name })
  const first = await operation.send()
  demandSuccess(first)
  // Only the server's clock says when it is another second.
  if (pauseMs > 0) await new Promise((resolve) => setTimeout(resolve, pauseMs))
  return { first, retry: await operation.send() }
}

function fieldOf(answer: HttpAnswer, name: string): string | undefined {
  return answer.headers[name]?.join(', ')
}

/** The fields that `Connection` names: they belong to the connection as it does. */
function namesIn(answer: HttpAnswer): readonly string[] {
  const names = (fieldOf(answer, 'connection') ?? '').split(',').map((name) => name.trim().toLowerCase())
  return names.filter((name) => name !== '' && name !== 'close' && name !== 'keep-alive')
}
