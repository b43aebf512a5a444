import { chart, tiles } from './chart.js'
import type { Counted } from './counts.js'
import { type Html, html } from './html.js'
import { type Frame, page } from './page.js'
import { recordTable } from './record-table.js'
import { searchForm } from './search-form.js'
import type { Listed } from './store-view.js'
import { shownTime } from './words.js'

/** What a store said: its records, that it cannot list, or that it failed. */
export type Asked = Listed | 'cannot-list' | 'failed'

/** How many records an overview shows of each list. */
export const OVERVIEW_LIMIT = 10

/** The first page: what needs somebody, what happened, and what is running. */
export function overviewPage(
  frame: Frame,
  given: {
    readonly unknown: Asked
    readonly running: Asked
    readonly counted: Counted
    readonly since: number
  },
): string {
  const { unknown, running, counted, since } = given
  const { root } = frame
  return page(frame, {
    title: 'Overview',
    here: 'Overview',
    content: html`<h1>Overview</h1>
<section class="card ${needsSomebody(unknown) ? 'attention' : ''}" aria-labelledby="unknown">
<h2 id="unknown">Unknown outcomes${howMany(unknown)}</h2>
${listOr(unknown, (listed) =>
  recordTable(listed, {
    status: 'unknown',
    root,
    caption: 'Somebody has to find out whether these happened. Their retries are refused until then.',
    none: 'None. Every operation has an outcome, or is running.',
  }),
)}
${seeAll(unknown, `${root}records?status=unknown`, 'See all unknown outcomes')}
</section>
<section class="card" aria-labelledby="counts">
<h2 id="counts">Requests</h2>
<p class="quiet wide">Counted by this process alone since it started, ${shownTime(since)}. Metrics count all processes.</p>
${tiles(counted.total)}
${chart(counted.minutes)}
</section>
<section class="card" aria-labelledby="running">
<h2 id="running">Running now${howMany(running)}</h2>
${listOr(running, (listed) =>
  recordTable(listed, {
    status: 'running',
    root,
    caption: 'Claims that are held, by whichever process.',
    none: 'No claim is held at this moment.',
  }),
)}
${seeAll(running, `${root}records?status=running`, 'See all running operations')}
</section>
${searchForm(root)}
<p class="quiet">As of ${shownTime(Date.now())}. <a href="${root}">Look again</a></p>`,
  })
}

/** A list, or why there is none. */
export function listOr(asked: Asked, show: (listed: Listed) => Html): Html {
  if (asked === 'failed')
    return html`<p class="problem" role="alert">The store could not be reached, failed, or did not answer in time. The log of this service has the reason.</p>`
  if (asked === 'cannot-list')
    return html`<p class="none">This store cannot list its records. Look for one by its key and scope, or by its id.</p>`
  return show(asked)
}

function needsSomebody(unknown: Asked): boolean {
  return unknown === 'failed' || (typeof unknown === 'object' && unknown.records.length > 0)
}

function howMany(asked: Asked): Html | false {
  if (typeof asked === 'string' || asked.records.length === 0) return false
  return html` <span class="badge">${asked.records.length}${asked.ended !== 'all' && ' or more'}</span>`
}

function seeAll(asked: Asked, href: string, text: string): Html | false {
  const hasMore = typeof asked === 'object' && asked.records.length > 0 && asked.ended !== 'all'
  return hasMore && html`<p><a href="${href}">${text}</a></p>`
}
