/** Cents as people write them: `5.00`. */
export function shown(cents: number): string {
  return (cents / 100).toFixed(2)
}

/** @returns cents, or `undefined` where the text is no amount that one can pay. */
export function parsed(text: string): number | undefined {
  const [, units, parts = ''] = /^\s*(\d{1,6})(?:[.,](\d{1,2}))?\s*$/.exec(text) ?? []
  if (units === undefined) return undefined
  return Number(units) * 100 + Number(parts.padEnd(2, '0')) || undefined
}
