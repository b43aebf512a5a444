import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { describe, expect, it } from 'vitest'

const ROOT = new URL('../..', import.meta.url).pathname

function pagesIn(folder: string): readonly string[] {
  return readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.md'))
    .map((name) => join(folder, name))
}

const ALERTS = 'docs/dashboards/alerts.yml'

const PAGES = [
  ...['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'SECURITY.md'],
  ...pagesIn('docs'),
  ...pagesIn('examples'),
].sort()

/** A page without its code, in which brackets are no links. */
function proseOf(page: string): string {
  return readFileSync(join(ROOT, page), 'utf8')
    .replaceAll(/^( *)(```+).*?^\1\2/gms, '')
    .replaceAll(/(`+)(?!`).+?(?<!`)\1(?!`)/g, (code) => code.replaceAll(/[[\]()]/g, ''))
}

/** The names under which a page's headings can be linked to, as GitHub makes them. */
function anchorsOf(page: string): ReadonlySet<string> {
  const text = readFileSync(join(ROOT, page), 'utf8').replaceAll(/^( *)(```+).*?^\1\2/gms, '')
  const anchors = new Set<string>()
  for (const [, heading = ''] of text.matchAll(/^#{1,6} +(.+?) *#*$/gm)) {
    const plain = heading.replaceAll(/\[([^\]]*)\]\([^)]*\)/g, '$1').replaceAll(/\\(.)/g, '$1')
    const name = plain
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{M}\p{N}\p{Pc} -]/gu, '')
      .replaceAll(' ', '-')
    let anchor = name
    for (let again = 1; anchors.has(anchor); again += 1) anchor = `${name}-${again}`
    anchors.add(anchor)
  }
  for (const [, id = ''] of text.matchAll(/<a id="([^"]+)">/g)) anchors.add(id)
  return anchors
}

/** What is wrong with a page's links to other files and to headings. */
function deadLinksOf(page: string): readonly string[] {
  const links = [...proseOf(page).matchAll(/\]\(([^)\s]+)\)/g)].map(([, target = '']) => target)
  return links.filter((target) => {
    if (/^[a-z]+:/.test(target)) return false
    const [path = '', anchor] = target.split('#')
    const file = path === '' ? join(ROOT, page) : resolve(ROOT, dirname(page), path)
    if (!existsSync(file)) return true
    if (anchor === undefined) return false
    return statSync(file).isDirectory() || !anchorsOf(relative(ROOT, file)).has(anchor)
  })
}

describe('links between pages', () => {
  it.each(PAGES)('lead somewhere from %s', (page) => {
    expect(deadLinksOf(page)).toEqual([])
  })

  it.runIf(existsSync(join(ROOT, ALERTS)))('lead from every alert to its runbook', () => {
    const alerts = readFileSync(join(ROOT, ALERTS), 'utf8')
    const names = [...alerts.matchAll(/- alert: (\w+)/g)].map(([, name]) => name)
    const anchors = anchorsOf('docs/operations.md')
    expect(names.filter((name) => !anchors.has(name?.toLowerCase() ?? ''))).toEqual([])
    expect(names.length).toBeGreaterThan(0)
  })

  it('reach every page from docs/README.md', () => {
    const index = proseOf('docs/README.md')
    const missing = PAGES.filter(
      (page) => /^docs\/[^/]+\.md$/.test(page) && page !== 'docs/README.md',
    ).filter((page) => !index.includes(`](${relative('docs', page)})`))
    expect(missing).toEqual([])
  })
})
