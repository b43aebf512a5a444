import { describe, expect, it } from 'vitest'
import { isRefusal } from '../../src/stores/postgres-driver.js'

describe('the answer to a commit', () => {
  it.each([
    { what: 'a failed check', error: { code: '23514', severity: 'ERROR' }, refused: true },
    { what: 'a serialization failure', error: { code: '40001', severity: 'ERROR' }, refused: true },
    { what: 'a server that does not know', error: { code: '40003', severity: 'ERROR' }, refused: false },
    { what: 'a server that is shut down', error: { code: '57P01', severity: 'FATAL' }, refused: false },
    { what: 'a cancelled statement', error: { code: '57014', severity: 'ERROR' }, refused: false },
    { what: 'a proxy that lost its server', error: { code: '08006', severity: 'ERROR' }, refused: false },
    { what: 'a severity in another language', error: { code: '23514', severity: 'FEHLER' }, refused: false },
    { what: 'a system error', error: { code: 'EPIPE', errno: -32 }, refused: false },
    { what: 'an error of the client', error: new Error('Connection terminated'), refused: false },
    { what: 'nothing', error: undefined, refused: false },
  ])('is a refusal or leaves it open: $what', ({ error, refused }) => {
    expect(isRefusal(error)).toBe(refused)
  })
})
