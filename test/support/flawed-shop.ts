import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { isValidOrder, openShop, SHOP_DOCS, type ShopAnswer, type ShopRoute } from './shop.js'
import type { ServedShop } from './shop-servers.js'

/** What a server may get wrong. Each is a way in which real middleware was seen to be wrong, or could be. */
export type Flaw =
  | 'runs the handler twice'
  | 'keeps nothing'
  | 'goes by the payload alone'
  | 'takes plain words only'
  | 'refuses quotes'
  | 'runs without a key'
  | 'names no documentation'
  | 'compares no payloads'
  | 'has no running state'
  | 'refuses duplicates without a word'
  | 'forgets failures of the client'
  | 'forgets failures of the server'
  | 'protects POST only'
  | 'knows no callers'
  | 'looks before it claims'
  | 'compares payloads of ended requests only'
  | 'does not say when to come again'
  | 'forgets a key that is reused'
  | 'keeps what validation refused'
  | 'forgets a key whose client leaves'
  | 'refuses with text'
  | 'lets refusals be cached'
  | 'tells the first request'
  | 'replays status and body only'
  | 'replays cookies'
  | 'replays the date'
  | 'replays the connection'
  | 'keeps bodies as text'
  | 'replays nothing as an empty object'
  | 'keeps the first piece of a stream'
  | 'keeps 64 KiB of a body'
  | 'takes quotes for a part of the key'
  | 'lowers the case of keys'
  | 'keeps 200 characters of a key'
  | 'takes keys of any length'
  | 'takes an empty key'
  | 'takes anything for a key'
  | 'joins repeated headers'

/** A served shop that counts what it is asked. */
export interface FlawedShop extends ServedShop {
  /** How many requests came, but for those about effects. */
  requests(): number
}

interface Kept {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: Buffer
}

interface KeyRecord {
  readonly fingerprint: string
  readonly request: string
  outcome: Kept | undefined
}

interface Refused {
  readonly status: number
  readonly title: string
  readonly [name: string]: unknown
}

const INVALID: Refused = { status: 400, title: 'Key invalid' }

/**
 * Serves a shop with a small middleware of its own that has exactly these flaws; with none it does everything right. It
 * shares no code with the library, so that the checks are tried on a server that was not made with them.
 */
