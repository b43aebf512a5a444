import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type HttpConformanceReport, httpConformance } from '../../src/testing/test-kit.js'
import { type FlawedShop, serveFlawed } from '../support/flawed-shop.js'
import { startServer } from '../support/http-server.js'
import { serveNaively } from '../support/naive-shop.js'
import { runOncekey } from '../support/oncekey-program.js'
import { shopTarget } from '../support/shop.js'

const LONG_MS = 120_000

describe('oncekey conformance', () => {
  let folder: string
  let served: FlawedShop
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'oncekey-cli-'))
    served = await serveFlawed([])
  })
  afterAll(async () => {
    await served.close()
    rmSync(folder, { recursive: true })
  })

  const written = (name: string, text: string): string => {
    const file = join(folder, name)
    writeFileSync(file, text)
    return file
  }

  it(
    'ends with 0 where everything passes, and tells it by tier',
    async () => {
      const file = written('target.json', JSON.stringify(shopTarget(served.url)))
      const { code, out, err } = await runOncekey('conformance', '--target', file, '--strict')
      expect(out).toContain(`${httpConformance.length} passed, 0 failed, 0 skipped`)
      expect(out.indexOf('The IETF draft')).toBeGreaterThan(0)
      expect(out.indexOf('What careful servers do besides')).toBeGreaterThan(out.indexOf('The IETF draft'))
      expect(out).toContain('  pass  retry: answers a retry with the result of the first request')
      expect(err).toMatch(
        /^38 checks send up to \d+ real requests to POST http:\S+\/payments\. They have effects/,
      )
      expect(code).toBe(0)
    },
    LONG_MS,
  )

  it(
    'ends with 1 where a check fails, and tells what was expected and seen, and what it did not judge',
    async () => {
      const naive = await serveNaively()
      const file = written('naive.json', JSON.stringify(shopTarget(naive.url)))
      const { code, out } = await runOncekey(
        'conformance',
        '--target',
        file,
        '--only',
        'retry,caller-isolation,reuse-link',
      )
      await naive.close()
      expect(out).toMatch(
        / FAIL {2}caller-isolation: .*\n +source +\S.*\n +expected +\S.*\n +seen +1 instead of 2 effects/,
      )
      expect(out).toMatch(
        / skip {2}reuse-link: .*\n +source .*\n +expected .*\n +why +another payload under the key was not/,
      )
      expect(out).toContain('1 passed, 1 failed, 1 skipped\nWhat was skipped was not judged')
      expect(code).toBe(1)
    },
    LONG_MS,
  )

  it(
    'writes the report as JSON, and nothing else, on standard output',
    async () => {
      const { code, out } = await runOncekey(
        ...['conformance', `${served.url}/payments`, '--json', '--only', 'retry,patch'],
        ...['--body', '{"amount":"{{n}}","note":"{{uuid}}"}', '--effects', '/effects'],
      )
      expect(JSON.parse(out) as HttpConformanceReport).toEqual({
        format: 1,
        target: { url: `${served.url}/payments`, method: 'POST' },
        draft: 'draft-ietf-httpapi-idempotency-key-header-07',
        effects: { evidence: 'counted', source: `GET ${served.url}/effects` },
        passed: 1,
        failed: 0,
        skipped: 1,
        checks: [
          {
            id: 'retry',
            tier: 'draft',
            title: 'answers a retry with the result of the first request',
            source: 'draft-ietf-httpapi-idempotency-key-header-07, section 2.6, duplicate request, retry',
            status: 'passed',
            expected: 'the status and the bytes of the first answer, and one effect',
            seen: expect.stringMatching(/^the same answer three times: 201 /),
            effects: 1,
          },
          expect.objectContaining({
            id: 'patch',
            status: 'skipped',
            seen: 'the target names no operation "patch"',
            effects: null,
          }),
        ],
      })
      expect(code).toBe(0)
    },
    LONG_MS,
  )

  it(
    'counts what was skipped as failed with --strict',
    async () => {
      const body = '{"amount":1,"note":"a"}'
      const args = ['conformance', `${served.url}/payments`, '--body', body, '--only', 'first-request,patch']
      expect((await runOncekey(...args)).code).toBe(0)
      expect((await runOncekey(...args, '--strict')).code).toBe(1)
    },
    LONG_MS,
  )

  it(
    'takes a target from options',
    async () => {
      const body = written('body.json', '{"amount":"{{n}}","note":"{{uuid}}"}')
      const { code, out } = await runOncekey(
        ...['conformance', `${served.url}/payments`, '--method', 'POST', '--body', `@${body}`, '--required'],
        ...[
          '--header',
          'x-trace: 1',
          '--caller-header',
          'Authorization: ada',
          '--caller-header',
          'Authorization: bob',
        ],
        ...[
          '--effects',
          `${served.url}/effects`,
          '--operation',
          'binary=/receipt',
          '--operation',
          'patch=/payments/p-0',
        ],
        ...['--timeout', '20s', '--parallel', '3', '--key-header', 'Idempotency-Key', '--strict'],
        ...['--only', 'missing-key,caller-isolation,replay-binary,race,patch,retry', '--without', 'retry'],
      )
      expect(out).toContain('5 passed, 0 failed, 0 skipped')
      expect(out).toMatch(/seen {6}\d of 3 got the answer/)
      expect(code).toBe(0)
    },
    LONG_MS,
  )

  it(
    'lets options go before the file',
    async () => {
      const file = written(
        'elsewhere.json',
        JSON.stringify({ ...shopTarget('http://127.0.0.1:1'), required: false }),
      )
      const { out } = await runOncekey(
        ...['conformance', `${served.url}/payments`, '--target', file, '--required', '--only', 'missing-key'],
      )
      expect(out).toContain('1 passed, 0 failed, 0 skipped')
    },
    LONG_MS,
  )

  it(
    'sends the headers that it is given, with every request',
    async () => {
      const server = await startServer((reply, { path }, number) =>
        path === '/effects' ? reply.end('0') : reply.writeHead(201, { location: `/${number}` }).end(),
      )
      await runOncekey(
        'conformance',
        server.url,
        '--header',
        'x-token: a:b',
        '--effects',
        '/effects',
        '--only',
        'retry',
      )
      await server.close()
      expect(server.requests.length).toBeGreaterThan(3)
      expect(server.requests.map(({ headers }) => headers['x-token'])).toEqual(
        server.requests.map(() => 'a:b'),
      )
    },
    LONG_MS,
  )

  it(
    'sends nothing with --dry-run, and says what would be checked',
    async () => {
      const before = served.requests()
      const { code, out, err } = await runOncekey(
        'conformance',
        `${served.url}/payments`,
        '--dry-run',
        '--without',
        'retry',
      )
      expect(out.trimEnd().split('\n')).toHaveLength(httpConformance.length - 1)
      expect(out).toContain('caller-isolation')
      expect(err).toContain('37 checks send up to')
      expect(served.requests()).toBe(before)
      expect(code).toBe(0)
    },
    LONG_MS,
  )

  it.each([
    ['without a URL', [], 'name the URL to check'],
    ['with two URLs', ['http://127.0.0.1:1', 'http://127.0.0.1:2'], 'one URL is enough'],
    ['with something else than a URL', ['payments'], 'must be an http or https URL'],
    ['with an option that there is none of', ['http://127.0.0.1:1', '--fast'], "Unknown option '--fast'"],
    ['with a header that is none', ['http://127.0.0.1:1', '--header', 'x'], "'Name: value'"],
    ['with one caller', ['http://127.0.0.1:1', '--caller-header', 'a: b'], 'give it twice'],
    ['with an operation that is none', ['http://127.0.0.1:1', '--operation', 'slow'], 'NAME=URL'],
    ['with a number that is none', ['http://127.0.0.1:1', '--parallel', 'many'], 'option "parallel"'],
    ['with a check that there is none of', ['http://127.0.0.1:1', '--only', 'x'], 'there is no check "x"'],
    ['with a file that is not there', ['--target', '/nowhere.json'], '/nowhere.json cannot be read'],
    ['where nobody answers', ['http://127.0.0.1:1'], 'gives no answer: connect ECONNREFUSED'],
  ])(
    'ends with 2 %s, and says what would be right',
    async (_, args, message) => {
      const { code, out, err } = await runOncekey('conformance', ...args)
      expect(err).toContain(message)
      expect(err).not.toContain('    at ')
      expect(out).toBe('')
      expect(code).toBe(2)
    },
    LONG_MS,
  )

  it(
    'ends with 2 where the file is no target',
    async () => {
      const broken = await runOncekey('conformance', '--target', written('broken.json', '{"url":'))
      expect(broken).toMatchObject({ code: 2, err: expect.stringContaining('broken.json is not JSON') })
      const list = await runOncekey('conformance', '--target', written('list.json', '[]'))
      expect(list).toMatchObject({ code: 2, err: expect.stringContaining('must hold an object') })
    },
    LONG_MS,
  )

  it(
    'ends with 2 where the operation does not succeed, also with --json',
    async () => {
      const server = await startServer((reply) => reply.writeHead(401).end('who are you?'))
      const { code, out, err } = await runOncekey('conformance', server.url, '--json')
      await server.close()
      expect(err).toContain('was answered with 401 (12 bytes) who are you?')
      expect({ code, out }).toEqual({ code: 2, out: '' })
    },
    LONG_MS,
  )
})
