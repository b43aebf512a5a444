import type { StoredRecord } from '../contract/store.js'
import { type Html, html } from './html.js'
import { type Listed, STEP_TIMEOUT_MS } from './store-view.js'
import { shownAge, shownDuration } from './words.js'

/** What the two lists are about. */
export type ListedStatus = 'unknown' | 'running'

/** Records, the oldest first, or a sentence that there are none. */
export function recordTable(
  { records, ended }: Listed,
  {
    status,
    root,
    caption,
    none,
  }: {
    readonly status: ListedStatus
    readonly root: string
    readonly caption: string
    readonly none: string
  },
): Html {
  if (records.length === 0) return html`<p class="none">${ended === 'time' ? NOT_IN_TIME : none}</p>`
  return html`<table class="records" role="table">
<caption>${caption}</caption>
<thead role="rowgroup"><tr role="row"><th scope="col" role="columnheader">Key</th><th scope="col" role="columnheader">Route</th><th scope="col" role="columnheader">First seen</th><th scope="col" role="columnheader">Fence</th><th scope="col" role="columnheader">${lastColumn(status)}</th></tr></thead>
<tbody role="rowgroup">${records.map((record) => row(record, status, root))}</tbody>
</table>${howMany(records.length, ended)}`
}

const NOT_IN_TIME = `Nothing was found within ${shownDuration(STEP_TIMEOUT_MS)}, and the store had not looked at everything by then: there may be some. Look for a key here, or list them with the command npx oncekey, which looks until it is done.`

function row(record: StoredRecord, status: ListedStatus, root: string): Html {
  const { id, meta, fence, expiresInMs } = record
  const lasts = record.status === 'running' ? record.leaseLeftMs : expiresInMs
  // Roles, since a narrow screen shows each row as a block of its own, and tables that are no tables lose theirs.
  return html`<tr role="row">
<th scope="row" role="rowheader" class="key"><a href="${root}records/${encodeURIComponent(id)}"><bdi>${meta.key}</bdi></a></th>
<td role="cell" data-label="Route"><bdi>${meta.route}</bdi></td>
<td role="cell" data-label="First seen">${shownAge(meta.firstSeenAt)}</td>
<td role="cell" data-label="Fence" class="number">${fence}</td>
<td role="cell" data-label="${lastColumn(status)}">${shownDuration(lasts)}</td>
</tr>`
}

function lastColumn(status: ListedStatus): string {
  return status === 'running' ? 'Lease left' : 'Forgotten in'
}

function howMany(shown: number, ended: Listed['ended']): Html | undefined {
  if (ended === 'all') return undefined
  return html`<p class="more">${
    ended === 'limit'
      ? `These are ${shown} of more, not in any certain order of the store. Narrow the list down, or look for a key.`
      : `The store did not finish looking in time: these ${shown} may not be all. Narrow the list down, or look for a key.`
  }</p>`
}
