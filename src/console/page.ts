import { type Content, type Html, html } from './html.js'

/** What every page shows beside its own content. */
export interface Frame {
  /** The way from this page to the overview: relative, so that a proxy may put the console at any path that ends in a slash. */
  readonly root: string
  /** Who looks. `undefined` before that is known. */
  readonly by: string | undefined
  /** Whether this person can settle and release here. */
  readonly mayAct: boolean
}

/** A page of the console, whole. */
export function page(
  { root, by, mayAct }: Frame,
  { title, here, content }: { readonly title: string; readonly here?: string; readonly content: Content },
): string {
  const link = (path: string, name: string): Html =>
    html`<a href="${root}${path}"${here === name && html` aria-current="page"`}>${name}</a>`
  const whole = html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${title} · oncekey console</title>
<link rel="stylesheet" href="${root}console.css">
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<p class="brand"><a href="${root}">oncekey <span>console</span></a></p>
${
  by !== undefined &&
  html`<nav aria-label="Pages"><ul>
<li>${link('', 'Overview')}</li>
<li>${link('records?status=unknown', 'Unknown')}</li>
<li>${link('records?status=running', 'Running')}</li>
</ul></nav>
<p class="who"><bdi>${by}</bdi> <span class="badge ${mayAct ? 'acts' : 'looks'}">${mayAct ? 'may settle' : 'read-only'}</span></p>`
}
</header>
<main id="content">
${content}
</main>
</body>
</html>
`
  return whole.toString()
}

/** A page that says one thing. */
export function messagePage(
  frame: Frame,
  { title, text, more }: { readonly title: string; readonly text: string; readonly more?: Content },
): string {
  return page(frame, {
    title,
    content: html`<section class="card narrow"><h1>${title}</h1><p>${text}</p>${more}
${frame.by !== undefined && html`<p><a href="${frame.root}">Back to the overview</a></p>`}</section>`,
  })
}
