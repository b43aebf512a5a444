/** The status that an operator gives a settled answer: a final one, from 200 to 599. `undefined` for what is none. */
export function settledStatus(text: string): number | undefined {
  return /^[2-5]\d\d$/.test(text) ? Number(text) : undefined
}

/** Whether HTTP allows an answer with this status to have a body (RFC 9110, section 15). */
export function allowsBody(status: number): boolean {
  return ![204, 205, 304].includes(status)
}
