import type { StoredRecord } from '../contract/store.js'
import { type Content, type Html, html } from './html.js'
import { type Frame, page } from './page.js'
import { details } from './record-page.js'
import type { Resolution } from './resolution.js'
import { shownDuration } from './words.js'

/** What is about to be done, as the person is asked. */
export interface Question {
  readonly record: StoredRecord
  readonly resolution: Resolution
  /** How long a settled answer will be kept. */
  readonly keptMs: number
  /** Everything that the form sends again. */
  readonly fields: Readonly<Record<string, string>>
}

/** Asks once more, and says what will happen. */
export function confirmPage(frame: Frame, { record, resolution, keptMs, fields }: Question): string {
  const action = `${frame.root}records/${encodeURIComponent(record.id)}`
  const isRelease = resolution.kind === 'release'
  const verb = isRelease ? 'Release' : 'Settle'
  return page(frame, {
    title: `${verb} this operation?`,
    content: html`<h1>${verb} this operation?</h1>
<section class="card attention" aria-labelledby="then"><h2 id="then">What will happen</h2>
${consequences(resolution, keptMs)}
<form method="post" action="${action}/${isRelease ? 'release' : 'settle'}" class="buttons">
${Object.entries(fields).map(([name, value]) => html`<input type="hidden" name="${name}" value="${value}">`)}
<button${isRelease && html` class="danger"`}>${verb} it</button> <a class="button" href="${action}">No, go back</a>
</form></section>
${details(record)}`,
  })
}

/** What follows from a decision, with the answer that retries will get. */
export function consequences(resolution: Resolution, keptMs: number): Html {
  return html`<ul>${sentences(resolution, keptMs).map((sentence) => html`<li>${sentence}</li>`)}</ul>
${
  resolution.kind === 'answer' &&
  resolution.response.body !== undefined &&
  html`<pre tabindex="0" aria-label="The body"><code>${String(resolution.response.body)}</code></pre>`
}`
}

function sentences(resolution: Resolution, keptMs: number): readonly Content[] {
  const kept = `That is kept for ${shownDuration(keptMs)}, and cannot be taken back here.`
  switch (resolution.kind) {
    case 'release':
      return [
        html`The key is free again: <strong>a retry will run it again</strong>.`,
        'If it did happen after all, it happens twice.',
        'If the process that ran it comes back, its answer is not kept.',
      ]
    case 'tombstone':
      return [
        html`Retries are refused with 409 and the code <code>IDEMPOTENCY_RESPONSE_NOT_KEPT</code>, which names the status ${resolution.status}. <strong>They run nothing.</strong>`,
        kept,
      ]
    case 'answer':
      return [
        html`Retries of the same request get HTTP ${resolution.response.status} with ${resolution.response.body === undefined ? 'no body' : 'this body'}. <strong>They run nothing.</strong>`,
        kept,
      ]
  }
}
