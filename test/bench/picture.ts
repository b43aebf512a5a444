/** One bar: what is compared, and how many times as dear as the first of its group it is. */
export interface Bar {
  readonly name: string
  readonly ratio: number
}

/** Bars that are compared with the first one. */
export interface BarGroup {
  readonly title: string
  readonly bars: readonly Bar[]
}

const WIDTH = 720
const LEFT = 190
const RIGHT = 60
const BAR = 18
const GAP = 6
const TITLE = 26

/** Draws groups of bars as an SVG that reads well on light and on dark pages. */
export function drawBars(heading: string, groups: readonly BarGroup[]): string {
  const longest = Math.max(...groups.flatMap(({ bars }) => bars.map(({ ratio }) => ratio)))
  const scale = (WIDTH - LEFT - RIGHT) / longest
  const parts: string[] = []
  let y = 44
  for (const { title, bars } of groups) {
    parts.push(`<text x="0" y="${y + 14}" class="title">${escaped(title)}</text>`)
    y += TITLE
    bars.forEach(({ name, ratio }, index) => {
      const width = Math.max(1, ratio * scale).toFixed(1)
      parts.push(
        `<text x="${LEFT - 8}" y="${y + 13}" text-anchor="end">${escaped(name)}</text>`,
        `<rect x="${LEFT}" y="${y}" width="${width}" height="${BAR}" rx="2" class="${index === 0 ? 'base' : 'bar'}"/>`,
        `<text x="${(LEFT + ratio * scale + 6).toFixed(1)}" y="${y + 13}">${ratio.toFixed(2)}</text>`,
      )
      y += BAR + GAP
    })
    y += 10
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${y}" role="img" aria-label="${escaped(heading)}">
<style>
  text { font: 13px system-ui, sans-serif; fill: #333 }
  .title { font-weight: 600 }
  .heading { font-size: 15px; font-weight: 600 }
  .base { fill: #9aa5b1 }
  .bar { fill: #2f7d6d }
  @media (prefers-color-scheme: dark) { text { fill: #ddd } .base { fill: #6b7785 } .bar { fill: #4db39e } }
</style>
<text x="0" y="18" class="heading">${escaped(heading)}</text>
${parts.join('\n')}
</svg>
`
}

function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('"', '&quot;')
}
