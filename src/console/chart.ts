import { type Counts, KINDS, type Kind, MINUTES, sumOf } from './counts.js'
import { type Html, html } from './html.js'
import { shownCount } from './words.js'

/** What each kind is called, and what it means. */
export const KIND_NAMES: Readonly<Record<Kind, { readonly name: string; readonly means: string }>> = {
  run: { name: 'Ran', means: 'handlers that ran' },
  replay: { name: 'Replayed', means: 'retries answered with the kept outcome' },
  'in-progress': { name: 'In progress', means: 'refused while the first still ran' },
  mismatch: { name: 'Mismatch', means: 'refused: same key, another request' },
  unknown: { name: 'Unknown', means: 'refused: nobody knows how it ended' },
  refused: { name: 'Store away', means: 'refused: the store failed or was full' },
}

const WIDTH = 10
const HEIGHT = 100

/** What became of requests in the last hour: a bar for each minute, and the same in a table. */
export function chart(minutes: readonly Counts[]): Html {
  const highest = Math.max(1, ...minutes.map(sumOf))
  const busy = minutes
    .map((counts, index) => ({ counts, ago: MINUTES - 1 - index }))
    .filter(({ counts }) => sumOf(counts) > 0)
  const said = KINDS.map(
    (kind) =>
      `${minutes.reduce((sum, counts) => sum + counts[kind], 0)} ${KIND_NAMES[kind].name.toLowerCase()}`,
  )
  return html`<figure class="chart">
<figcaption id="chart-name">Requests with a key, for each minute of the last hour</figcaption>
<div class="plot">
<p class="scale" aria-hidden="true"><span>${shownCount(highest)}</span><span>0</span></p>
<svg viewBox="0 0 ${MINUTES * WIDTH} ${HEIGHT}" preserveAspectRatio="none" role="img" aria-labelledby="chart-name chart-said">
<desc id="chart-said">${said.join(', ')}. At most ${highest} in a minute.</desc>
<line class="grid" x1="0" x2="${MINUTES * WIDTH}" y1="0.5" y2="0.5"/>
<line class="grid" x1="0" x2="${MINUTES * WIDTH}" y1="${HEIGHT / 2}" y2="${HEIGHT / 2}"/>
${minutes.map((counts, index) => bar(counts, index, highest))}
</svg>
<p class="axis" aria-hidden="true"><span>an hour ago</span><span>half an hour</span><span>now</span></p>
</div>
<details><summary>The same as a table</summary>
${
  busy.length === 0
    ? html`<p class="quiet">Nothing was counted in the last hour.</p>`
    : html`<div class="scroll" role="region" aria-label="Requests by minute" tabindex="0"><table class="numbers">
<caption>Minutes in which something was counted, the latest first</caption>
<thead><tr><th scope="col">Minutes ago</th>${KINDS.map((kind) => html`<th scope="col">${KIND_NAMES[kind].name}</th>`)}</tr></thead>
<tbody>${busy.toReversed().map(({ counts, ago }) => html`<tr><th scope="row">${ago}</th>${KINDS.map((kind) => html`<td>${shownCount(counts[kind])}</td>`)}</tr>`)}</tbody>
</table></div>`
}
</details>
</figure>`
}

function bar(counts: Counts, index: number, highest: number): readonly (Html | false)[] {
  let top = HEIGHT
  return KINDS.map((kind) => {
    const height = (counts[kind] / highest) * HEIGHT
    top -= height
    return (
      height > 0 &&
      html`<rect class="kind-${kind}" x="${index * WIDTH + 1}" width="${WIDTH - 2}" y="${top.toFixed(2)}" height="${height.toFixed(2)}"/>`
    )
  })
}

/** How many of each kind there were since counting began. */
export function tiles(total: Counts): Html {
  return html`<dl class="tiles">${KINDS.map((kind) => {
    const { name, means } = KIND_NAMES[kind]
    return html`<div class="kind-${kind}${total[kind] === 0 && ' zero'}"><dt>${name}</dt><dd>${shownCount(total[kind])}<span>${means}</span></dd></div>`
  })}</dl>`
}
