/** What stands for every value past the limit. */
export const OTHER = 'other'

/**
 * Lets the first `limit` values of a label through, and makes `other` of all that come later. Some values are made of
 * what clients send, as the path under which a router of Express is mounted: nobody but this bounds them.
 *
 * @param onFirst is told of each value that is let through, and of `other`, before it is given for the first time.
 */
export function limited(
  limit: number,
  onFirst: (value: string) => void = () => {},
): (value: string) => string {
  const known = new Set<string>()
  let hasOthers = false
  return (value) => {
    if (known.has(value)) return value
    if (known.size >= limit) {
      if (!hasOthers) onFirst(OTHER)
      hasOthers = true
      return OTHER
    }
    known.add(value)
    onFirst(value)
    return value
  }
}
