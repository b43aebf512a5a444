import { describe, expect, it } from 'vitest'
import { isOfHttp } from '../../src/operator/is-of-http.js'

describe('isOfHttp', () => {
  it.each([
    ['POST /payments', true],
    ['DELETE /payments/:id', true],
    ['POST *', true],
    ['PATCH payment', true],
    ['M-SEARCH /', true],
    ['PAY invoice', false],
    ['POST', false],
    ['POST  /payments', false],
    ['post /payments', false],
    ['send-invoice', false],
    ['message ledger', false],
    ['', false],
  ])('says of %j: %s', (route, is) => expect(isOfHttp({ meta: { route } })).toBe(is))
})
