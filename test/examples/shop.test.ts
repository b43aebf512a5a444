import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { describe, expect, it } from 'vitest'
import { type Books, faultsIn } from '../../examples/shop/books.js'

const PROGRAM = new URL('../../.build/examples/shop/demo.js', import.meta.url)

/** Eight services with databases of their own start in it, and six of them twice. */
const PATIENCE_MS = 300_000

/** Runs the program to its end. */
async function runShop(): Promise<{ code: number | null; told: string }> {
  const child = spawn(process.execPath, [PROGRAM.pathname], { stdio: ['ignore', 'pipe', 'inherit'] })
  const exited = new Promise<number | null>((resolve) => child.once('exit', resolve))
  const lines: string[] = []
  for await (const line of createInterface(child.stdout)) lines.push(line)
  return { code: await exited, told: lines.join('\n') }
}

/** What a table of the program says about something: bought, without idempotency, and with it. */
function counted(told: string, what: string): readonly number[] {
  const [, ...counts] = told.match(new RegExp(`^ +${what} +(\\d+) +(\\d+) +(\\d+)$`, 'm')) ?? []
  return counts.map(Number)
}

describe('examples/shop', () => {
  it(
    'orders, pays and reserves once for every basket, through lost answers and killed services',
    async () => {
      const { code, told } = await runShop()
      for (const name of ['orders', 'payments', 'inventory', 'gateway'])
        expect(told.match(new RegExp(`${name} is killed`, 'g'))).toHaveLength(2)
      for (const what of ['orders', 'payments', 'reservations']) {
        const [bought, without, withKeys] = counted(told, what)
        expect([what, bought, withKeys]).toEqual([what, 12, 12])
        expect(without).toBeGreaterThan(12)
      }
      expect(told).toContain('each has one order, one payment and one reservation')
      expect(code).toBe(0)

      const keys = [...told.matchAll(/^ {2}(\w+ → \w+) +key (\S+) /gm)].map(([, way, key]) => `${way} ${key}`)
      // One call, one key: orders was killed in the middle, so each of them was made more than once.
      expect(keys.length).toBeGreaterThan(4)
      expect(new Set(keys).size).toBe(4)
      expect(new Set(keys.map((each) => each.split(' ').at(-1))).size).toBe(4)
    },
    PATIENCE_MS,
  )
})

describe('faultsIn', () => {
  const receipts = new Map([
    ['a', { order: 1, payment: 2, reservation: 3 }],
    ['b', { order: 2, payment: 1, reservation: 4 }],
  ])
  const books: Books = {
    orders: [
      { id: 1, basket: 'a', payment: 2, reservation: 3 },
      { id: 2, basket: 'b', payment: 1, reservation: 4 },
    ],
    payments: [
      { id: 1, basket: 'b' },
      { id: 2, basket: 'a' },
    ],
    reservations: [
      { id: 3, basket: 'a' },
      { id: 4, basket: 'b' },
    ],
    lampsLeft: 998,
  }
  const [orderOfA, orderOfB] = books.orders as [Books['orders'][number], Books['orders'][number]]

  it('finds none where every basket has one of each', () => {
    expect(faultsIn(books, receipts)).toEqual([])
  })

  it.each<[string, Partial<Books>, string]>([
    ['an order too many', { orders: [...books.orders, { ...orderOfA, id: 9 }] }, 'a: 2 orders'],
    ['a payment too many', { payments: [...books.payments, { id: 9, basket: 'b' }] }, 'b: 2 payments'],
    [
      'a reservation too many',
      { reservations: [...books.reservations, { id: 9, basket: 'a' }] },
      'a: 2 reservations',
    ],
    ['an order that is missing', { orders: [orderOfA] }, 'b: not what the customer was told'],
    ['a payment that is missing', { payments: books.payments.slice(1) }, 'b: not what the customer was told'],
    [
      'a reservation that is missing',
      { reservations: books.reservations.slice(1) },
      'a: not what the customer was told',
    ],
    [
      "an order with another's payment",
      { orders: [orderOfA, { ...orderOfB, payment: 2 }] },
      'b: not what the customer was told',
    ],
    [
      'an order that nobody made',
      { payments: [...books.payments, { id: 9, basket: 'c' }] },
      'c: nobody bought it',
    ],
    ['a lamp that is gone', { lampsLeft: 997 }, '3 lamps are gone'],
  ])('finds %s', (_, changed, fault) => {
    expect(faultsIn({ ...books, ...changed }, receipts)).toEqual([fault])
  })
})
