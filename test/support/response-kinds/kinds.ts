import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

/** Every byte there is. */
export const ALL_BYTES = Buffer.from(Uint8Array.from({ length: 256 }, (_, byte) => byte))

/** A long text, which is worth compressing. */
export const LONG_TEXT = 'a long text '.repeat(500)

/** Half a mebibyte of JSON. */
export const BIG_JSON = {
  rows: Array.from({ length: 10_000 }, (_, id) => ({ id, name: `the name of ${id}` })),
}

/** Text in another charset than UTF-8. */
export const LATIN_1 = Buffer.from('Grüße', 'latin1')

/** A file that is sent. */
export const FILE = fileURLToPath(new URL('../../../LICENSE', import.meta.url))

/** What an answer of a kind looks like, whatever framework makes it. */
export interface Kind {
  readonly name: string
  readonly status: number
  /** The body; left out where each framework has words of its own. */
  readonly body?: Buffer | string
  readonly headers?: Readonly<Record<string, unknown>>
  readonly request?: { readonly method?: string; readonly headers?: Readonly<Record<string, string>> }
}

/** The rows of the table. */
export const KINDS = {
  json: { name: 'a JSON object', status: 200, body: '{"a":1}' },
  bigJson: { name: 'a big JSON object', status: 200, body: JSON.stringify(BIG_JSON) },
  text: { name: 'a string', status: 200, body: 'Grüße' },
  latin1: {
    name: 'text in another charset',
    status: 200,
    body: LATIN_1,
    headers: { 'content-type': 'text/plain; charset=iso-8859-1' },
  },
  bytes: { name: 'bytes, of every value', status: 200, body: ALL_BYTES },
  empty: { name: 'an empty body', status: 200, body: '' },
  noContent: { name: '204', status: 204, body: '' },
  notModified: { name: '304', status: 304, body: '', headers: { etag: '"1"' } },
  redirect: { name: 'a redirect, 303', status: 303, headers: { location: '/elsewhere' } },
  statusAlone: { name: 'a status alone, 202', status: 202 },
  created: {
    name: '201 with headers of its own',
    status: 201,
    body: '{"id":"p-1"}',
    headers: {
      location: '/payments/p-1',
      etag: '"7"',
      link: '</a>; rel="a", </b>; rel="b"',
      'x-many': '1, 2',
    },
  },
  chunks: { name: 'chunks, written and ended', status: 201, body: 'one two three' },
  stream: { name: 'a Node stream', status: 200, body: Buffer.concat([ALL_BYTES, ALL_BYTES]) },
  webStream: { name: 'a web stream', status: 200, body: ALL_BYTES },
  response: { name: 'a Response', status: 202, body: 'hello', headers: { 'x-own': 'yes' } },
  file: { name: 'a file', status: 200, body: readFileSync(FILE) },
  download: {
    name: 'a download',
    status: 200,
    body: readFileSync(FILE),
    headers: { 'content-disposition': 'attachment; filename="the receipt.txt"' },
  },
  page: { name: 'a rendered page', status: 200, body: '<p>Hello, Ada</p>' },
  jsonp: { name: 'JSONP', status: 200 },
  compressed: {
    name: 'a compressed reply',
    status: 200,
    headers: { 'content-encoding': 'gzip' },
    request: { headers: { 'accept-encoding': 'gzip' } },
  },
  finalFailure: { name: 'a final failure, 402', status: 402, body: '{"error":"declined"}' },
  problem: {
    name: 'a problem from an error handler',
    status: 422,
    body: '{"title":"Unprocessable"}',
    headers: { 'content-type': 'application/problem+json; charset=utf-8' },
  },
  thrown: { name: 'an error that was thrown', status: 500 },
  thrownLater: { name: 'an error that was thrown later', status: 500 },
  notFound: { name: 'no such thing, 404', status: 404 },
  patch: { name: 'PATCH', status: 200, body: '{"patched":true}', request: { method: 'PATCH' } },
  put: { name: 'PUT, where it is protected', status: 200, body: 'put', request: { method: 'PUT' } },
} as const satisfies Record<string, Kind>

/** Names a row. */
export type KindName = keyof typeof KINDS

/** An error that the application's error handler makes a problem of. */
export class Unprocessable extends Error {}

/** A column of the table. */
export interface Framework {
  readonly name: string
  /** Rows that the framework has no way of making. */
  readonly lacks: readonly KindName[]
  /** Starts a server that answers requests for `/<kind>`, with compression, and protected on POST, PATCH and PUT. */
  start(hooks: { readonly onEffect: (kind: KindName) => number }): Promise<RunningFramework>
}

/** A server with an answer of each kind. */
export interface RunningFramework {
  readonly url: string
  close(): Promise<void>
}

/** The table, as it stands in the docs. */
export function tableOf(frameworks: readonly Framework[]): string {
  const rows = (Object.keys(KINDS) as KindName[]).map((kind) => {
    const cells = frameworks.map(({ lacks }) => (lacks.includes(kind) ? '' : 'yes'))
    return `| ${[KINDS[kind].name, ...cells].join(' | ')} |`
  })
  const names = frameworks.map(({ name }) => name)
  return [`| the answer | ${names.join(' | ')} |`, `|---|${names.map(() => '---|').join('')}`, ...rows].join(
    '\n',
  )
}
