// Writes docs/api: a page for each entry point of package.json, from the docstrings of the source. Exits with 1 when a public
// name has no docstring. With a folder as its argument it writes there instead, for the test that compares.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Application, Converter } from 'typedoc'
import { load as markdown } from 'typedoc-plugin-markdown'
import ts from 'typescript'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))

/** The entry points: their names for whoever imports them, by their files in `src` without the ending. */
const entryPoints = new Map(
  Object.entries(JSON.parse(readFileSync(`${ROOT}package.json`, 'utf8')).exports)
    .filter(([, file]) => file.endsWith('.js'))
    .map(([name, file]) => [file.replace(/^\.\/dist\/(.*)\.js$/, '$1'), name.replace(/^\./, 'oncekey')]),
)

const app = await Application.bootstrapWithPlugins({
  name: 'API reference',
  entryPoints: [...entryPoints.keys()].map((file) => `${ROOT}src/${file}.ts`),
  basePath: `${ROOT}src`,
  tsconfig: `${ROOT}tsconfig.json`,
  // `npm run check` has found those already, with the TypeScript of the library.
  skipErrorChecking: true,
  plugin: [markdown],
  router: 'module',
  out: process.argv[2] ?? `${ROOT}docs/api`,
  readme: fileURLToPath(new URL('README.md', import.meta.url)),
  mergeReadme: true,
  githubPages: false,
  disableSources: true,
  excludeInternal: true,
  excludePrivate: true,
  excludeExternals: true,
  sort: ['source-order'],
  sortEntryPoints: false,
  groupOrder: ['Functions', 'Variables', 'Interfaces', 'Type Aliases', '*', 'Classes'],
  validation: { notExported: false, invalidLink: true, notDocumented: false },
  hidePageHeader: true,
  hideBreadcrumbs: true,
  flattenOutputFiles: true,
  useCodeBlocks: true,
  useHTMLAnchors: true,
  parametersFormat: 'table',
  interfacePropertiesFormat: 'table',
  classPropertiesFormat: 'table',
  typeAliasPropertiesFormat: 'table',
  tableColumnSettings: { hideInherited: true, hideModifiers: true, hideOverrides: true, hideSources: true },
})

// TypeDoc drops the braces of "@throws {OptionsError} when ...", and the name of the error with them.
const nameErrors = (comment, declaration) => {
  const errors = ts.getAllJSDocTagsOfKind(declaration, ts.SyntaxKind.JSDocThrowsTag)
  for (const [index, tag] of comment.getTags('@throws').entries()) {
    const error = errors[index]?.typeExpression?.type.getText()
    if (error !== undefined)
      tag.content.unshift({ kind: 'code', text: `\`${error}\`` }, { kind: 'text', text: ' ' })
  }
}
app.converter.on(Converter.EVENT_CREATE_SIGNATURE, (_context, { comment }, declaration) => {
  if (comment !== undefined && declaration !== undefined) nameErrors(comment, declaration)
})
app.converter.on(Converter.EVENT_CREATE_DECLARATION, (context, reflection) => {
  const declaration = context.getSymbolFromReflection(reflection)?.declarations?.[0]
  if (reflection.comment !== undefined && declaration !== undefined)
    nameErrors(reflection.comment, declaration)
})

const project = await app.convert()
if (project === undefined) process.exit(1)
for (const module of project.children ?? []) {
  module.name = entryPoints.get(module.name) ?? module.name
  for (const name of (module.children ?? []).filter((child) => !child.isReference()))
    if (![name, ...(name.signatures ?? [])].some((one) => one.hasComment()))
      app.logger.error(`${module.name}: ${name.name} has no docstring`)
}
app.validate(project)
await app.generateOutputs(project)
if (app.logger.hasErrors() || app.logger.hasWarnings()) process.exit(1)
