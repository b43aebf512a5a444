import { Readable } from 'node:stream'

/** Every byte there is. */
export const ALL_BYTES = Buffer.from(Uint8Array.from({ length: 256 }, (_, byte) => byte))

/** A response, made as a handler makes it, and what the client gets: at first, and from every retry. */
export interface WebResponseKind {
  readonly make: () => Response | Promise<Response>
  readonly status?: number
  readonly body?: Buffer | string
}

/** The kinds of responses that a web handler returns. */
export const WEB_RESPONSE_KINDS: Readonly<Record<string, WebResponseKind>> = {
  JSON: { make: () => Response.json({ a: 1 }, { status: 201 }), status: 201, body: '{"a":1}' },
  text: { make: () => new Response('text'), body: 'text' },
  'text in a promise': { make: async () => new Response('text'), body: 'text' },
  'an empty text': { make: () => new Response(''), body: '' },
  bytes: { make: () => new Response(ALL_BYTES), body: ALL_BYTES },
  'a Blob': { make: () => new Response(new Blob([ALL_BYTES], { type: 'image/png' })), body: ALL_BYTES },
  'a form': {
    make: () => new Response(new URLSearchParams({ paid: 'yes' })),
    body: 'paid=yes',
  },
  'a stream': {
    make: () => new Response(new Blob([ALL_BYTES, ALL_BYTES]).stream()),
    body: Buffer.concat([ALL_BYTES, ALL_BYTES]),
  },
  'a stream that takes its time': {
    make: () => new Response(Readable.toWeb(Readable.from([ALL_BYTES, ALL_BYTES])) as ReadableStream),
    body: Buffer.concat([ALL_BYTES, ALL_BYTES]),
  },
  'nothing at all': { make: () => new Response(), body: '' },
  'null, with a type': {
    make: () => new Response(null, { headers: { 'content-type': 'application/json' } }),
    body: '',
  },
  'nothing, with 204': { make: () => new Response(null, { status: 204 }), status: 204, body: '' },
  'a redirect': {
    make: () => new Response(null, { status: 303, headers: { location: '/elsewhere' } }),
    status: 303,
    body: '',
  },
  'a redirect whose headers cannot be changed': {
    make: () => Response.redirect('https://elsewhere.example/', 307),
    status: 307,
    body: '',
  },
  'a copy of a response': { make: () => new Response('copied').clone(), body: 'copied' },
  'a final failure': {
    make: () => Response.json({ error: 'declined' }, { status: 402 }),
    status: 402,
    body: '{"error":"declined"}',
  },
  'a failure of the server': {
    make: () => new Response('broken', { status: 500 }),
    status: 500,
    body: 'broken',
  },
  'headers of several lines': {
    make: () => {
      const headers = new Headers({ link: '</a>; rel="a"' })
      headers.append('link', '</b>; rel="b"')
      return new Response('linked', { headers })
    },
    body: 'linked',
  },
}
