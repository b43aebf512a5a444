import Fastify, { type FastifyInstance } from 'fastify'
import type { Page } from 'playwright-core'
import operatorConsole from '../../src/console/console.js'
import { recordId, scopeHash } from '../../src/contract/key.js'
import type { IdempotencyEvent, IdempotencyListener } from '../../src/core/events.js'
import { createIdempotency } from '../../src/index.js'
import { memoryStore } from '../../src/stores/memory.js'

/** A picture of the console, for `docs/images`. */
export interface ConsolePicture {
  readonly name: string
  readonly viewport: { readonly width: number; readonly height: number }
  readonly colorScheme?: 'light' | 'dark'
  /** What is to be seen, played on a page of a service that `startPictured` has made. */
  play(page: Page, url: string): Promise<void>
}

const DESKTOP = { width: 1280, height: 900 }
const PHONE = { width: 375, height: 812 }

/** All of them. */
export const CONSOLE_PICTURES: readonly ConsolePicture[] = [
  { name: 'console-desktop', viewport: DESKTOP, play: overview },
  { name: 'console-phone', viewport: PHONE, play: overview },
  { name: 'console-dark', viewport: DESKTOP, colorScheme: 'dark', play: overview },
  { name: 'console-record', viewport: DESKTOP, play: record },
  { name: 'console-confirm', viewport: DESKTOP, play: confirm },
]

async function overview(page: Page, url: string): Promise<void> {
  await page.goto(`${url}/console/`)
}

async function record(page: Page, url: string): Promise<void> {
  await overview(page, url)
  await page.getByRole('link', { name: 'invoice-2041' }).click()
  await page.getByLabel('HTTP status').fill('201')
  await page.getByLabel('JSON or text').fill('{"id": "p-90817", "status": "accepted"}')
}

async function confirm(page: Page, url: string): Promise<void> {
  await record(page, url)
  await page.getByRole('button', { name: 'Settle…' }).click()
}

/** Starts a console over made-up traffic of an hour, and records that are as they would be after it. */
export async function startPictured(): Promise<FastifyInstance> {
  const store = memoryStore()
  const engine = createIdempotency({ store })
  const listeners: IdempotencyListener[] = []
  const app = Fastify()
  const on = (listener: IdempotencyListener): (() => void) => {
    listeners.push(listener)
    return () => {}
  }
  const { policy, namespace } = engine
  await app.register(operatorConsole, {
    prefix: '/console',
    idempotency: { on, store, namespace, policy },
    authorize: () => ({ by: 'ann@example.com', mayChange: true }),
    actions: true,
    logger: { info() {}, warn() {} },
  })
  anHourAgo((minute) => {
    for (const type of trafficOf(minute)) for (const listen of listeners) listen({ type } as IdempotencyEvent)
  })
  await leave(store, 'invoice-2041', { leaseMs: 0, ageMs: 11 * 60_000 })
  await leave(store, '6f1f2a9e-4c1b-4f0e-9d53-1b6f0c2f8a77', {
    leaseMs: 0,
    ageMs: 4 * 60_000,
    route: 'POST /refunds',
  })
  await leave(store, 'order-88112/capture', {
    leaseMs: 27_000,
    ageMs: 3000,
    route: 'POST /orders/:id/capture',
  })
  await leave(store, '0b8d3c52-7a41-4f6c-8e0d-5a9b71d2c3e4', { leaseMs: 29_000, ageMs: 1000 })
  app.addHook('onClose', () => engine.close())
  return app
}

async function leave(
  store: ReturnType<typeof memoryStore>,
  key: string,
  given: { readonly leaseMs: number; readonly ageMs: number; readonly route?: string },
): Promise<void> {
  const { leaseMs, ageMs, route = 'POST /payments' } = given
  const scope = scopeHash('', 'acme')
  await store.claim({
    ...{ id: recordId({ namespace: '', scope: 'acme', key }), token: key, fingerprint: 'f' },
    ...{ leaseMs, ttlMs: 7 * 86_400_000 - ageMs, takeOver: false, mayBeLost: false },
    meta: { key, route, scope, firstSeenAt: Date.now() - ageMs },
  })
}

/** Calls `each` once for each minute of the last hour, with the clock of this process set back to it. */
function anHourAgo(each: (minute: number) => void): void {
  const { now } = performance
  try {
    for (let minute = 59; minute >= 0; minute -= 1) {
      performance.now = () => now.call(performance) + 3_600_000 - minute * 60_000
      each(60 - minute)
    }
  } finally {
    performance.now = now
  }
}

/** What became of the requests of one minute: calm, but for a few minutes without the store and what came of them. */
function trafficOf(minute: number): readonly IdempotencyEvent['type'][] {
  const wave = 34 + 12 * Math.sin(minute / 7) + ((minute * 37) % 9)
  const isOut = minute >= 46 && minute <= 48
  const many = (count: number, type: IdempotencyEvent['type']) =>
    Array<typeof type>(Math.round(count)).fill(type)
  return [
    ...many(isOut ? 4 : wave, 'claimed'),
    ...many(isOut ? 2 : wave / 6 + (minute > 48 && minute < 52 ? 14 : 0), 'replayed'),
    ...many((minute * 13) % 3, 'in-progress'),
    ...many(minute % 17 === 0 ? 1 : 0, 'mismatch'),
    ...many(minute > 48 && minute % 3 === 0 ? 2 : 0, 'unknown'),
    ...many(isOut ? 21 : 0, 'refused'),
  ]
}
