import { type ChildProcess, fork } from 'node:child_process'
import { rmSync } from 'node:fs'
import { cp, mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PGlite } from '@electric-sql/pglite'
import type { Books } from './books.js'
import { openWire, type Passage } from './network.js'
import { SERVICES, type ServiceName, type ServiceOptions } from './service.js'

/** What goes wrong in a shop. */
export interface Chaos {
  /** Whether the next answer that crosses the network is lost. */
  readonly losesAnswer: () => boolean
  /** In the middle of which basket a service dies. It is started again. */
  readonly deaths: Readonly<Partial<Record<ServiceName, string>>>
  readonly onDeath: (name: ServiceName) => void
}

/** What happened in a shop. */
export interface Incidents {
  readonly passages: readonly Passage[]
  /** The services that died, in order. */
  readonly died: readonly ServiceName[]
}

/** Four services that run, each in a process of its own and with a store of its own. */
export interface Shop extends Incidents {
  /** Where customers go: the gateway, over a network like any other. */
  readonly url: string
  /** What is in the databases. */
  books(): Promise<Books>
  close(): Promise<void>
}

/** A folder for the databases of some shops, with an empty one: to copy it takes less time than to make one. */
export interface Site {
  readonly folder: string
}

/** Makes room for some shops. It is gone when this process is. */
export async function prepareSite(): Promise<Site> {
  const folder = await mkdtemp(join(tmpdir(), 'oncekey-shop-'))
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
  const db = await PGlite.create(join(folder, 'empty'))
  await db.close()
  return { folder }
}

/** Opens a shop whose services heed idempotency keys, or do not. */
export async function openShop(
  site: Site,
  { heedsKeys, chaos }: { readonly heedsKeys: boolean; readonly chaos: Chaos },
): Promise<Shop> {
  const folder = await mkdtemp(join(site.folder, 'shop-'))
  const passages: Passage[] = []
  const died: ServiceName[] = []
  const ports = new Map<ServiceName, number>()
  const processes = new Map<ServiceName, ChildProcess>()
  let isOpen = true

  const wire = (from: string, to: ServiceName) =>
    openWire({
      from,
      to,
      port: () => ports.get(to) ?? 0,
      losesAnswer: chaos.losesAnswer,
      onPassage: (passage) => passages.push(passage),
    })
  const wires = {
    gateway: await wire('customer', 'gateway'),
    orders: await wire('gateway', 'orders'),
    payments: await wire('orders', 'payments'),
    inventory: await wire('orders', 'inventory'),
  }
  const urls = {
    gateway: wires.gateway.url,
    orders: wires.orders.url,
    payments: wires.payments.url,
    inventory: wires.inventory.url,
  }

  async function start(name: ServiceName, diesAt: string | undefined): Promise<void> {
    const options: ServiceOptions = {
      name,
      folder: join(folder, name),
      urls,
      secret: `a secret that only ${name} knows`,
      heedsKeys,
      diesAt,
    }
    const child = fork(new URL('./service.js', import.meta.url), [JSON.stringify(options)])
    processes.set(name, child)
    // Before the site is cleared away: nobody may write there any more.
    const kill = (): void => void child.kill('SIGKILL')
    process.prependOnceListener('exit', kill)
    child.once('exit', () => process.off('exit', kill))
    const listening = new Promise<number>((resolve, reject) => {
      child.once('message', (port) => resolve(Number(port)))
      child.once('exit', (code) => reject(new Error(`${name} did not start: it ended with ${code}`)))
    })
    child.once('exit', (_code, signal) => {
      if (!isOpen || signal !== 'SIGKILL') return
      died.push(name)
      chaos.onDeath(name)
      // Whoever watches over services starts this one again, and this time it lives.
      start(name, undefined).catch((error: unknown) => {
        if (isOpen) throw error
      })
    })
    ports.set(name, await listening)
  }

  for (const name of SERVICES) await cp(join(site.folder, 'empty'), join(folder, name), { recursive: true })
  await Promise.all(SERVICES.map((name) => start(name, chaos.deaths[name])))

  const read = async (name: ServiceName, what: string) => {
    const answer = await fetch(`http://127.0.0.1:${ports.get(name)}/${what}`)
    return (await answer.json()) as never
  }
  return {
    url: wires.gateway.url,
    passages,
    died,
    books: async () => ({
      orders: await read('orders', 'orders'),
      payments: await read('payments', 'payments'),
      reservations: await read('inventory', 'reservations'),
      lampsLeft: ((await read('inventory', 'stock')) as { count: number }).count,
    }),
    async close() {
      isOpen = false
      await Promise.all(Object.values(wires).map((each) => each.close()))
      await Promise.all([...processes.values()].map(ended))
    },
  }
}

function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve()
  return new Promise((resolve) => {
    child.once('exit', () => resolve())
    child.disconnect()
  })
}
