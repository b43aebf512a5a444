/**
 * How long an answer asks to wait, in milliseconds: seconds or a date (RFC 9110, section 10.2.3). `0` where it does not
 * say, or says what is neither.
 *
 * A date counts from the answer's own `Date`, so that clocks need not agree; from this machine's clock where there is
 * none, or a browser does not show it.
 */
export function retryAfterMs(headers: Headers | undefined): number {
  const value = headers?.get('retry-after') ?? ''
  const ms =
    Number(value) >= 0
      ? Number(value) * 1000
      : Date.parse(value) - (Date.parse(headers?.get('date') ?? '') || Date.now())
  return Math.max(0, ms) || 0
}
