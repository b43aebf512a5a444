import { parseArgs } from 'node:util'
import { type Books, faultsIn, type Receipts } from './books.js'
import { sendCustomers } from './customers.js'
import type { Passage } from './network.js'
import type { ServiceName } from './service.js'
import { type Incidents, openShop, prepareSite, type Site } from './shop.js'

const { values } = parseArgs({
  options: {
    /** The share of answers that the network loses. */
    loss: { type: 'string', default: '0.3' },
    /** Which answers those are. */
    seed: { type: 'string', default: '1' },
    /** No chaos at all: a network that loses nothing, and services that live. */
    calm: { type: 'boolean', default: false },
  },
})

const LOSS = Number(values.loss)
if (!(LOSS >= 0 && LOSS < 1))
  throw new RangeError(`--loss must be 0 or more, and less than 1; got ${values.loss}`)

const BASKETS = Array.from({ length: 12 }, (_, index) => `basket-${index + 1}`)

/** In the middle of which basket each service dies, and at which moment of it. */
const DEATHS: Readonly<Record<ServiceName, { readonly basket: string; readonly when: string }>> = {
  orders: { basket: 'basket-3', when: 'it has the payment, and no reservation yet' },
  payments: { basket: 'basket-6', when: 'the payment is committed, and not answered' },
  inventory: { basket: 'basket-8', when: 'it is in the middle of its transaction' },
  gateway: { basket: 'basket-10', when: 'the order is done; the keys in its memory are gone' },
}

/** A shop that is closed again. */
interface Story extends Incidents {
  readonly receipts: Receipts
  readonly books: Books
  readonly faults: readonly string[]
}

/** Sends the same customers through the same chaos twice, without keys and with them, and compares the books. */
async function demo(): Promise<void> {
  console.log(`A shop of four services, each a process of its own with a store of its own:

  customer → gateway → orders → payments
                              → inventory

${BASKETS.length} customers buy a lamp each. ${
    values.calm
      ? 'It is a calm day: no answer is lost, and no service dies.'
      : `The network loses ${Math.round(LOSS * 100)} % of all answers, on every way, and each service is killed once.
Whoever gets no answer asks again, until there is one.`
  }
`)
  const site = await prepareSite()
  console.log('1. Idempotency is switched off: the services ignore the keys that they are sent.')
  const without = await tell(site, false)
  console.log('\n2. Idempotency is switched on.')
  const withKeys = await tell(site, true)
  showWay(withKeys)
  showCounts(without, withKeys)
  process.exitCode = verdict(without, withKeys)
}

async function tell(site: Site, heedsKeys: boolean): Promise<Story> {
  const chance = randomFrom(Number(values.seed))
  const deaths = Object.fromEntries(Object.entries(DEATHS).map(([name, { basket }]) => [name, basket]))
  const shop = await openShop(site, {
    heedsKeys,
    chaos: {
      losesAnswer: () => !values.calm && chance() < LOSS,
      deaths: values.calm ? {} : deaths,
      onDeath: (name) =>
        console.log(
          `   ${DEATHS[name].basket}: ${name} is killed when ${DEATHS[name].when}. It starts again.`,
        ),
    },
  })
  try {
    const receipts = await sendCustomers(shop.url, BASKETS)
    const lost = shop.passages.filter(({ fate }) => fate === 'lost').length
    console.log(`   ${receipts.size} customers have got their receipt.`)
    console.log(`   It took ${shop.passages.length} requests; the answers to ${lost} of them were lost.`)
    const books = await shop.books()
    return { ...shop, receipts, books, faults: faultsIn(books, receipts) }
  } finally {
    await shop.close()
  }
}

/** The way of the basket at which orders died, as the network saw it. */
function showWay({ passages }: Story): void {
  const { basket } = DEATHS.orders
  console.log(
    `\nThe way of ${basket}, in the order in which it was sent. A call has one key, however often it is sent:\n`,
  )
  const way = passages
    .filter((passage) => passage.basket === basket)
    .sort((a, b) => a.sentAt - b.sentAt)
    .map(
      ({ from, to, key, ...end }) =>
        `  ${`${from} → ${to}`.padEnd(20)} key ${key.slice(0, 8)}…  ${ending(end)}`,
    )
  // While a service is away, the same happens many times.
  for (const [index, line] of way.entries()) if (line !== way[index - 1]) console.log(line)
  console.log()
}

function ending({ fate, status, isReplay }: Pick<Passage, 'fate' | 'status' | 'isReplay'>): string {
  if (fate === 'broken') return 'no answer: it died, or is away'
  return `${status}${isReplay ? ', replayed' : ''}${fate === 'lost' ? ', lost on its way back' : ''}`
}

function showCounts(without: Story, withKeys: Story): void {
  const show = (...[what, ...counts]: readonly (string | number)[]): void =>
    console.log(`  ${String(what).padEnd(14)}${counts.map((count) => String(count).padStart(18)).join('')}`)
  show('', 'bought', 'idempotency off', 'idempotency on')
  for (const what of ['orders', 'payments', 'reservations'] as const)
    show(what, BASKETS.length, without.books[what].length, withKeys.books[what].length)
  console.log()
}

/** The exit code: 0 where every count is right. */
function verdict(without: Story, withKeys: Story): number {
  const paid = (basket: string) => without.books.payments.filter((entry) => entry.basket === basket).length
  const overcharged = BASKETS.filter((basket) => paid(basket) > 1).length
  console.log(`Without idempotency, ${overcharged} of ${BASKETS.length} customers paid more than once.`)
  if (withKeys.faults.length > 0) {
    console.log(`With it, these are wrong:\n  ${withKeys.faults.join('\n  ')}`)
    return 1
  }
  console.log('With it, each has one order, one payment and one reservation, and was told of these.')
  // Where nothing goes wrong without protection, nothing is shown by its going right with it.
  const isChaosFelt = values.calm ? without.faults.length === 0 : overcharged > 0
  if (!isChaosFelt) console.log('But the chaos was not what it should have been, so this says nothing.')
  return isChaosFelt ? 0 : 1
}

/** Numbers from 0 to 1 that look random and are the same in every run (mulberry32). */
function randomFrom(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

// What it has made goes when it exits, and it exits when it is told to stop.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1))
await demo()
