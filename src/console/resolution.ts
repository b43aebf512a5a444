import type { Outcome } from '../contract/store.js'
import { outcomeOf } from '../http/http-answer.js'
import { outcomeOfResponse, type PlainResponse } from '../http/response-outcome.js'

/** What an operator found out about a request whose outcome is unknown. */
export type Resolution =
  /** It ended, and this is its answer: retries get it. */
  | { readonly kind: 'answer'; readonly response: PlainResponse }
  /** It ended with this status, and its answer is not known: retries are told so, and run nothing. */
  | { readonly kind: 'tombstone'; readonly status: number }
  /** It did not happen: a retry runs it. */
  | { readonly kind: 'release' }

/** What a resolution keeps in the store, and the status that it has. */
export function keptBy(resolution: Resolution): {
  readonly outcome: Outcome | 'release'
  readonly status: number | undefined
} {
  switch (resolution.kind) {
    case 'release':
      return { outcome: 'release', status: undefined }
    case 'answer': {
      const { response } = resolution
      return { outcome: outcomeOfResponse(response), status: response.status }
    }
    case 'tombstone': {
      const { status } = resolution
      return { outcome: outcomeOf({ status, headers: [], body: 'not-kept', isText: false }), status }
    }
  }
}
