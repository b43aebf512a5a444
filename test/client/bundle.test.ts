import { spawn } from 'node:child_process'
import { createContext, runInContext } from 'node:vm'
import { gzipSync } from 'node:zlib'
import { build } from 'vite'
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { aServer, keysOf, POST } from '../support/client-fixtures.js'

/** What a page gets of `oncekey/client`: all that it exports, in one script. */
async function bundleAs(
  format: 'es' | 'iife',
): Promise<{ readonly code: string; readonly imports: readonly string[] }> {
  const built = await build({
    configFile: false,
    logLevel: 'silent',
    build: {
      write: false,
      minify: true,
      modulePreload: false,
      rolldownOptions: {
        input: new URL('../../src/client/create-fetch.ts', import.meta.url).pathname,
        preserveEntrySignatures: 'strict',
        output: { format, name: 'oncekeyClient' },
      },
    },
  })
  const [output] = Array.isArray(built) ? built : [built]
  if (output === undefined || !('output' in output)) throw new Error('Nothing was built')
  const [chunk, ...others] = output.output
  expect(others).toEqual([])
  return { code: chunk.code, imports: chunk.imports }
}

describe('oncekey/client in a browser', () => {
  let module: Awaited<ReturnType<typeof bundleAs>>
  let script: string

  beforeAll(async () => {
    module = await bundleAs('es')
    script = (await bundleAs('iife')).code
  })

  it('takes less than 3 kB, with gzip at level 9', () => {
    const bytes = gzipSync(module.code, { level: 9 }).length
    expect(bytes).toBeLessThan(3000)
    // A bundle that lost half of itself would be small, too.
    expect(bytes).toBeGreaterThan(2000)
  })

  it('imports nothing, and names nothing of Node', () => {
    expect(module.imports).toEqual([])
    expect(module.code).not.toMatch(/\bnode:|\brequire\(|\bprocess\b|\bBuffer\b|\bimport\b/)
  })

  it('needs nothing but what browsers have', async () => {
    const server = await aServer((reply, _, number) =>
      reply.writeHead(number < 3 ? 503 : 201).end(`answer ${number}`),
    )
    const { runInPage } = aPage()
    const answer = await runInPage(`
      const fetch = oncekeyClient.createFetch({ backoff: { base: 1, max: 5 }, storage: sessionStorage })
      const form = new FormData()
      form.set('amount', '5')
      fetch('${server.url}', { method: 'POST', body: form, idempotency: { operation: 'checkout-42' } })
        .then(async (response) => response.status + ' ' + await response.text() + ' ' + sessionStorage.size)
    `)
    expect(answer).toBe('201 answer 3 0')
    expect(keysOf(server)).toEqual([expect.stringMatching(/^[\da-f-]{36}$/)])
  })

  it('makes keys where a page came over plain HTTP, and there are no UUIDs and no locks', async () => {
    const server = await aServer((reply) => reply.end())
    const { runInPage } = aPage({
      crypto: { getRandomValues: crypto.getRandomValues.bind(crypto) },
      navigator: {},
    })
    await runInPage(`
      const fetch = oncekeyClient.createFetch({ storage: sessionStorage })
      fetch('${server.url}', { method: 'POST' })
        .then(() => fetch('${server.url}', { method: 'POST', idempotency: { operation: 'checkout-42' } }))
    `)
    expect(keysOf(server)).toEqual([
      expect.stringMatching(/^(\d+-){3}\d+$/),
      expect.stringMatching(/^(\d+-){3}\d+$/),
    ])
  })

  it('calls the fetch of the page as a function of nobody, as browsers want it', async () => {
    const { runInPage } = aPage()
    const called = runInPage(`
      globalThis.fetch = async function () {
        'use strict'
        if (this !== undefined && this !== globalThis) throw new TypeError('Illegal invocation')
        return new Response('ok')
      }
      oncekeyClient.createFetch()('http://shop.example', { method: 'POST' }).then((response) => response.text())
    `)
    expect(await called).toBe('ok')
  })

  it.each([
    ['the answer has come', ''],
    ['the caller has left', 'caller.abort()'],
  ])('lets a program end when %s', async (_, leave) => {
    const server = await aServer((reply) => {
      if (leave === '') reply.writeHead(201).end()
      else reply.writeHead(503, { 'retry-after': '600' }).end()
    })
    const program = `
      ${script}
      const caller = new AbortController()
      const onAttempt = ({ attempts }) => { if (attempts === 1) setTimeout(() => { ${leave} }) }
      const fetch = oncekeyClient.createFetch({ maxRetryAfter: '20m', deadline: '30m', timeout: '30m', onAttempt })
      fetch('${server.url}', { ...${JSON.stringify(POST)}, signal: caller.signal }).then(
        async (response) => console.log(response.status, await response.text()),
        (error) => console.log(error.name),
      )
    `
    const child = spawn(process.execPath, ['-e', program], { stdio: ['ignore', 'pipe', 'inherit'] })
    onTestFinished(() => void child.kill())
    const printed: Buffer[] = []
    child.stdout.on('data', (data) => printed.push(data))
    expect(await new Promise((resolve) => child.once('exit', resolve))).toBe(0)
    expect(Buffer.concat(printed).toString().trim()).toBe(leave === '' ? '201' : 'AbortError')
  })

  /** A world with what browsers have, and nothing of Node. */
  function aPage(instead: object = {}): { runInPage(code: string): Promise<unknown> } {
    const items = new Map<string, string>()
    const sessionStorage = {
      getItem: (name: string) => items.get(name) ?? null,
      setItem: (name: string, value: string) => items.set(name, String(value)),
      removeItem: (name: string) => items.delete(name),
      get size() {
        return items.size
      },
    }
    const page = createContext({
      ...{
        AbortController,
        AbortSignal,
        Blob,
        DOMException,
        FormData,
        Headers,
        ReadableStream,
        Request,
        Response,
      },
      ...{ TransformStream, URL, clearTimeout, crypto, fetch, performance, sessionStorage, setTimeout },
      navigator: { locks: { request: (_: string, work: () => Promise<unknown>) => work() } },
      ...instead,
    })
    runInContext(script, page)
    return { runInPage: async (code) => runInContext(code, page) }
  }
})