export async function serveFlawed(flaws: readonly Flaw[], slowMs = 700): Promise<FlawedShop> {
  let requests = 0
  const has = (flaw: Flaw): boolean => flaws.includes(flaw)
  const shop = openShop({ slowMs })
  const records = new Map<string, KeyRecord>()

  async function respond(request: IncomingMessage, reply: ServerResponse): Promise<void> {
    const text = (await bytesOf(request)).toString()
    if (request.url === '/effects') return void reply.end(String(shop.effects))
    requests += 1
    const route = shop.routes.find(({ method, path }) => method === request.method && path === request.url)
    if (route === undefined) return void reply.writeHead(404).end()
    const isValid = isValidOrder(JSON.parse(text))
    if (!isValid && !has('keeps what validation refused')) return void reply.writeHead(400).end()
    const run = async (): Promise<ShopAnswer> => {
      if (!isValid) return { status: 400, headers: {}, body: undefined }
      if (has('runs the handler twice')) await route.run(JSON.parse(text))
      return route.run(JSON.parse(text))
    }

    const key = keyOf(request)
    const isProtected = !(has('protects POST only') && route.method !== 'POST')
    if (typeof key === 'object') return refuse(reply, key)
    if (key === undefined && !has('runs without a key') && isProtected)
      return refuse(reply, { status: 400, title: 'Key missing' })
    if (key === undefined || !isProtected) return send(reply, await kept(request, await run()))
    await answerOnce({ request, reply, key, text, route, run })
  }

  async function answerOnce(asked: {
    readonly request: IncomingMessage
    readonly reply: ServerResponse
    readonly key: string
    readonly text: string
    readonly route: ShopRoute
    readonly run: () => Promise<ShopAnswer>
  }): Promise<void> {
    const { request, reply, key, text, route, run } = asked
    const caller = has('knows no callers') ? '' : request.headers.authorization
    const id = `${caller} ${has('goes by the payload alone') ? text : key}`
    const fingerprint = `${route.path} ${text}`
    const record = records.get(id)
    if (record !== undefined) {
      const isOther = record.fingerprint !== fingerprint && !has('compares no payloads')
      const isRunning = record.outcome === undefined
      if (isOther && !(isRunning && has('compares payloads of ended requests only'))) {
        if (has('forgets a key that is reused')) records.delete(id)
        const told = has('tells the first request') ? { request: record.request } : {}
        return refuse(reply, { status: 422, title: 'Key reused', ...told })
      }
      if (!isRunning && !has('keeps nothing')) return replay(reply, record.outcome)
      if (isRunning && !isOther && !has('has no running state'))
        return refuse(reply, { status: 409, title: 'Still running' })
    }

    if (has('looks before it claims')) await new Promise((resolve) => setTimeout(resolve, 50))
    const claim: KeyRecord = { fingerprint, request: text, outcome: undefined }
    records.set(id, claim)
    if (has('forgets a key whose client leaves'))
      reply.once('close', () => claim.outcome ?? records.delete(id))
    const outcome = await kept(request, await run())
    claim.outcome = outcome
    const { status } = outcome
    if (status >= 500 && has('forgets failures of the server')) records.delete(id)
    if (status >= 400 && status < 500 && has('forgets failures of the client')) records.delete(id)
    send(reply, outcome)
  }

  function keyOf(request: IncomingMessage): string | Refused | undefined {
    const lines = request.headersDistinct['idempotency-key'] ?? []
    if (lines.length > 1 && !has('joins repeated headers')) return INVALID
    if (lines.length === 0) return undefined
    const line = lines.join(', ')
    const quoted = /^"((?:[ !#-[\]-~]|\\["\\])*)"((?:; *[a-z][a-z0-9]*(?:=[a-z0-9]+)?)*)$/.exec(line)
    const isPlain =
      /^[\w.:~+/=@-]+$/.test(line) || (has('joins repeated headers') && /^[\w-]+, [\w-]+$/.test(line))
    if (quoted === null && !isPlain && line !== '' && !has('takes anything for a key')) return INVALID
    if (has('refuses quotes') && line.startsWith('"')) return INVALID
    if (has('takes plain words only') && !/^"?[\w-]*"?$/.test(line)) return INVALID
    let key = has('takes quotes for a part of the key') ? line : (quoted?.[1] ?? line)
    if ((key === '' || key === '""') && !has('takes an empty key')) return INVALID
    if (key.length > 257 && !has('takes keys of any length')) return INVALID
    if (has('lowers the case of keys')) key = key.toLowerCase()
    if (has('keeps 200 characters of a key')) key = key.slice(0, 200)
    return key
  }

  async function kept(request: IncomingMessage, answer: ShopAnswer): Promise<Kept> {
    const { status, headers, body } = answer
    const connection = request.headers.connection === 'close' ? 'close' : 'keep-alive'
    return {
      status,
      headers: { ...headers, date: new Date().toUTCString(), connection },
      body: body === undefined || Buffer.isBuffer(body) ? (body ?? Buffer.alloc(0)) : await bytesOf(body),
    }
  }

  function replay(reply: ServerResponse, outcome: Kept | undefined): void {
    if (outcome === undefined) throw new Error('There is no outcome to replay')
    const { 'set-cookie': cookie, date, connection, ...rest } = outcome.headers
    const type = { 'content-type': rest['content-type'] ?? 'text/plain' }
    const headers = {
      ...(has('replays status and body only') ? type : rest),
      ...(cookie !== undefined && has('replays cookies') && { 'set-cookie': cookie }),
      ...(date !== undefined && has('replays the date') && { date }),
      ...(connection !== undefined && has('replays the connection') && { connection }),
    }
    let { status, body } = outcome
    if (has('keeps bodies as text')) body = Buffer.from(body.toString())
    if (has('keeps the first piece of a stream') && rest['content-type']?.startsWith('text/csv'))
      body = body.subarray(0, 3)
    if (has('keeps 64 KiB of a body')) body = body.subarray(0, 65_536)
    if (has('replays nothing as an empty object') && body.length === 0) {
      status = 200
      body = Buffer.from('{}')
    }
    reply.writeHead(status, headers).end(body)
  }

  function send(reply: ServerResponse, { status, headers, body }: Kept): void {
    const { connection: _, date: __, ...own } = headers
    reply.writeHead(status, own).end(body)
  }

  function refuse(reply: ServerResponse, problem: Refused): void {
    const { status } = problem
    if (status === 409 && has('refuses duplicates without a word')) return void reply.writeHead(409).end()
    const described = { type: 'about:blank', detail: 'See the documentation.', ...problem }
    const documented = has('names no documentation') ? described : { ...described, type: SHOP_DOCS }
    reply.writeHead(status, {
      'content-type': has('refuses with text') ? 'text/plain' : 'application/problem+json',
      ...(!has('lets refusals be cached') && { 'cache-control': 'no-store' }),
      ...(status === 409 && !has('does not say when to come again') && { 'retry-after': '1' }),
    })
    reply.end(has('refuses with text') ? `${problem.title}: ${SHOP_DOCS}` : JSON.stringify(documented))
  }

  const server = createServer((request, reply) => void respond(request, reply))
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    shop,
    requests: () => requests,
    close() {
      server.closeAllConnections()
      return new Promise((resolve) => server.close(() => resolve()))
    },
  }
}

async function bytesOf(stream: NodeJS.ReadableStream): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of stream) chunks.push(Buffer.from(chunk))
  return Buffer.concat(chunks)
}
