import { describe, expect, it } from 'vitest'
import { createHeaderFilter } from '../../src/http/kept-headers.js'

const ANSWER = {
  'content-type': 'application/json',
  Location: '/payments/1',
  'x-total': 3,
  link: ['<a>', '<b>'],
  etag: '"v1"',
  'content-length': '2',
  'transfer-encoding': 'chunked',
  date: 'now',
  connection: 'close, X-Hop',
  'x-hop': '1',
  'keep-alive': 'timeout=5',
  'set-cookie': ['session=secret'],
  'access-control-allow-origin': '*',
  'ratelimit-remaining': '5',
  'x-ratelimit-limit': '10',
  'server-timing': 'db;dur=5',
  'x-request-id': 'r-1',
  traceparent: '00-a',
  'x-b3-traceid': 'b',
  absent: undefined,
}

describe('createHeaderFilter', () => {
  it('keeps what belongs to the answer, and drops what belongs to the exchange', () => {
    expect(createHeaderFilter()(ANSWER)).toEqual([
      ['content-type', 'application/json'],
      ['location', '/payments/1'],
      ['x-total', '3'],
      ['link', ['<a>', '<b>']],
      ['etag', '"v1"'],
    ])
  })

  it('follows the rules of a route', () => {
    const filter = createHeaderFilter({ drop: ['ETag', 'link'], keep: ['X-Request-Id'] })
    expect(filter(ANSWER).map(([name]) => name)).toEqual([
      'content-type',
      'location',
      'x-total',
      'x-request-id',
    ])
  })
})
