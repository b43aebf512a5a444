import { allowsBody, settledStatus } from '../operator/settled-status.js'
import type { Resolution } from './resolution.js'

/** What a form that settles holds, as it was sent. */
export interface SettleForm {
  readonly status: string
  readonly answer: 'json' | 'text' | 'empty' | 'tombstone'
  readonly body: string
}

const ANSWERS: ReadonlySet<string> = new Set<SettleForm['answer']>(['json', 'text', 'empty', 'tombstone'])

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
  const status = settledStatus(text)
  if (status === undefined) return { problem: 'The status must be a number from 200 to 599.' }
  if (answer === 'tombstone') return { kind: 'tombstone', status }
  if (answer === 'empty') return { kind: 'answer', response: { status } }
  if (!allowsBody(status)) return { problem: `An answer with status ${status} has no body.` }
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
