/** The part of a request that says where it comes from. */
export interface Sent {
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>
  /** The host that the request was sent to, with its port where that is not the usual one. */
  readonly host: string
}

/**
 * Why a form that was sent may come from another site, or `undefined` when it comes from a page of this one. Browsers say
 * so in two headers that no page can forge: `Sec-Fetch-Site`, where they send it, and `Origin`, which is never left out.
 *
 * @param origin where people see the console; `undefined` compares with the host that the request was sent to.
 * @see https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html
 */
export function foreignness({ headers, host }: Sent, origin: string | undefined): string | undefined {
  const { 'sec-fetch-site': site, origin: sentBy } = headers
  // Browsers leave it out where a page is neither at https: nor on this machine.
  if (site !== undefined && site !== 'same-origin') return 'Its browser says that another site sent it.'
  if (typeof sentBy !== 'string' || sentBy === 'null') return 'It does not say which site sent it.'
  if (origin !== undefined)
    return sentBy === origin ? undefined : `It comes from ${sentBy}, and this console is at ${origin}.`
  if (hostOf(sentBy) === host.toLowerCase()) return undefined
  return `It comes from ${sentBy}, and was sent to ${host}. Behind a proxy that changes the host, the option "origin" says where this console is.`
}

function hostOf(origin: string): string | undefined {
  return URL.canParse(origin) ? new URL(origin).host : undefined
}
