import { execFile } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { promisify } from 'node:util'
import { describe, expect, it, onTestFinished } from 'vitest'
import { aServer, keysOf, statuses } from '../support/client-fixtures.js'

const ROOT = new URL('../../', import.meta.url)
const FOLDER = new URL('examples/client/', ROOT)

describe('examples/client', () => {
  it('is what docs/client.md shows', () => {
    const files = readdirSync(FOLDER).map((name) => readFileSync(new URL(name, FOLDER), 'utf8'))
    const page = readFileSync(new URL('docs/client.md', ROOT), 'utf8')
    const blocks = [...page.matchAll(/```ts\n(.*?)```/gs)].map(([, code]) => code ?? '')
    expect(blocks).toHaveLength(3)
    for (const block of blocks) expect(files.some((file) => file.includes(block)) ? '' : block).toBe('')
  })

  it('pays once where the first answer is lost', async () => {
    const program = new URL('.build/examples/client/demo.js', ROOT).pathname
    const { stdout } = await promisify(execFile)(process.execPath, [program])
    expect(stdout.trim()).toBe('Asked 2 times, paid 1 time: {"payment":1}')
  })

  it('checks out once in a browser that is reloaded', async () => {
    const items = new Map<string, string>()
    const sessionStorage = {
      getItem: (name: string) => items.get(name) ?? null,
      setItem: (name: string, value: string) => items.set(name, value),
      removeItem: (name: string) => items.delete(name),
    }
    Object.assign(globalThis, { sessionStorage })
    onTestFinished(() => void Reflect.deleteProperty(globalThis, 'sessionStorage'))
    const { checkOut } = await import('../../examples/client/checkout.js')
    const cart = { id: '42', total: 500 }
    const server = await aServer((reply, _, number) => {
      if (number < 7) reply.writeHead(503).end()
      else reply.writeHead(number === 8 ? 402 : 201).end()
    })
    expect(await checkOut(server.url, cart)).toBe('No answer yet: try again')
    expect(await checkOut(server.url, cart)).toBe('Paid')
    expect(keysOf(server)).toHaveLength(1)
    expect(await checkOut(server.url, cart)).toContain('Not paid')
    items.set('oncekey:checkout-42', '1 old-key')
    expect(await checkOut(server.url, cart)).toContain('Call us')
  }, 60_000)

  it('asks other services with keys of the order', async () => {
    const { placeOrder } = await import('../../examples/client/service.js')
    const request = { idempotency: { deriveKey: (label: string) => `order-42.${label}` } }
    const [payments, stock, poor] = [await statuses(201), await statuses(201), await statuses(402)]
    expect(await placeOrder(request, { payments: payments.url, stock: stock.url })).toBe('placed')
    expect([keysOf(payments), keysOf(stock)]).toEqual([['order-42.payment'], ['order-42.reservation']])
    expect(await placeOrder(request, { payments: poor.url, stock: stock.url })).toBe('refused')
    expect(stock.requests).toHaveLength(1)
  })
})
