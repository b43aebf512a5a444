import { execFile } from 'node:child_process'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, it, onTestFinished } from 'vitest'

async function pages(folder: string): Promise<Readonly<Record<string, string>>> {
  const names = (await readdir(folder)).sort()
  return Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, await readFile(join(folder, name), 'utf8')])),
  )
}

it('docs/api is what the docstrings say (else: npm run docs:api), and no public name is without one', {
  timeout: 240_000,
}, async () => {
  const folder = await mkdtemp(join(tmpdir(), 'oncekey-docs-api-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  // It fails where a name has no docstring, or a link of one leads nowhere.
  await promisify(execFile)(process.execPath, ['tools/reference/generate.js', folder])
  expect(await pages('docs/api')).toEqual(await pages(folder))
})
