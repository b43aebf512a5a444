import { readFileSync } from 'node:fs'
import { expect, it } from 'vitest'

const ROOT = new URL('../../', import.meta.url)

it('examples/openapi is what docs/openapi.md shows, and describes its route', async () => {
  const page = readFileSync(new URL('docs/openapi.md', ROOT), 'utf8')
  const program = readFileSync(new URL('examples/openapi/server.ts', ROOT), 'utf8')
  expect(page.match(/```ts\n(.*?)```/s)?.[1]).toBe(program)
  const { description } = await import('../../examples/openapi/server.js')
  const { paths } = description as {
    paths: Record<string, { post: { parameters: object[]; responses: object } }>
  }
  expect(paths['/payments']?.post.parameters).toMatchObject([{ name: 'Idempotency-Key', required: true }])
  expect(Object.keys(paths['/payments']?.post.responses ?? {})).toEqual(['200', '400', '409', '422', '503'])
})
