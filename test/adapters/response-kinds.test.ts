import { randomUUID } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { gunzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { EXPRESS_VERSIONS } from '../support/express-versions.js'
import { keptHeaders, type RawAnswer, rawRequest } from '../support/raw-request.js'
import { expressOf } from '../support/response-kinds/express.js'
import { fastify } from '../support/response-kinds/fastify.js'
import {
  type Framework,
  KINDS,
  type Kind,
  type KindName,
  type RunningFramework,
  tableOf,
} from '../support/response-kinds/kinds.js'
import { web } from '../support/response-kinds/web.js'

/** The columns of the table. */
const FRAMEWORKS: readonly Framework[] = [fastify, ...EXPRESS_VERSIONS.map(expressOf), web]

describe.each(FRAMEWORKS)('response kinds › $name', ({ lacks, start }) => {
  const effects = new Map<string, number>()
  let server: RunningFramework
  beforeAll(async () => {
    server = await start({
      onEffect(kind) {
        const effect = (effects.get(kind) ?? 0) + 1
        effects.set(kind, effect)
        return effect
      },
    })
  })
  afterAll(() => server.close())

  function send(kind: KindName, key: string, headers?: Readonly<Record<string, string>>): Promise<RawAnswer> {
    const { request = {} }: Kind = KINDS[kind]
    return rawRequest(`${server.url}/${kind}`, { key, ...request, ...(headers && { headers }) })
  }

  const names = (Object.keys(KINDS) as KindName[]).filter((kind) => !lacks.includes(kind))

  it.each(names.map((kind) => [KINDS[kind].name, kind] as const))(
    'replays %s: status, kept headers and bytes, with one effect',
    async (_, kind) => {
      const { status, body, headers = {} }: Kind = KINDS[kind]
      const key = randomUUID()
      const first = await send(kind, key)
      expect(first).toMatchObject({ status, isReplay: false, headers })
      if (body !== undefined) expect(first.bytes.equals(Buffer.from(body))).toBe(true)
      // The store answers one retry, and the process's own cache the others.
      for (let retry = 0; retry < 3; retry += 1) {
        const replay = await send(kind, key)
        expect(replay).toMatchObject({ status, message: first.message, isReplay: true })
        expect(keptHeaders(replay)).toEqual(keptHeaders(first))
        expect(replay.bytes.equals(first.bytes)).toBe(true)
        const length = replay.headers['content-length']
        if (length !== undefined) expect(Number(length)).toBe(first.bytes.byteLength)
      }
      expect(effects.get(kind)).toBe(1)
    },
  )

  it('replays a compressed reply to a client that accepts no compression', async () => {
    const key = randomUUID()
    const first = await send('compressed', key)
    const plain = await send('compressed', key, { 'accept-encoding': 'identity' })
    expect(plain.isReplay).toBe(true)
    expect(plain.headers).not.toHaveProperty('content-encoding')
    expect(plain.bytes.equals(gunzipSync(first.bytes))).toBe(true)
  })
})

describe('response kinds › the docs', () => {
  it('have the table that is tested here', async () => {
    const docs = await readFile(new URL('../../docs/http.md', import.meta.url), 'utf8')
    expect(docs).toContain(tableOf(FRAMEWORKS))
  })
})
