/** How the console looks: for small and large screens, light and dark. */
export const STYLESHEET = `
:root {
  color-scheme: light dark;
  --page: #f4f5f7; --card: #fff; --line: #dfe3e8; --text: #1b2430; --quiet: #5b6675;
  --accent: #1f5fbf; --on-accent: #fff; --attention: #b45309; --attention-card: #fff8ec;
  --danger: #b42318; --good: #14713d;
  --run: #4a7fc9; --replay: #9db9e0; --in-progress: #8b95a3; --mismatch: #8a5fc0; --unknown: #dd8a1a; --refused: #c8372c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #11161d; --card: #1a212b; --line: #303a47; --text: #e6eaf0; --quiet: #9aa6b5;
    --accent: #82b1ff; --on-accent: #0d1b30; --attention: #f5b95f; --attention-card: #2a2217;
    --danger: #ff9086; --good: #6fd39b;
    --run: #5d94e0; --replay: #34557f; --in-progress: #7a8696; --mismatch: #a982dd; --unknown: #e9a13b; --refused: #ef6a5e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
a { color: var(--accent); text-underline-offset: .15em; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 1rem; top: .5rem; background: var(--card); padding: .3rem .8rem; z-index: 1; }
header {
  display: flex; flex-wrap: wrap; align-items: center; gap: .3rem 1.8rem;
  padding: .7rem max(1.2rem, calc((100% - 66rem) / 2 + 1.2rem)); background: var(--card); border-bottom: 1px solid var(--line);
}
header p { margin: 0; }
.brand a { font-weight: 700; color: var(--text); text-decoration: none; }
.brand span { font-weight: 400; color: var(--quiet); }
header nav ul { display: flex; gap: 1.3rem; list-style: none; margin: 0; padding: 0; }
nav a { display: block; padding: .3rem 0; text-decoration: none; color: var(--quiet); border-bottom: 2px solid transparent; }
nav a:hover { color: var(--text); }
nav a[aria-current] { color: var(--text); border-color: var(--accent); }
.who { margin-left: auto; color: var(--quiet); font-size: .9rem; }
.who .badge, h1 .badge, h2 .badge { margin-left: .35rem; }
.badge {
  display: inline-block; padding: .05rem .6rem; border: 1px solid currentColor; border-radius: 99px;
  font-size: .8rem; font-weight: 500; vertical-align: middle; white-space: nowrap; color: var(--quiet);
}
.badge.unknown, .badge.acts { color: var(--attention); }
.badge.completed { color: var(--good); }
.badge.running { color: var(--accent); }
main { max-width: 66rem; margin: 0 auto; padding: 1.4rem 1.2rem 3rem; }
h1 { margin: .2rem 0 1rem; font-size: 1.6rem; line-height: 1.25; }
h2 { margin: 0 0 .6rem; font-size: 1.15rem; }
main > h2 { margin: 1.8rem 0 .3rem; }
h3 { margin: 0 0 .4rem; font-size: 1.05rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
ul { margin: .4rem 0 .8rem; padding-left: 1.2rem; }
.wide { max-width: none; }
.lead { color: var(--quiet); margin-top: -.6rem; }
.quiet, .hint, .none { color: var(--quiet); }
.quiet, .hint { font-size: .9rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.25rem; margin: 0 0 1.1rem; }
.card > :last-child, .card form > :last-child { margin-bottom: 0; }
.card.attention { border-color: var(--attention); background: var(--attention-card); }
.card.narrow { max-width: 40rem; margin-inline: auto; }
.problem { border-left: 4px solid var(--danger); padding: .3rem 0 .3rem .9rem; font-weight: 500; }
.more { font-size: .9rem; color: var(--quiet); }
code, .code, .key, pre, textarea { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size: .92em; }
.code { overflow-wrap: anywhere; }
.code .quiet { font-family: system-ui, sans-serif; }

table { width: 100%; border-collapse: collapse; }
caption { text-align: left; color: var(--quiet); font-size: .9rem; padding-bottom: .5rem; }
th, td { text-align: left; padding: .45rem 1rem .45rem 0; border-top: 1px solid var(--line); vertical-align: top; }
thead th { font-size: .82rem; font-weight: 600; color: var(--quiet); border-top: 0; white-space: nowrap; }
tbody th { font-weight: 500; }
.records .key { max-width: 22rem; overflow-wrap: anywhere; }
.records td { white-space: nowrap; font-variant-numeric: tabular-nums; }
.records td[data-label="Route"] { white-space: normal; overflow-wrap: anywhere; }
.numbers td, .numbers th { text-align: right; font-variant-numeric: tabular-nums; }
.numbers caption { text-align: left; }
.scroll { overflow-x: auto; }

.tiles { display: grid; grid-template-columns: repeat(6, 1fr); gap: .7rem; margin: .8rem 0 1.2rem; }
.tiles div { border-left: 4px solid var(--kind); padding: 0 0 0 .7rem; min-width: 0; }
.tiles dt { font-size: .85rem; color: var(--quiet); }
.tiles dd { margin: 0; font-size: 1.5rem; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tiles .zero dd { color: var(--quiet); font-weight: 400; }
.tiles dd span { display: block; font-size: .78rem; font-weight: 400; line-height: 1.3; color: var(--quiet); }
.kind-run { --kind: var(--run); } .kind-replay { --kind: var(--replay); } .kind-in-progress { --kind: var(--in-progress); }
.kind-mismatch { --kind: var(--mismatch); } .kind-unknown { --kind: var(--unknown); } .kind-refused { --kind: var(--refused); }
.chart { margin: 0; }
.chart figcaption { font-size: .9rem; color: var(--quiet); margin-bottom: .4rem; }
.plot { display: grid; grid-template-columns: auto 1fr; gap: .1rem .5rem; }
.plot svg { width: 100%; height: 9rem; display: block; border-bottom: 1px solid var(--quiet); }
.plot rect { fill: var(--kind); }
.grid { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke; }
.scale, .axis { display: flex; justify-content: space-between; margin: 0; max-width: none; font-size: .78rem; color: var(--quiet); font-variant-numeric: tabular-nums; }
.scale { flex-direction: column; text-align: right; line-height: 1; }
.axis { grid-column: 2; }
summary { cursor: pointer; color: var(--accent); font-size: .9rem; width: fit-content; margin-top: .5rem; }
details > :not(summary) { margin-top: .5rem; }

.details { display: grid; grid-template-columns: repeat(2, 1fr); gap: .9rem 1.6rem; margin: 0; }
.details div { min-width: 0; }
.details div:first-child { grid-column: 1 / -1; }
.details dt { font-size: .82rem; font-weight: 600; color: var(--quiet); }
.details dd { margin: 0; }
.details div:first-child dd { font-size: 1.1rem; }
.choices { display: grid; grid-template-columns: 3fr 2fr; gap: 0 1.1rem; align-items: start; }

form p { margin: 0 0 .8rem; }
label, legend { display: block; font-size: .9rem; font-weight: 500; margin-bottom: .2rem; padding: 0; }
fieldset { border: 0; margin: 0 0 .8rem; padding: 0; }
.choice { display: flex; align-items: baseline; gap: .5rem; font-weight: 400; font-size: 1rem; padding: .15rem 0; margin: 0; }
input:not([type=radio]), select, textarea {
  width: 100%; padding: .5rem .65rem; font-size: 1rem; color: inherit; background: var(--page);
  border: 1px solid var(--quiet); border-radius: 6px;
}
input, select { font-family: inherit; }
input:not([type=radio]), select, .filters button { height: 2.6rem; }
::placeholder { color: var(--quiet); opacity: 1; }
#key, #id { font-family: ui-monospace, monospace; }
#status { width: 7rem; }
input[type=radio] { accent-color: var(--accent); margin: 0; }
button, .button {
  display: inline-block; padding: .5rem 1.15rem; font: inherit; font-weight: 600; cursor: pointer; text-decoration: none;
  border: 1px solid var(--accent); border-radius: 6px; background: var(--accent); color: var(--on-accent);
}
.button, .filters button, .finders button { background: transparent; color: var(--accent); }
button.danger { background: transparent; border-color: var(--danger); color: var(--danger); }
button:hover, .button:hover { filter: brightness(1.08); }
.buttons { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: 1rem; }
.filters { display: grid; grid-template-columns: 1fr 14rem auto; gap: 1rem; align-items: end; }
.filters p { margin: 0; }
.filters button { padding-block: 0; }
.finders { display: grid; grid-template-columns: 3fr 2fr; gap: 1.4rem 2.4rem; }
.finders form { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem 1rem; align-content: start; }
.finders form + form { grid-template-columns: 1fr; }
.finders p { margin: 0; min-width: 0; }
.finders button { justify-self: start; }
.finders .hint { grid-column: 1 / -1; }
pre { margin: .6rem 0; padding: .8rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 6px; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }

@media (max-width: 46rem) {
  header { padding: .7rem 1rem; }
  header { gap: .2rem 1rem; }
  header nav { order: 3; width: 100%; }
  .who { margin-left: 0; }
  main { padding: 1rem .8rem 2.5rem; }
  .card { padding: 1rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: 1rem; }
  .plot svg { height: 7rem; }
  .details, .choices, .filters, .finders, .finders form { grid-template-columns: 1fr; }
  button, .button { padding: .65rem 1.2rem; }
  .records, .records tbody, .records tr, .records th, .records td { display: block; width: auto; }
  .records thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .records caption { display: block; }
  .records tr { border-top: 1px solid var(--line); padding: .7rem 0; }
  .records th, .records td { border: 0; padding: .08rem 0; white-space: normal; }
  .records .key { max-width: none; font-size: 1rem; padding-bottom: .2rem; }
  .records td { display: inline-block; margin-right: 1.1rem; }
  .records td[data-label="Route"] { display: block; }
  .records td::before { content: attr(data-label) ": "; color: var(--quiet); font-size: .88rem; }
}
@media (prefers-contrast: more) { :root { --quiet: var(--text); --line: var(--text); } }
`
