/** What stands for every value past the limit. */
export const OTHER = 'other'

/**
 * Lets the first `limit` values of a label through, and makes `other` of all that come later. Some values are made of
 * what clients send, as the path under which a router of Express is mounted: nobody but this bounds them.
 */
export function limited(limit: number): (value: string) => string {
  const known = new Set<string>()
  return (value) => {
    if (known.has(value)) return value
    if (known.size >= limit) return OTHER
    known.add(value)
    return value
  }
}
