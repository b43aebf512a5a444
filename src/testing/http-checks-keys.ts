import { draft, type HttpCheck } from './http-check.js'
import {
  cannotJudge,
  demandRefusal,
  demandSame,
  demandSuccess,
  isSuccess,
  quoted,
  shown,
  type Trial,
} from './http-trial.js'

/** RFC 9651, section 4.2: a field that cannot be parsed is ignored, so that the key is missing, or it fails the request. */
const PARSING = `${draft('2.1')}; RFC 9651, section 4.2`
const VALIDATION = `${draft('5, "always validate the key"')}`

/** Bytes as a header has them: UTF-8 that nobody has encoded. */
const NOT_ASCII = Buffer.from('ключ').toString('latin1')

const MALFORMED = ['two words', '"no end', '"one" "two"', '"a\\b"', '{"key":1}', `"${NOT_ASCII}"`, NOT_ASCII]

/** What careful servers take for a key. */
export const KEY_CHECKS: readonly HttpCheck[] = [
  {
    id: 'key-bare',
    tier: 'careful',
    title: 'takes a key with and without quotes for one key, or refuses it without',
    source: draft('2.1'),
    expected: 'the first answer again, or 400; one effect',
    cost: { requests: 2, effects: 1 },
    async run(trial) {
      trial.needsEvidence()
      const operation = trial.begin()
      const first = await operation.send({ keyLines: [quoted(operation.key)] })
      if (!isSuccess(first)) cannotJudge('a key in quotes was refused: see "key-string"')
      const bare = await operation.send({ keyLines: [operation.key] })
      if (bare.status !== 400) demandSame(first, bare, 'the key without quotes')
      await trial.demandEffects(1)
      return shown(bare)
    },
  },
  {
    id: 'key-case',
    tier: 'careful',
    title: 'takes keys that differ in case for two keys',
    source: `${draft('2.1')}; RFC 9651, section 3.3.3`,
    expected: 'two answers of success, and two effects',
    cost: { requests: 2, effects: 2 },
    run: (trial) => areTwoKeys(trial, `key-a-${crypto.randomUUID()}`, (key) => key.replace('key-a', 'key-A')),
  },
  {
    id: 'key-whole',
    tier: 'careful',
    title: 'compares the whole of a long key',
    source: draft('2.2'),
    expected: 'for two keys of 255 characters that differ in the last: two effects, or 400 for both',
    cost: { requests: 2, effects: 2 },
    run: (trial) =>
      areTwoKeys(trial, `${crypto.randomUUID()}-`.padEnd(254, 'k').concat('a'), (key) =>
        key.replace(/a$/, 'b'),
      ),
  },
  {
    id: 'key-too-long',
    tier: 'careful',
    title: 'refuses a key of 4,096 characters',
    source: VALIDATION,
    expected: '400 (or 431), and no effect',
    cost: { requests: 1, effects: 0 },
    async run(trial) {
      const operation = trial.begin({ key: crypto.randomUUID().padEnd(4096, 'k') })
      const answer = await operation.send()
      demandRefusal(answer, [400, 431], 'a key of 4,096 characters')
      await trial.demandEffects(0)
      return shown(answer)
    },
  },
  {
    id: 'key-empty',
    tier: 'careful',
    title: 'refuses an empty key',
    source: VALIDATION,
    expected: '400 for an empty header and for "", and no effect',
    cost: { requests: 2, effects: 0 },
    run: (trial) => areRefused(trial, [[''], ['""']]),
  },
  {
    id: 'key-malformed',
    tier: 'careful',
    title: 'refuses what is neither an RFC 9651 string nor a plain word',
    source: PARSING,
    expected: `400 for ${MALFORMED.slice(0, 5).join(', ')} and for bytes beyond ASCII, and no effect`,
    cost: { requests: MALFORMED.length, effects: 0 },
    run: (trial) =>
      areRefused(
        trial,
        MALFORMED.map((line) => [line]),
      ),
  },
  {
    id: 'key-repeated',
    tier: 'careful',
    title: 'refuses a request with two lines of the header',
    source: PARSING,
    expected: '400 for two keys, for one key twice, and for the halves of a string; no effect',
    cost: { requests: 3, effects: 0 },
    async run(trial) {
      const [one, other] = [crypto.randomUUID(), crypto.randomUUID()]
      return areRefused(trial, [
        [quoted(one), quoted(other)],
        [one, one],
        [`"${one}`, `${other}"`],
      ])
    },
  },
]

async function areTwoKeys(trial: Trial, key: string, another: (key: string) => string): Promise<string> {
  trial.needsEvidence()
  const one = trial.begin({ key })
  const other = trial.begin({ key: another(key), body: one.body })
  const answers = [await one.send(), await other.send()] as const
  if (answers.every(({ status }) => status === 400)) return 'both keys were refused with 400'
  demandSuccess(answers[0], 'the first key')
  demandSuccess(answers[1], 'the second key')
  await trial.demandEffects(2)
  return `${shown(answers[0])}, then ${shown(answers[1])}`
}

async function areRefused(trial: Trial, keys: readonly (readonly string[])[]): Promise<string> {
  const seen: string[] = []
  for (const keyLines of keys) {
    const answer = await trial.begin().send({ keyLines })
    const what = `the key ${keyLines.map((line) => (line === '' ? '(empty)' : line)).join(' and ')}`
    demandRefusal(answer, [400], what)
    seen.push(String(answer.status))
  }
  await trial.demandEffects(0)
  return seen.join(', ')
}
