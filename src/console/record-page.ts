import type { Outcome, StoredRecord } from '../contract/store.js'
import { factsOf } from '../http/http-answer.js'
import { isOfHttp } from '../operator/is-of-http.js'
import { type Html, html } from './html.js'
import { type Frame, page } from './page.js'
import type { SettleForm } from './settle-form.js'
import { shownBytes, shownDuration, shownTime } from './words.js'

/** What a record's page shows beside the record. */
export interface RecordView {
  readonly record: StoredRecord
  /** Why nothing can be changed here, where that is so. */
  readonly whyNot: string | undefined
  /** What was wrong with the form that was sent, and what it held. */
  readonly refused?: { readonly problem: string; readonly form: SettleForm } | undefined
}

/** One record, and what can be done about it. */
export function recordPage(frame: Frame, view: RecordView): string {
  const { record } = view
  return page(frame, {
    title: 'Record',
    content: html`<h1>Record <span class="badge ${record.status}">${record.status}</span></h1>
<p class="lead">${MEANINGS[record.status]}</p>
${details(record)}
${record.status === 'unknown' && whatToDo(frame, view)}`,
  })
}

const MEANINGS: Readonly<Record<StoredRecord['status'], string>> = {
  running: 'A process holds the claim and runs the handler. Retries are told that it is in progress.',
  unknown: 'Nobody has said how it ended, so it may have happened or not. Retries are refused.',
  completed: 'It has ended, and retries get what was kept.',
}

/** Everything that a record says about itself, but for what it answered and what it stands for. */
export function details(record: StoredRecord): Html {
  const { id, fence, meta, expiresInMs } = record
  return html`<section class="card" aria-label="Details"><dl class="details">
<div><dt>Key</dt><dd class="code"><bdi>${meta.key}</bdi></dd></div>
<div><dt>Route</dt><dd class="code"><bdi>${meta.route}</bdi></dd></div>
<div><dt>First seen</dt><dd>${shownTime(meta.firstSeenAt)}</dd></div>
<div><dt>Fence</dt><dd>${fence} <span class="quiet">${fence === 1 ? 'claimed once' : `claimed ${fence} times`}</span></dd></div>
${record.status === 'running' && html`<div><dt>Lease</dt><dd>ends in ${shownDuration(record.leaseLeftMs)}, if nobody renews it</dd></div>`}
${record.status === 'completed' && html`<div><dt>Ended</dt><dd>${shownTime(Date.now() - record.ageMs)}</dd></div><div><dt>Kept answer</dt><dd>${answer(record)}</dd></div>`}
<div><dt>Forgotten</dt><dd>in ${shownDuration(expiresInMs)}</dd></div>
<div><dt>Scope</dt><dd class="code">${meta.scope} <span class="quiet">a hash</span></dd></div>
<div><dt>Record id</dt><dd class="code">${id}</dd></div>
</dl></section>`
}

/** How the kept answer looks from outside. Its content is nobody's business here. */
function answer(record: Extract<StoredRecord, { status: 'completed' }>): Html {
  const { outcome } = record
  const status = isOfHttp(record) ? statusOf(outcome) : undefined
  return html`${status === undefined ? outcome.result : `HTTP ${status}`}, ${
    outcome.body === null
      ? 'a tombstone: it ended, and its answer was not kept'
      : outcome.body.byteLength === 0
        ? 'no body'
        : `a body of ${shownBytes(outcome.body.byteLength)}`
  }`
}

function statusOf(outcome: Outcome): number | undefined {
  try {
    return factsOf(outcome).status
  } catch {
    // Another version, or another program, wrote it. The page says the rest.
    return undefined
  }
}

function whatToDo({ root }: Frame, { record, whyNot, refused }: RecordView): Html {
  if (whyNot !== undefined)
    return html`<section class="card" aria-labelledby="what"><h2 id="what">What can be done</h2><p>${whyNot}</p></section>`
  const action = `${root}records/${encodeURIComponent(record.id)}`
  const seen = html`<input type="hidden" name="fence" value="${record.fence}"><input type="hidden" name="seen" value="${record.meta.firstSeenAt}">`
  return html`<h2>What can be done</h2>
<p>Find out first whether it happened: ask the provider or the ledger, by the key. Then say so here. Nothing is changed before the next page has asked once more.</p>
<div class="choices">
${isOfHttp(record) ? settleCard(`${action}/settle`, seen, refused) : notHttp()}
<section class="card" aria-labelledby="release"><h3 id="release">It did not happen: release it</h3>
<p>The key is free again, and a retry will run the operation again.</p>
<form method="post" action="${action}/release">${seen}<button class="danger">Release…</button></form>
</section>
</div>`
}

function settleCard(action: string, seen: Html, refused: RecordView['refused']): Html {
  const form = refused?.form
  const choice = (value: SettleForm['answer'], text: string): Html =>
    html`<label class="choice"><input type="radio" name="answer" value="${value}"${(form?.answer ?? 'json') === value && html` checked`}> ${text}</label>`
  return html`<section class="card" aria-labelledby="settle"><h3 id="settle">It happened: settle it</h3>
<p>Retries will get the answer that you write here, and run nothing.</p>
${refused !== undefined && html`<p class="problem" role="alert">${refused.problem}</p>`}
<form method="post" action="${action}" autocomplete="off">${seen}
<p><label for="status">HTTP status</label><input id="status" name="status" inputmode="numeric" pattern="[2-5][0-9][0-9]" required size="4" placeholder="201" value="${form?.status}"></p>
<fieldset><legend>Body</legend>
${choice('json', 'JSON')}${choice('text', 'Plain text')}${choice('empty', 'No body')}${choice('tombstone', 'Not known: tell retries only that it ended, with this status')}
</fieldset>
<p><label for="body">JSON or text</label><textarea id="body" name="body" rows="5" spellcheck="false" placeholder="{&quot;id&quot;: &quot;p-1&quot;, &quot;status&quot;: &quot;accepted&quot;}">
${form?.body}</textarea></p>
<button>Settle…</button></form>
</section>`
}

function notHttp(): Html {
  return html`<section class="card" aria-labelledby="settle"><h3 id="settle">It happened</h3>
<p>This is not the record of an HTTP request, and what its retries expect cannot be written here. Let the <code>onUnknown</code> function of its service say how it ended.</p></section>`
}
