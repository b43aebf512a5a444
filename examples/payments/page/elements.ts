/** The element of the page with this id. */
export function element<T extends HTMLElement>(id: string): T {
  const found = document.getElementById(id)
  if (!found) throw new Error(`The page has no #${id}`)
  return found as T
}

type Attributes = Readonly<Record<string, string>>

/** Makes an element. Texts are texts: nothing that anybody sent becomes markup. */
export function make(
  tag: string,
  attributes: Attributes,
  ...children: readonly (Node | string)[]
): HTMLElement {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
  made.append(...children)
  return made
}

/** Puts children in the place of others, unless they are the same: a screen reader need not hear them again. */
export function fill(parent: HTMLElement, ...children: readonly (Node | string)[]): void {
  const next = make('div', {}, ...children)
  if (next.innerHTML !== parent.innerHTML) parent.replaceChildren(...next.childNodes)
}
