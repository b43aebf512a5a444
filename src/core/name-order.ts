/** Up to so many names are put in order by insertion. */
const FEW = 16
/** How many characters of a name go into its number: as many as a double is exact for. */
const NARROW = { places: 6, base: 0x100 }
const WIDE = { places: 3, base: 0x10000 }

/** Up to so many names take no memory of their own. */
const SCRATCH = 1024
const scratch = {
  numbers: new Float64Array(SCRATCH),
  from: new Uint32Array(SCRATCH),
  to: new Uint32Array(SCRATCH),
}

// Strings have half a dozen kinds in V8, and after four of them a method is looked up anew for every character.
const { charCodeAt } = String.prototype

/** Sorts names by their UTF-16 code units, in place, and their values with them. */
export function sortByName(names: string[], values: unknown[]): void {
  if (names.length > FEW) sortMany(names, values)
  else sortFew(names, values)
}

/** Most objects have a few members, for which `sort` takes memory and more time. */
function sortFew(names: string[], values: unknown[]): void {
  for (let index = 1; index < names.length; index += 1) {
    const name = names[index] as string
    let place = index
    if (!isAfter(names[place - 1] as string, name)) continue
    const value = values[index]
    do {
      names[place] = names[place - 1] as string
      values[place] = values[place - 1]
      place -= 1
    } while (place > 0 && isAfter(names[place - 1] as string, name))
    names[place] = name
    values[place] = value
  }
}

/** To compare the first characters is much faster than to compare strings, and nearly always enough. */
function isAfter(one: string, other: string): boolean {
  const difference = charCodeAt.call(one, 0) - charCodeAt.call(other, 0)
  // An empty name has no first character: `NaN`.
  return difference > 0 || (!(difference < 0) && one > other)
}

/** By merging, with a number for each name, so that most comparisons are of numbers. */
function sortMany(names: string[], values: unknown[]): void {
  if (isSorted(names)) return
  const { length } = names
  const numbers = length > SCRATCH ? new Float64Array(length) : scratch.numbers
  const prefix = commonPrefix(names)
  if (!number(names, prefix, NARROW, numbers)) number(names, prefix, WIDE, numbers)
  let from = length > SCRATCH ? new Uint32Array(length) : scratch.from
  let to = length > SCRATCH ? new Uint32Array(length) : scratch.to
  for (let index = 0; index < length; index += 1) from[index] = index
  for (let width = 1; width < length; width *= 2) {
    for (let start = 0; start < length; start += width * 2) {
      const middle = Math.min(start + width, length)
      const end = Math.min(middle + width, length)
      let left = start
      let right = middle
      for (let place = start; place < end; place += 1) {
        const isRight =
          left === middle ||
          (right < end && isAfterAt(names, numbers, from[left] as number, from[right] as number))
        to[place] = from[isRight ? right++ : left++] as number
      }
    }
    const merged = to
    to = from
    from = merged
  }
  const oldNames = names.slice()
  const oldValues = values.slice()
  for (let index = 0; index < length; index += 1) {
    const old = from[index] as number
    names[index] = oldNames[old] as string
    values[index] = oldValues[old]
  }
}

function isAfterAt(names: readonly string[], numbers: Float64Array, one: number, other: number): boolean {
  const difference = (numbers[one] as number) - (numbers[other] as number)
  return difference === 0 ? (names[one] as string) > (names[other] as string) : difference > 0
}

function isSorted(names: readonly string[]): boolean {
  for (let index = 1; index < names.length; index += 1)
    if (isAfter(names[index - 1] as string, names[index] as string)) return false
  return true
}

function commonPrefix(names: readonly string[]): number {
  const first = names[0] as string
  let length = first.length
  for (let index = 1; index < names.length && length > 0; index += 1) {
    const name = names[index] as string
    let same = 0
    length = Math.min(length, name.length)
    while (same < length && charCodeAt.call(first, same) === charCodeAt.call(name, same)) same += 1
    length = same
  }
  return length
}

/**
 * Makes numbers that are in the order of the names, as far as their first characters after the prefix tell.
 *
 * @returns `false` for a character that is not below the base.
 */
function number(
  names: readonly string[],
  prefix: number,
  { places, base }: { readonly places: number; readonly base: number },
  numbers: Float64Array,
): boolean {
  for (let index = 0; index < names.length; index += 1) {
    const name = names[index] as string
    let sum = 0
    for (let place = prefix; place < prefix + places; place += 1) {
      const digit = place < name.length ? charCodeAt.call(name, place) : 0
      if (digit >= base) return false
      sum = sum * base + digit
    }
    numbers[index] = sum
  }
  return true
}
