/** A key that nobody else makes. */
export function newKey(): string {
  // A page that came over plain HTTP has no UUIDs: as many random bits, then.
  return crypto.randomUUID?.() ?? crypto.getRandomValues(new Uint32Array(4)).join('-')
}
