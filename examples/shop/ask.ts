import { CallError, createFetch, deriveFrom } from 'oncekey/client'
import type { RequestIdempotency } from 'oncekey/fastify'

// It outlasts the restart of a service. The routes' maxRun, 5 minutes, outlasts it.
const fetch = createFetch({ retries: 1000, backoff: { base: '50ms', max: '1s' }, deadline: '1m' })

/** A call of one service to another, within an operation of its own. */
export interface Question {
  readonly url: string
  /** Names the call within the operation: every run of the operation makes it under the same key. */
  readonly label: string
  readonly body: unknown
}

/** Asks another service until it answers, under a key that is derived from the key of the request. */
export async function ask<T>(
  request: { readonly idempotency: RequestIdempotency },
  { url, label, body }: Question,
): Promise<T> {
  try {
    const answer = await fetch(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
      idempotency: deriveFrom(request.idempotency, label),
    })
    if (!answer.ok)
      throw Object.assign(new Error(`${url} answered ${answer.status}: ${await answer.text()}`), {
        statusCode: 502,
      })
    return (await answer.json()) as T
  } catch (error) {
    // Nobody answered. All that our handlers do goes by derived keys, or is undone, so a retry may go on from here.
    if (error instanceof CallError && error.retryable) request.idempotency.forget()
    throw error
  }
}
