import { type Html, html } from './html.js'

/**
 * The forms that look for one record. They are sent as POST, though they change nothing: a key in an address would be in
 * histories and in the logs of every proxy.
 */
export function searchForm(
  root: string,
  given: { readonly key?: string; readonly scope?: string } = {},
): Html {
  return html`<section class="card" aria-labelledby="find">
<h2 id="find">Find a record</h2>
<div class="finders">
<form method="post" action="${root}search" autocomplete="off">
<p><label for="key">Key</label><input id="key" name="key" required maxlength="600" spellcheck="false" value="${given.key}"></p>
<p><label for="scope">Scope</label><input id="scope" name="scope" required maxlength="600" spellcheck="false" aria-describedby="scope-hint" value="${given.scope}"></p>
<button>Find the key</button>
<p class="hint" id="scope-hint">The scope is the caller as your service names it, such as a user or tenant: <code>shared</code> where there is one for all.</p>
</form>
<form method="post" action="${root}search" autocomplete="off">
<p><label for="id">Record id</label><input id="id" name="id" required maxlength="100" spellcheck="false" aria-describedby="id-hint"></p>
<button>Find the id</button>
<p class="hint" id="id-hint">As it stands in logs and in the audit log.</p>
</form>
</div>
</section>`
}
