import { html } from './html.js'
import { type Asked, listOr } from './overview-page.js'
import { type Frame, page } from './page.js'
import { type ListedStatus, recordTable } from './record-table.js'
import type { LimitedQuery } from './store-view.js'

/** Ages that a list can be narrowed down to, in milliseconds. */
const AGES: readonly (readonly [number, string])[] = [
  [0, 'any age'],
  [60_000, 'a minute'],
  [600_000, '10 minutes'],
  [3_600_000, 'an hour'],
  [86_400_000, 'a day'],
]

/** How many records a list shows. */
export const LIST_LIMIT = 100

/** What a list is asked for, from the address of its page. */
export interface ListRequest {
  readonly status: ListedStatus
  readonly route: string
  readonly olderThanMs: number
}

/** Reads the address of a list. What makes no sense is left out. */
export function listRequestOf(query: URLSearchParams): ListRequest {
  const age = Number(query.get('older') ?? 0)
  return {
    status: query.get('status') === 'running' ? 'running' : 'unknown',
    route: query.get('route')?.replaceAll('\0', '').trim() ?? '',
    olderThanMs: AGES.some(([ms]) => ms === age) ? age : 0,
  }
}

/** The same as the store is asked. */
export function listQueryOf({ status, route, olderThanMs }: ListRequest): LimitedQuery {
  return {
    status,
    limit: LIST_LIMIT,
    ...(route !== '' && { route }),
    ...(olderThanMs > 0 && { olderThanMs }),
  }
}

/** One list, which can be narrowed down. */
export function recordsPage(frame: Frame, request: ListRequest, asked: Asked): string {
  const { root } = frame
  const { status, route, olderThanMs } = request
  const isUnknown = status === 'unknown'
  const title = isUnknown ? 'Unknown outcomes' : 'Running'
  const isNarrow = route !== '' || olderThanMs > 0
  return page(frame, {
    title,
    here: isUnknown ? 'Unknown' : 'Running',
    content: html`<h1>${title}</h1>
<p class="lead">${
      isUnknown
        ? 'Nobody has said how these ended: their process died, stalled or lost the store. Each may have happened or not. Retries are refused until somebody settles or releases them.'
        : 'Claims that are held at this moment. One whose lease runs out without a word becomes unknown.'
    }</p>
<form method="get" action="${root}records" class="card filters">
<input type="hidden" name="status" value="${status}">
<p><label for="route">Route</label><input id="route" name="route" value="${route}" placeholder="POST /payments" spellcheck="false"></p>
<p><label for="older">First seen at least</label><select id="older" name="older">${AGES.map(
      ([ms, name]) =>
        html`<option value="${ms}"${ms === olderThanMs && html` selected`}>${name}${ms > 0 && ' ago'}</option>`,
    )}</select></p>
<button>Narrow down</button>
</form>
<section class="card" aria-label="${title}">
${listOr(asked, (listed) =>
  recordTable(listed, {
    status,
    root,
    caption: `${title}, the oldest first`,
    none: isNarrow
      ? 'There is none like that.'
      : isUnknown
        ? 'None. Every operation has an outcome, or is running.'
        : 'No claim is held at this moment.',
  }),
)}
</section>`,
  })
}
