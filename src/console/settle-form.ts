import type { Resolution } from './resolution.js'

/** What a form that settles holds, as it was sent. */
export interface SettleForm {
  readonly status: string
  readonly answer: 'json' | 'text' | 'empty' | 'tombstone'
  readonly body: string
}

const ANSWERS: ReadonlySet<string> = new Set<SettleForm['answer']>(['json', 'text', 'empty', 'tombstone'])

/** HTTP allows no body with these. */
const WITHOUT_BODY = [204, 205, 304]

/** Takes a form apart. What is not there is empty. */
export function settleFormOf(fields: URLSearchParams): SettleForm {
  const answer = fields.get('answer') ?? ''
  return {
    status: fields.get('status')?.trim() ?? '',
    answer: ANSWERS.has(answer) ? (answer as SettleForm['answer']) : 'json',
    // Forms are sent with the line ends of another age.
    body: (fields.get('body') ?? '').replaceAll('\r\n', '\n'),
  }
}

/** What a form says, or what is wrong with it. */
export function resolutionOf({
  status: text,
  answer,
  body,
}: SettleForm): Resolution | { readonly problem: string } {
  const status = /^[2-5]\d\d$/.test(text) ? Number(text) : undefined
  if (status === undefined) return { problem: 'The status must be a number from 200 to 599.' }
  if (answer === 'tombstone') return { kind: 'tombstone', status }
  if (answer === 'empty') return { kind: 'answer', response: { status } }
  if (WITHOUT_BODY.includes(status)) return { problem: `An answer with status ${status} has no body.` }
  if (answer === 'text') return { kind: 'answer', response: { status, body } }
  const problem = jsonProblem(body)
  if (problem !== undefined) return { problem: `The body is not JSON: ${problem}` }
  // As it was written: to parse it and write it anew would round long numbers.
  const headers = { 'content-type': 'application/json; charset=utf-8' }
  return { kind: 'answer', response: { status, headers, body: body.trim() } }
}

function jsonProblem(text: string): string | undefined {
  try {
    JSON.parse(text)
    return undefined
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}
