import { OptionsError } from '../contract/errors.js'
import { type HttpAnswer, sendRequest } from './http-exchange.js'
import type { ResolvedTarget } from './http-target.js'

/** How effects are known: the server counts them, its answers name them, or not at all. */
export type EffectsEvidence = 'counted' | 'named in answers' | 'not seen'

/** What tells how many effects there were. */
export interface EffectsWitness {
  readonly evidence: EffectsEvidence
  /** Where that is read, for people. */
  readonly source: string
  /** How many effects there have been so far, where the server counts them. */
  readonly count: (() => Promise<number>) | undefined
  /** The name of the effect that an answer tells of. */
  readonly nameIn: (answer: HttpAnswer) => string | undefined
}

const NAMES_NOTHING = (): undefined => undefined

/** The witness of a target that says how its effects are known. `undefined` where it does not. */
export function namedWitness(target: ResolvedTarget): EffectsWitness | undefined {
  const { effects, effectId } = target
  const nameIn = effectId === undefined ? NAMES_NOTHING : namesAt(effectId)
  if (effects !== undefined) {
    const isUrl = effects instanceof URL
    return {
      evidence: 'counted',
      source: isUrl ? `GET ${effects}` : 'the function of the target',
      count: isUrl ? () => readCount(effects, target) : async () => whole(await effects(), 'the function'),
      nameIn,
    }
  }
  if (effectId === undefined) return undefined
  return { evidence: 'named in answers', source: placeOf(effectId), count: undefined, nameIn }
}

/** Finds out what differs between the answers to two operations. */
export function foundWitness(one: HttpAnswer, other: HttpAnswer): EffectsWitness {
  for (const place of ['location', '/id']) {
    const nameIn = namesAt(place)
    if (nameIn(one) !== undefined && nameIn(other) !== undefined && nameIn(one) !== nameIn(other))
      return { evidence: 'named in answers', source: placeOf(place), count: undefined, nameIn }
  }
  if (one.body.equals(other.body))
    return {
      evidence: 'not seen',
      source: 'the answers to two operations do not differ',
      count: undefined,
      nameIn: NAMES_NOTHING,
    }
  return {
    evidence: 'named in answers',
    source: 'the body of answers',
    count: undefined,
    nameIn: (answer) => answer.body.toString('base64'),
  }
}

function placeOf(effectId: string): string {
  return effectId.startsWith('/') ? `${effectId} in the body of answers` : `the header ${effectId} of answers`
}

function namesAt(effectId: string): (answer: HttpAnswer) => string | undefined {
  if (!effectId.startsWith('/')) return (answer) => answer.headers[effectId.toLowerCase()]?.[0]
  const steps = effectId
    .slice(1)
    .split('/')
    .map((step) => step.replaceAll('~1', '/').replaceAll('~0', '~'))
  return (answer) => {
    let value = jsonOf(answer)
    for (const step of steps) value = (value as Record<string, unknown> | null | undefined)?.[step]
    return value === undefined || value === null ? undefined : String(value)
  }
}

/** The body of an answer as JSON, or `undefined` where it is none. */
export function jsonOf(answer: HttpAnswer): unknown {
  try {
    return JSON.parse(answer.body.toString())
  } catch {
    // That it is no JSON is the answer.
    return undefined
  }
}

async function readCount(url: URL, target: ResolvedTarget): Promise<number> {
  const headers = Object.entries(target.headers)
  const { timeoutMs } = target
  const answer = await sendRequest({ url, method: 'GET', headers, body: Buffer.alloc(0), timeoutMs }).answer
  const value = jsonOf(answer)
  const isCount = typeof value === 'number'
  return whole(isCount ? value : (value as { effects?: unknown } | null | undefined)?.effects, `GET ${url}`)
}

function whole(value: unknown, source: string): number {
  if (Number.isSafeInteger(value) && (value as number) >= 0) return value as number
  throw new OptionsError(
    `httpConformance: option "effects": ${source} must give a number of effects, or {"effects": number}`,
  )
}
